"""Recurrent cells: one step, its input and state quantized on the fly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...dynamic import DynamicLayer, Layer
from ..engine import FBGEMM
from .linear import packed_linear
from .recurrent import State, map_state

Q = torch.ops.quantized


class DynamicCell(DynamicLayer):
    """``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell``: (batch, in) or (in,), and a state, to a state."""

    hidden_size: int

    def __init__(self, layer: Layer) -> None:
        kind = layer.rule.name.removesuffix("cell")
        if kind == "rnn":
            kind = f"rnn_{layer.module.nonlinearity}"
        super().__init__(layer, f"quantized::quantized_{kind}_cell_dynamic ({FBGEMM})")
        self.is_lstm = kind == "lstm"
        # The kernel takes the biases beside the packed matrices as well, and adds those of the matrices.
        biases = [self._bias(layer, part) for part in ("ih", "hh")]
        matrices = [packed_linear(layer.weights[f"weight_{p}"], b) for p, b in zip(("ih", "hh"), biases, strict=True)]
        self.parts = (*matrices, *biases)
        self._op = getattr(Q, f"quantized_{kind}_cell_dynamic").default._op

    @staticmethod
    def _bias(layer: Layer, part: str) -> Tensor:
        given = layer.vector(f"bias_{part}")
        return torch.zeros(layer.module.get_parameter(f"weight_{part}").shape[0]) if given is None else given

    def forward(self, input: Tensor, hx: State | None = None) -> Any:
        if input.dim() == 1:
            state = hx if hx is None else map_state(hx, lambda t: t[None])
            return map_state(self.forward(input[None], state), lambda t: t[0])
        if hx is None:
            zeros = input.new_zeros(input.shape[0], self.hidden_size)
            hx = (zeros, zeros) if self.is_lstm else zeros
        return self._op(input, list(hx) if self.is_lstm else hx, *self.parts)
