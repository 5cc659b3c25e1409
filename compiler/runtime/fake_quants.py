"""The fake-quants of a model, as one module of the trained model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...passes.training.fake_quants import Simulation, add_as
from ...passes.training.weight_fake_quantize import WeightFakeQuantize
from ..core.markers import Quantized
from ..numerics.fake_quantize import FakeQuantize

OURS = "fake_quants"
NEVER = -1


class FakeQuants(nn.Module, Quantized):
    """The fake-quants of a model, and the progress of its training: all state that is not the model's own.

    Attributes:
        steps: number of forward passes in training.
        freeze_observers_at, freeze_batchnorm_at: the step from which on they are frozen; -1: never.
        observers_frozen: whether the observers are frozen.
    """

    steps: Tensor
    freeze_observers_at: Tensor
    freeze_batchnorm_at: Tensor
    observers_frozen: Tensor

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        for path, fake_quant in simulation.activations.items():
            if path not in simulation.known:
                add_as(self, path.replace(".", "_"), fake_quant)
        for path, layer in simulation.layers.items():
            if layer.rounds is not None:
                add_as(self, f"{path.replace('.', '_')}_weight", layer.rounds)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("freeze_observers_at", torch.tensor(NEVER))
        self.register_buffer("freeze_batchnorm_at", torch.tensor(NEVER))
        self.register_buffer("observers_frozen", torch.tensor(0))
        self.register_load_state_dict_post_hook(_thaw_or_freeze)

    def extra_repr(self) -> str:
        frozen = {"scales": self.due(self.freeze_observers_at), "statistics": self.due(self.freeze_batchnorm_at)}
        return f"step {int(self.steps)}" + "".join(f", {what} frozen" for what, due in frozen.items() if due)

    def due(self, at: Tensor) -> bool:
        """Whether step ``at`` has come."""
        return NEVER < int(at) <= int(self.steps)


def _thaw_or_freeze(fake_quants: FakeQuants, incompatible: Any) -> None:
    for each in fake_quants.children():
        assert isinstance(each, FakeQuantize | WeightFakeQuantize)
        each.frozen = bool(fake_quants.observers_frozen)
