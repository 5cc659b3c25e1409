"""Recurrent cells: one step, whose input and state are quantized at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....base.dynamic_layer import DynamicLayer
from ....base.dynamic_spec import DynamicSpec
from ...runtime.engine import FBGEMM
from .linear import packed_linear
from .recurrent import State, map_state

Q = torch.ops.quantized


class DynamicCell(DynamicLayer):
    """``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell``: takes (batch, in) or (in,) and a state, returns the state."""

    hidden_size: int

    def __init__(self, spec: DynamicSpec) -> None:
        kind = spec.op.removesuffix("cell")
        if kind == "rnn":
            kind = f"rnn_{spec.layer.nonlinearity}"
        super().__init__(spec, f"quantized::quantized_{kind}_cell_dynamic ({FBGEMM})")
        self.is_lstm = kind == "lstm"
        # The kernel adds the biases in the packed matrices, but wants them as arguments, too.
        biases = [self._bias(spec, part) for part in ("ih", "hh")]
        matrices = [packed_linear(spec.weights[f"weight_{p}"], b) for p, b in zip(("ih", "hh"), biases, strict=True)]
        self.parts = (*matrices, *biases)
        self._op = getattr(Q, f"quantized_{kind}_cell_dynamic").default._op

    @staticmethod
    def _bias(spec: DynamicSpec, part: str) -> Tensor:
        given = spec.vector(f"bias_{part}")
        return torch.zeros(spec.layer.get_parameter(f"weight_{part}").shape[0]) if given is None else given

    def forward(self, input: Tensor, hx: State | None = None) -> Any:
        if input.dim() == 1:
            state = hx if hx is None else map_state(hx, lambda t: t[None])
            return map_state(self.forward(input[None], state), lambda t: t[0])
        if hx is None:
            zeros = input.new_zeros(input.shape[0], self.hidden_size)
            hx = (zeros, zeros) if self.is_lstm else zeros
        return self._op(input, list(hx) if self.is_lstm else hx, *self.parts)
