"""Recurrent layers whose inputs and states are quantized at run time, step by step.

torch's ``quantized_lstm`` and ``quantized_gru`` spend as much time between the matrix products as in them. Here the
gates are ordered so that those with the same activation are side by side, and the products of all inputs are one
product.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ....base.dynamic_layer import DynamicLayer
from ....base.dynamic_spec import DynamicSpec
from ....base.weights import IntegerWeight
from ...runtime.engine import FBGEMM
from ...runtime.script import script
from .linear import packed_linear
from .steps import gru_steps, lstm_steps

State = Tensor | tuple[Tensor, Tensor]
GATES = {"lstm": (0, 1, 3, 2), "gru": (0, 1, 2)}  # torch's order of LSTM gates is i, f, g, o; sigmoids come first


def refuse_projections(module: nn.Module) -> str | None:
    """Why a recurrent layer has no int8 form."""
    return "no kernel for LSTMs with projections (proj_size)" if getattr(module, "proj_size", 0) else None


class DynamicRecurrent(DynamicLayer):
    """``nn.LSTM`` or ``nn.GRU``, with the same inputs and outputs: batched or not, packed sequences, initial states."""

    input_size: int
    hidden_size: int
    num_layers: int

    def __init__(self, spec: DynamicSpec) -> None:
        name = spec.op
        half = spec.dtype == torch.float16
        super().__init__(spec, f"{name} steps over quantized::linear_dynamic{'_fp16' * half} ({FBGEMM})")
        self.is_lstm = name == "lstm"
        steps = lstm_steps if self.is_lstm else gru_steps
        try:
            # A third of the time that Python takes between the kernels.
            self._steps: Any = script(steps)
        except Exception:  # a future torch may have no TorchScript
            self._steps = steps
        order = torch.cat([torch.arange(self.hidden_size) + g * self.hidden_size for g in GATES[name]])
        self.directions = ("", "_reverse") if self.bidirectional else ("",)
        suffixes = [f"_l{i}{direction}" for i in range(self.num_layers) for direction in self.directions]
        self.inputs = [_packed(spec, "ih", suffix, order) for suffix in suffixes]
        self.states = [_packed(spec, "hh", suffix, order) for suffix in suffixes]

    def forward(self, input: Tensor | PackedSequence, hx: State | None = None) -> Any:
        if isinstance(input, PackedSequence):
            return self._packed_sequence(input, hx)
        if input.dim() == 2:
            axis = 0 if self.batch_first else 1
            state = hx if hx is None else map_state(hx, lambda t: t.unsqueeze(1))
            output, last = self.forward(input.unsqueeze(axis), state)
            return output.squeeze(axis), map_state(last, lambda t: t.squeeze(1))
        steps = input.transpose(0, 1) if self.batch_first else input
        length, batch = steps.shape[0], steps.shape[1]
        output, last = self._run(steps.flatten(0, 1), [batch] * length, self._state(input, hx, batch))
        output = output.unflatten(0, (length, batch))
        return output.transpose(0, 1) if self.batch_first else output, last

    def flatten_parameters(self) -> None:
        """Nothing: the weights are packed."""

    def _packed_sequence(self, packed: PackedSequence, hx: State | None) -> Any:
        data, sizes, order, unsorted = packed
        if hx is not None and order is not None:
            hx = map_state(hx, lambda t: t.index_select(1, order))
        counts = sizes.tolist()
        output, last = self._run(data, counts, self._state(data, hx, counts[0]))
        if unsorted is not None:
            last = map_state(last, lambda t: t.index_select(1, unsorted))
        return PackedSequence(output, sizes, order, unsorted), last

    def _state(self, input: Tensor, hx: State | None, batch: int) -> State:
        """The initial state, or zeros. Its size is checked here, as the kernels do not check it."""
        if input.shape[-1] != self.input_size:
            raise RuntimeError(f"input.size(-1) must be input_size, {self.input_size}; got {input.shape[-1]}.")
        shape = (self.num_layers * len(self.directions), batch, self.hidden_size)
        if hx is None:
            zeros = input.new_zeros(shape)
            return (zeros, zeros) if self.is_lstm else zeros
        for part in hx if self.is_lstm else (hx,):
            if part.shape != shape:  # type: ignore[union-attr]
                raise RuntimeError(f"The initial state must be {shape}; got {tuple(part.shape)}.")  # type: ignore[union-attr]
        return hx

    def _run(self, data: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        """All layers over the steps in ``data``, which are one after the other, with ``sizes`` rows each."""
        first, *more = state if self.is_lstm else (state,)
        ends: list[tuple[Tensor, ...]] = []
        for i in range(self.num_layers):
            outputs = []
            for reverse in range(len(self.directions)):
                k = i * len(self.directions) + reverse
                begin = [t[k] for t in (first, *more)]
                parts = (self.inputs[k], self.states[k], self.is_half)
                output, *end = self._steps(data, sizes, *parts, *begin, bool(reverse))
                outputs.append(output)
                ends.append(tuple(end))
            data = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        stacked = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
        return data, stacked if self.is_lstm else stacked[0]  # type: ignore[return-value]


def _packed(spec: DynamicSpec, part: str, suffix: str, order: Tensor) -> Any:
    """One packed matrix and its bias, with the gates in ``order``. Of an LSTM, the input matrix adds both biases."""
    weight = spec.weights[f"weight_{part}{suffix}"]
    if isinstance(weight, IntegerWeight):
        per_gate = [t if t.numel() == 1 else t[order] for t in (weight.scale, weight.zero_point)]
        weight = replace(weight, integers=weight.integers[order], scale=per_gate[0], zero_point=per_gate[1])
    else:
        weight = weight[order]
    bias = spec.vector(f"bias_{part}{suffix}")
    if bias is not None and spec.op == "lstm":
        bias = None if part == "hh" else bias + spec.vector(f"bias_hh{suffix}")  # type: ignore[operator]
    return packed_linear(weight, None if bias is None else bias[order])


def map_state(state: Any, change: Any) -> Any:
    """``change`` of a state, or of both states of an LSTM."""
    return tuple(change(t) for t in state) if isinstance(state, tuple | list) else change(state)
