"""Quantization-aware training: from a float module to one that trains through rounding, and from that to int8."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..backends.base import Lowered
from ..backends.units import Matched, Unit
from ..passes.assign_precision import Assignment
from ..passes.base import finish
from ..passes.choose_ranges import choose_ranges
from ..passes.dynamic import LayerPlan
from ..passes.eliminate_noops import EliminateNoops
from ..passes.fake_quants import Simulation, attach, settle, simulate
from ..passes.fold_batchnorm import FoldBatchNorm
from ..passes.freeze import freeze
from .attention import ProjectedAttention
from .batches import Sample, as_batches, run_batch
from .capture import capture_modes, copied
from .config import QuantConfig
from .errors import ConfigError
from .modes import Modes, find_modes
from .overrides import ResolvedConfig
from .pipeline import Options, Work, lower, model_bytes, prepare, simplify
from .report import Report

# What changes weights after the fact, or beforehand in ways that training finds by itself.
UNTRAINED = ("equalize", "smooth", "absorb_bias", "correct_bias")


@dataclass
class Training:
    """A model on its way through training.

    Attributes:
        work: the graph that trains, on the layers of ``tree``.
        tree: a copy of the model, whose modules, parameters and buffers keep their names.
        modes: what of the graph depends on the mode.
        norms: the batch normalisations that training keeps apart from the layers before them, by the layers' paths.
        simulation: what rounds; empty until :func:`begin`.
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
        tree, gm = copy.deepcopy(self.tree, memo), copy.deepcopy(self.work.gm, memo)
        now = dict(zip(self.work.gm.graph.nodes, gm.graph.nodes, strict=True))
        work = replace(
            self.work,
            gm=gm,
            notes=_with_nodes(self.work.notes, now),
            snapshots=dict(self.work.snapshots),
            assignment=_with_nodes(self.work.assignment, now),
            layers=_with_nodes(self.work.layers, now),
        )
        norms, simulation = copy.deepcopy((self.norms, self.simulation), memo)
        return Training(work, tree, _with_nodes(self.modes, now), norms, simulation)


def _with_nodes(value: Any, now: Mapping[fx.Node, fx.Node]) -> Any:
    """An analysis of one graph as that of a copy, whose nodes ``now`` tells."""
    if isinstance(value, fx.Node):
        return now.get(value, value)
    if isinstance(value, Assignment | Matched | Unit | ResolvedConfig | LayerPlan | Modes):
        return replace(value, **{f.name: _with_nodes(getattr(value, f.name), now) for f in fields(value)})
    if isinstance(value, dict):
        return {_with_nodes(k, now): _with_nodes(v, now) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_with_nodes(v, now) for v in value)
    return value


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
        for name in UNTRAINED:
            if getattr(each, name) is True:
                raise ConfigError(
                    f"QuantConfig.{name}=True is for scheme 'static': training finds weights that bear their "
                    "rounding by itself. Leave it at 'auto'."
                )
        if each.rounding == "learned":
            raise ConfigError("QuantConfig.rounding='learned' is for scheme 'static': training itself learns it.")
    plain: dict[str, Any] = dict.fromkeys(UNTRAINED, False)
    overrides = {k: replace(c, **plain) if isinstance(c, QuantConfig) else c for k, c in config.overrides.items()}
    return replace(config, overrides=overrides, **plain)


def prepare_training(model: nn.Module, options: Options, calibration: Iterable[Any], limit: int) -> Training:
    """Everything up to the first step of training. Arguments and errors as of :func:`fxquant.prepare`."""
    training = start(model, options)
    gm = training.work.gm
    batches = as_batches(calibration, gm, limit)
    sample = Sample()
    sample.fill(batches)
    begin(training, sample)
    with _as_if_trained(training.tree):
        # Copies: a loader may refill one buffer.
        for number, batch in enumerate(itertools.chain(list(sample), batches)):
            run_batch(gm, batch, number)
    place(training)
    return training


@contextlib.contextmanager
def _as_if_trained(tree: nn.Module) -> Iterator[None]:
    """In eval mode, but that normalisations which have seen no batch yet use the statistics of the batch at hand.

    Those they start with say nothing about the ranges that training will see.
    """
    modes = {module: module.training for module in tree.modules()}
    tree.eval()
    fresh = [m for m in tree.modules() if isinstance(m, _BatchNorm) and _is_fresh(m)]
    kept = [copy.deepcopy(norm.state_dict()) for norm in fresh]
    for norm in fresh:
        norm.train()
    try:
        yield
    finally:
        for norm, state in zip(fresh, kept, strict=True):
            norm.load_state_dict(state)
        for module, mode in modes.items():
            module.training = mode


def _is_fresh(norm: _BatchNorm) -> bool:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return False
    return not norm.num_batches_tracked and not norm.running_mean.any() and bool((norm.running_var == 1).all())


def begin(training: Training, sample: Sample) -> None:
    """Decide the precision of every op and place observers; the graph is then to be run on calibration batches.

    Raises as :func:`.pipeline.prepare`.
    """
    work = training.work
    prepare(work, sample)
    if any(isinstance(module, ProjectedAttention) for module in work.gm.modules()):
        raise ConfigError(
            "An override asks for int8 or fp16 weights in an nn.MultiheadAttention, which scheme 'qat' would have to "
            "take apart, and its parameters would lose their names. Leave it in fp32 here."
        )
    assert work.assignment is not None
    training.simulation = attach(work.gm, work.assignment, training.norms)


def place(training: Training) -> None:
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
    finish(work.gm)
    freeze(work.gm, work.assignment, work.options.backend, trained)
    work.snapshot("freeze")
    return lower(work, trained=True)
