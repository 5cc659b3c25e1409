"""Recurrent layers and cells whose inputs and states are quantized on the fly, step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...dynamic import DynamicLayer, Layer
from ..engine import FBGEMM
from .linear import packed_linear

Q = torch.ops.quantized
State = Tensor | tuple[Tensor, Tensor]


def refuse_recurrent(module: nn.Module) -> str | None:
    """Why a recurrent layer has no form here."""
    return "no kernel for LSTMs with projections (proj_size)" if getattr(module, "proj_size", 0) else None


def _packed(layer: Layer, suffix: str) -> tuple[Any, Any, Tensor, Tensor]:
    """The packed matrices of input and state, and their biases, which both the matrices and the kernel ask for."""
    biases = []
    for part in ("ih", "hh"):
        rows = layer.module.get_parameter(f"weight_{part}{suffix}").shape[0]
        given = layer.vector(f"bias_{part}{suffix}")
        biases.append(torch.zeros(rows) if given is None else given)
    inputs = packed_linear(layer.weights[f"weight_ih{suffix}"], biases[0])
    states = packed_linear(layer.weights[f"weight_hh{suffix}"], biases[1])
    return inputs, states, biases[0], biases[1]


class DynamicRecurrent(DynamicLayer):
    """``nn.LSTM`` or ``nn.GRU``: batched or not, packed sequences, initial states; as those take and give them."""

    def __init__(self, layer: Layer) -> None:
        module: Any = layer.module
        name, half = layer.rule.name, ", fp16" if layer.dtype == torch.float16 else ""
        super().__init__(layer, f"quantized_{name} ({FBGEMM}{half})")
        self.is_lstm = name == "lstm"
        self.input_size, self.hidden_size = module.input_size, module.hidden_size
        self.layers, self.bidirectional = module.num_layers, module.bidirectional
        self.batch_first = module.batch_first
        self._kernel_dtype = torch.qint8 if layer.dtype == torch.int8 else torch.float16
        self.cells = [
            self._cell(layer, f"_l{i}{direction}")
            for i in range(self.layers)
            for direction in (("", "_reverse") if self.bidirectional else ("",))
        ]

    @staticmethod
    def _cell(layer: Layer, suffix: str) -> Any:
        inputs, states, input_bias, state_bias = _packed(layer, suffix)
        if layer.dtype == torch.float16:
            return Q.make_quantized_cell_params_fp16(inputs, states)
        return Q.make_quantized_cell_params_dynamic(inputs, states, input_bias, state_bias, False)

    def forward(self, input: Tensor | PackedSequence, hx: State | None = None) -> Any:
        if isinstance(input, PackedSequence):
            return self._packed_sequence(input, hx)
        if input.dim() == 2:
            axis = 0 if self.batch_first else 1
            state = hx if hx is None else _each(hx, lambda t: t.unsqueeze(1))
            output, last = self.forward(input.unsqueeze(axis), state)
            return output.squeeze(axis), _each(last, lambda t: t.squeeze(1))
        batch = input.shape[0 if self.batch_first else 1]
        output, last = self._run((input,), self._state(input, hx, batch), (self.batch_first,))
        return output, last

    def _packed_sequence(self, packed: PackedSequence, hx: State | None) -> Any:
        data, sizes, order, unsorted = packed
        if hx is not None and order is not None:
            hx = _each(hx, lambda t: t.index_select(1, order))
        output, last = self._run((data, sizes), self._state(data, hx, int(sizes[0])), ())
        if unsorted is not None:
            last = _each(last, lambda t: t.index_select(1, unsorted))
        return PackedSequence(output, sizes, order, unsorted), last

    def _state(self, input: Tensor, hx: State | None, batch: int) -> State:
        """The initial state, zeros if none is given, checked: the kernels trust their sizes."""
        if input.shape[-1] != self.input_size:
            raise RuntimeError(f"input.size(-1) must be input_size, {self.input_size}; got {input.shape[-1]}.")
        shape = (self.layers * (1 + self.bidirectional), batch, self.hidden_size)
        if hx is None:
            zeros = input.new_zeros(shape)
            return (zeros, zeros) if self.is_lstm else zeros
        for part in hx if self.is_lstm else (hx,):
            if part.shape != shape:  # type: ignore[union-attr]
                raise RuntimeError(f"The initial state must be {shape}; got {tuple(part.shape)}.")  # type: ignore[union-attr]
        return _each(hx, torch.Tensor.contiguous)

    def _run(self, data: tuple[Tensor, ...], state: State, tail: tuple[bool, ...]) -> tuple[Tensor, State]:
        options = (self.cells, True, self.layers, 0.0, False, self.bidirectional, *tail)
        if self.is_lstm:
            output, h, c = torch.quantized_lstm(
                *data, list(state), *options, dtype=self._kernel_dtype, use_dynamic=True
            )
            return output, (h, c)
        output, h = torch.quantized_gru(*data, state, *options)
        return output, h


class DynamicCell(DynamicLayer):
    """``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell``: (batch, in) or (in,), and a state, to a state."""

    def __init__(self, layer: Layer) -> None:
        kind = layer.rule.name.removesuffix("cell")
        if kind == "rnn":
            kind = f"rnn_{layer.module.nonlinearity}"
        super().__init__(layer, f"quantized::quantized_{kind}_cell_dynamic ({FBGEMM})")
        self.is_lstm = kind == "lstm"
        self.hidden_size = int(layer.module.hidden_size)  # type: ignore[arg-type]
        self.parts = _packed(layer, "")
        self._op = getattr(Q, f"quantized_{kind}_cell_dynamic").default._op

    def forward(self, input: Tensor, hx: State | None = None) -> Any:
        if input.dim() == 1:
            state = hx if hx is None else _each(hx, lambda t: t[None])
            return _each(self.forward(input[None], state), lambda t: t[0])
        if hx is None:
            zeros = input.new_zeros(input.shape[0], self.hidden_size)
            hx = (zeros, zeros) if self.is_lstm else zeros
        return self._op(input, list(hx) if self.is_lstm else hx, *self.parts)


def _each(state: Any, change: Any) -> Any:
    """``change`` done to a state, or to both of an LSTM's."""
    return tuple(change(t) for t in state) if isinstance(state, tuple | list) else change(state)
