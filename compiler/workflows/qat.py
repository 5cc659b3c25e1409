"""Quantization-aware training: from a float module to one that trains through rounding, and from that to int8."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...backends.ops.table import OPS
from ...passes.dynamic.projected_attention import ProjectedAttention
from ...passes.quantization.choose_ranges import ChooseRanges
from ...passes.quantization.freeze import Freeze
from ...passes.rewrites.eliminate_noops import EliminateNoops
from ...passes.rewrites.fold_batchnorm import FoldBatchNorm
from ...passes.training.fake_quants import AttachLayers, PlaceFakeQuants, SettleTraining, Simulation
from ..capture.capture import capture_modes
from ..capture.copies import copy_model, modes_kept
from ..capture.find_modes import find_modes
from ..capture.modes import Modes
from ..core.config import SWITCHES, QuantConfig
from ..core.errors import ConfigError
from ..core.progress import stage
from ..execution.batches import sampled
from ..execution.graphs import copy_graph, with_nodes
from .capture_model import model_bytes, simplify
from .options import Options
from .stages import CapturedModel, FrozenModel, LoweredModel, PreparedModel
from .static import calibrate, lower, prepare


@dataclass
class TrainingModel:
    """A model on its way through training.

    Attributes:
        prepared: the graph that trains, on the layers of ``tree``.
        tree: a copy of the model, whose modules, parameters and buffers keep their names.
        modes: the parts of the graph that depend on the training mode.
        norms: the batch normalizations, detached from the layers before them, by the paths of those layers.
        simulation: the modules that round.
    """

    prepared: PreparedModel
    tree: nn.Module
    modes: Modes
    norms: Mapping[str, nn.Module]
    simulation: Simulation

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingModel:
        """A copy of everything that training changes; the backend and the op rows are shared."""
        backend = self.prepared.options.backend
        memo.update({id(shared): shared for shared in (backend, *OPS.rows)})
        # Tensors that modules keep from their last call (pruned weights, attention maps) belong to its autograd graph.
        kept = (v for m in self.tree.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf)
        memo.update({id(tensor): tensor.detach().clone() for tensor in kept})
        tree, gm = copy.deepcopy(self.tree, memo), copy.deepcopy(self.prepared.gm, memo)
        of = dict(zip(self.prepared.gm.graph.nodes, gm.graph.nodes, strict=True))
        norms, simulation = copy.deepcopy((self.norms, self.simulation), memo)
        return TrainingModel(self.prepared.on_copy(gm, of), tree, with_nodes(self.modes, of), norms, simulation)


def prepare_training(model: nn.Module, options: Options, calibration: Iterable[Any], limit: int) -> TrainingModel:
    """Everything up to the first step of training. The model is not changed.

    Raises:
        CaptureError: forward() cannot be traced, or takes another path in training mode.
        ConfigError: the configuration asks for something that training does not do.
        ModelError, CalibrationError: see :func:`fxquant.prepare`.
    """
    tree = copy_model(model)
    norms: dict[str, nn.Module] = {}
    captured, modes = _capture(model, tree, replace(options, config=_for_training(options.config)), norms)
    sample, batches = sampled(calibration, captured.signature, limit)
    with modes_kept(tree):
        tree.eval()
        training = TrainingModel(prepare(captured, sample), tree, modes, norms, Simulation())
        _attach_layers(training)
        with _fresh_norms_by_batch(tree):
            calibrate(training.prepared, batches)
        _place_fake_quants(training)
    return training


def _capture(
    model: nn.Module, tree: nn.Module, options: Options, norms: dict[str, nn.Module]
) -> tuple[CapturedModel, Modes]:
    """Capture ``tree``, a copy of ``model``, in both modes and simplify; normalizations go to ``norms``."""
    with stage("capture"):
        both = capture_modes(tree, options.leaf_modules)
        modes = find_modes(both, tree)
    captured = CapturedModel(both.module, options, options.new_runner(), model_bytes(model))
    captured = simplify(captured, FoldBatchNorm(detached=norms), EliminateNoops(keep=modes.dropouts))
    modes.take_out(captured.gm)
    return captured, modes


def _for_training(config: QuantConfig) -> QuantConfig:
    """``config`` without the passes that change parameters: a checkpoint must keep their values."""
    for each in (config, *(c for c in config.overrides.values() if isinstance(c, QuantConfig))):
        for name in SWITCHES:
            if getattr(each, name) is True:
                raise ConfigError(
                    f"QuantConfig.{name}=True is for scheme 'static': training finds weights that tolerate rounding by "
                    "itself. Leave it at 'auto'."
                )
        if each.rounding == "learned":
            raise ConfigError("QuantConfig.rounding='learned' is for scheme 'static': training itself learns it.")
    off: dict[str, Any] = dict.fromkeys(SWITCHES, False)
    overrides = {k: replace(c, **off) if isinstance(c, QuantConfig) else c for k, c in config.overrides.items()}
    return replace(config, overrides=overrides, **off)


@contextlib.contextmanager
def _fresh_norms_by_batch(tree: nn.Module) -> Iterator[None]:
    """Within it, normalizations that have seen no batch yet use the statistics of each batch.

    Their initial statistics say nothing about the ranges in training.
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


def _attach_layers(training: TrainingModel) -> None:
    prepared = training.prepared
    if any(isinstance(module, ProjectedAttention) for module in prepared.gm.modules()):
        raise ConfigError(
            "An override asks for int8 or fp16 weights in an nn.MultiheadAttention. Scheme 'qat' would have to replace "
            "it, and its parameters would lose their names. Leave it in fp32 here."
        )
    prepared.runner.run(AttachLayers(prepared.assignment, training.norms, training.simulation), prepared.gm)


def _place_fake_quants(training: TrainingModel) -> None:
    """Fake-quants take the place of the observers of the calibrated graph; dropout comes back."""
    prepared = training.prepared
    gm, runner, assignment = prepared.gm, prepared.runner, prepared.assignment
    runner.run(ChooseRanges(assignment, prepared.sample), gm)
    runner.run(PlaceFakeQuants(assignment, training.simulation), gm)
    training.modes.put_back(gm)


def convert_training(training: TrainingModel) -> LoweredModel:
    """From a trained graph in eval mode, which is used up, to a verified, lowered one."""
    prepared = training.prepared
    gm, runner, assignment = prepared.gm, prepared.runner, prepared.assignment
    training.modes.settle(gm)
    settle = SettleTraining(training.simulation)
    runner.run(settle, gm)
    exact = copy_graph(gm)
    runner.run(Freeze(assignment, settle.weights), gm)
    return lower(prepared.as_stage(FrozenModel, exact=exact, keep_roundings=True))
