"""Quantization-aware training: from a float module to one that trains through rounding, and from that to int8."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..backends.base import Lowered
from ..passes.choose_ranges import choose_ranges
from ..passes.eliminate_noops import EliminateNoops
from ..passes.fake_quants import Simulation, attach, settle, simulate
from ..passes.fold_batchnorm import FoldBatchNorm
from ..passes.freeze import freeze
from .attention import ProjectedAttention
from .batches import Sample, run_batch, sampled
from .capture import capture_modes, copied, modes_kept
from .config import SWITCHES, QuantConfig
from .errors import ConfigError
from .modes import Modes, find_modes
from .pipeline import lower, model_bytes, prepare, simplify
from .report import Report
from .work import Options, Work, with_nodes


@dataclass
class Training:
    """A model on its way through training.

    Attributes:
        work: the graph that trains, on the layers of ``tree``.
        tree: a copy of the model, whose modules, parameters and buffers keep their names.
        modes: what of the graph depends on the mode.
        norms: the batch normalisations that training keeps apart from the layers before them, by the layers' paths.
        simulation: what rounds; empty until observers are placed.
    """

    work: Work
    tree: nn.Module
    modes: Modes
    norms: Mapping[str, nn.Module]
    simulation: Simulation = field(default_factory=Simulation)

    def __deepcopy__(self, memo: dict[int, Any]) -> Training:
        """A copy of everything that training changes; the backend and its table are shared."""
        backend = self.work.options.backend
        memo.update({id(shared): shared for shared in (backend, *backend.table.rows)})
        # Tensors that modules keep from their last call (pruned weights, attention maps) belong to its autograd graph.
        kept = (v for m in self.tree.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf)
        memo.update({id(tensor): tensor.detach().clone() for tensor in kept})
        tree, gm = copy.deepcopy(self.tree, memo), copy.deepcopy(self.work.gm, memo)
        copies = dict(zip(self.work.gm.graph.nodes, gm.graph.nodes, strict=True))
        work = self.work.on_copy(gm, copies)
        norms, simulation = copy.deepcopy((self.norms, self.simulation), memo)
        return Training(work, tree, with_nodes(self.modes, copies), norms, simulation)


def start(model: nn.Module, options: Options) -> Training:
    """Capture in both modes and simplify; batch normalisation and dropout wait aside. The model is not changed.

    Raises:
        CaptureError: the forward cannot be traced, or takes another path in training mode.
        ConfigError: the configuration asks for what training does not do.
    """
    options = replace(options, config=_for_training(options.config))
    tree = copied(model)
    captured = capture_modes(tree, options.leaf_modules)
    modes = find_modes(captured, tree, options.backend.table)
    work = Work(captured.module, options, model_bytes(model))
    norms: dict[str, nn.Module] = {}
    simplify(work, FoldBatchNorm(detached=norms), EliminateNoops(keep=modes.dropouts))
    modes.take_out(work.gm)
    return Training(work, tree, modes, norms)


def _for_training(config: QuantConfig) -> QuantConfig:
    for each in (config, *(c for c in config.overrides.values() if isinstance(c, QuantConfig))):
        for name in SWITCHES:
            if getattr(each, name) is True:
                raise ConfigError(
                    f"QuantConfig.{name}=True is for scheme 'static': training finds weights that bear their "
                    "rounding by itself. Leave it at 'auto'."
                )
        if each.rounding == "learned":
            raise ConfigError("QuantConfig.rounding='learned' is for scheme 'static': training itself learns it.")
    plain: dict[str, Any] = dict.fromkeys(SWITCHES, False)
    overrides = {k: replace(c, **plain) if isinstance(c, QuantConfig) else c for k, c in config.overrides.items()}
    return replace(config, overrides=overrides, **plain)


def prepare_training(model: nn.Module, options: Options, calibration: Iterable[Any], limit: int) -> Training:
    """Everything up to the first step of training. Arguments and errors as of :func:`fxquant.prepare`."""
    training = start(model, options)
    gm, tree = training.work.gm, training.tree
    sample, batches = sampled(calibration, gm, limit)
    with modes_kept(tree):
        tree.eval()
        _place_observers(training, sample)
        with _fresh_norms_by_batch(tree):
            for number, batch in enumerate(batches):
                run_batch(gm, batch, number)
        _place_fake_quants(training)
    return training


@contextlib.contextmanager
def _fresh_norms_by_batch(tree: nn.Module) -> Iterator[None]:
    """Within it, normalisations that have seen no batch yet use the statistics of the batch at hand.

    Those they start with say nothing about the ranges that training will see.
    """
    fresh = [m for m in tree.modules() if isinstance(m, _BatchNorm) and _is_fresh(m)]
    kept = [copy.deepcopy(norm.state_dict()) for norm in fresh]
    for norm in fresh:
        norm.train()
    try:
        yield
    finally:
        for norm, state in zip(fresh, kept, strict=True):
            norm.eval().load_state_dict(state)


def _is_fresh(norm: _BatchNorm) -> bool:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return False
    return not norm.num_batches_tracked and not norm.running_mean.any() and bool((norm.running_var == 1).all())


def _place_observers(training: Training, sample: Sample) -> None:
    """Decide the precision of every op and place observers; the graph is then to be run on calibration batches."""
    work = training.work
    prepare(work, sample)
    if any(isinstance(module, ProjectedAttention) for module in work.gm.modules()):
        raise ConfigError(
            "An override asks for int8 or fp16 weights in an nn.MultiheadAttention, which scheme 'qat' would have to "
            "take apart, and its parameters would lose their names. Leave it in fp32 here."
        )
    assert work.assignment is not None
    training.simulation = attach(work.gm, work.assignment, training.norms)


def _place_fake_quants(training: Training) -> None:
    """Fake-quants take the place of the observers of the calibrated graph; dropout comes back."""
    work = training.work
    assert work.assignment is not None
    choose_ranges(work.gm, work.assignment, work.sample)
    simulate(work.gm, work.assignment, work.options.backend, training.simulation)
    training.modes.put_back(work.gm)
    work.snapshot("simulate")


def convert(training: Training) -> tuple[Lowered, Report]:
    """From a trained graph in eval mode, which is used up, to a verified, lowered one."""
    work = training.work
    assert work.assignment is not None
    training.modes.settle(work.gm)
    trained = settle(work.gm, training.simulation)
    freeze(work.gm, work.assignment, work.options.backend, trained)
    work.snapshot("freeze")
    return lower(work, trained=True)
