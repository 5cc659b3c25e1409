"""LSTM, GRU, RNN and their cells: the product of all inputs at once, then a loop over the time steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from ...base.dynamic_spec import DynamicSpec
from .builder import Builder
from .lazy import bounded, constant_form, read_form
from .row_products import Matrix, row_operand
from .steps import ElementwiseStep, Loop
from .storage import Storage
from .terms import Apply, Form
from .values import Value

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@dataclass(frozen=True)
class Direction:
    """One direction of one layer.

    Attributes:
        suffix: of its parameters.
        place: where its channels begin in the output of the layer.
        reverse: from the last time step to the first.
    """

    suffix: str
    place: int
    reverse: bool


class Recurrence:
    """The steps of a recurrent layer.

    Args:
        value: the input [time, batch, channels], fp32.
        mask: fp32 [time, batch, 1], 0 where a sequence has ended and its state stays as it is; None: 1 everywhere.
    """

    def __init__(
        self, builder: Builder, node: fx.Node, spec: DynamicSpec, value: Value, mask: Value | None = None
    ) -> None:
        self.builder, self.node, self.spec = builder, node, spec
        layer: Any = spec.layer
        self.layer = layer
        self.kind = spec.op.removesuffix("cell")
        self.sequence, self.mask = value, mask
        self.time, self.batch = value.shape[:2]
        self.size: int = layer.hidden_size
        self.channels: int = getattr(layer, "proj_size", 0) or self.size  # of the output
        self.ends: list[list[Value]] = []

    def run(self, states: Sequence[Value]) -> Value:
        """Add the steps of all layers. Returns the output [time, batch, channels].

        Args:
            states: the initial ones, each [layers and directions, batch, channels]; none: zeros.
        """
        if self.spec.op.endswith("cell"):
            self._layer([Direction("", 0, False)], states)
            return self.sequence
        for number in range(self.layer.num_layers):
            directions = [Direction(f"_l{number}", 0, False)]
            if self.layer.bidirectional:
                directions.append(Direction(f"_l{number}_reverse", self.channels, True))
            self._layer(directions, states)
        return self.sequence

    def _memory(self, *shape: int) -> Value:
        return Value.of(Storage("f32", shape, tuple(range(len(shape))), dense=True))

    def _store(self, form: Form, target: Value) -> Value:
        self.builder.add(ElementwiseStep(self.node, form, target))
        return target

    def _layer(self, directions: Sequence[Direction], states: Sequence[Value]) -> None:
        inputs = [Matrix.of(self.builder, self.spec, f"weight_ih{d.suffix}") for d in directions]
        operand = row_operand(self.builder, self.node, self.sequence, inputs)
        # A row before the first time step and one after the last hold the initial states of both directions.
        joined = self._memory(self.time + 2, self.batch, self.channels * len(directions))
        for direction, matrix in zip(directions, inputs, strict=True):
            gates = self._memory(self.time, self.batch, matrix.weight.shape[0])
            form = operand.product(matrix, self._input_bias(direction))
            self._add(operand.steps(self.builder, self.node, matrix, form, gates))
            self._direction(direction, gates, joined.narrowed(2, direction.place, self.channels), states)
        self.sequence = joined.narrowed(0, 1, self.time)

    def _bias(self, name: str) -> Tensor | float:
        bias = self.spec.vector(name)
        return 0.0 if bias is None else bias.double()

    def _input_bias(self, direction: Direction) -> Tensor | float:
        """The bias that is added before the loop. That of the states of a GRU is gated with them."""
        own = self._bias(f"bias_ih{direction.suffix}")
        return own if self.kind == "gru" else own + self._bias(f"bias_hh{direction.suffix}")

    def _direction(self, direction: Direction, gates: Value, outputs: Value, states: Sequence[Value]) -> None:
        """The loop over the time steps; ``outputs`` [time + 2, batch, channels] hold the states."""
        first, step = (self.time + 1, -1) if direction.reverse else (0, 1)
        begin, last = (self.time - 1, 1) if direction.reverse else (0, self.time)
        number = len(self.ends)
        given = [read_form(s.narrowed(0, number, 1).without(0)) for s in states]
        initial = given or [constant_form(0.0)] * 2
        self._store(initial[0], outputs.narrowed(0, first, 1).without(0))
        before, after = (outputs.narrowed(0, at, 1).at_round(0, step) for at in (first, first + step))
        now = gates.narrowed(0, begin, 1).at_round(0, step)
        mask = None if self.mask is None else self.mask.narrowed(0, begin, 1).at_round(0, step)
        cells = self._cells(initial[1]) if self.kind == "lstm" else None
        self.builder.loop = Loop(self.time)
        try:
            self._round(direction, now, before, after, cells, mask)
        finally:
            self.builder.loop = None
        ends = [outputs.narrowed(0, last, 1).without(0)]
        self.ends.append(ends if cells is None else [*ends, cells.narrowed(0, self.time, 1).without(0)])

    def _cells(self, initial: Form) -> Value:
        """Memory for the cells of an LSTM, those before the first time step included.

        Not one cell in place: a kernel may compute the elements at the end of an axis twice.
        """
        cells = self._memory(self.time + 1, self.batch, self.size)
        self._store(initial, cells.narrowed(0, 0, 1).without(0))
        return cells

    def _round(
        self, direction: Direction, now: Value, before: Value, after: Value, cells: Value | None, mask: Value | None
    ) -> None:
        """One time step: from the state ``before`` and what the input gives ``now`` to the state ``after``."""
        matrix = Matrix.of(self.builder, self.spec, f"weight_hh{direction.suffix}")
        operand = row_operand(self.builder, self.node, before, [matrix])
        bias = self._bias(f"bias_hh{direction.suffix}") if self.kind == "gru" else 0.0
        form = operand.product(matrix, bias)
        if self.kind == "rnn":
            total = form.plus(read_form(now))
            form = _apply("tanh", total) if self.layer.nonlinearity == "tanh" else bounded(total, 0.0, float("inf"))
            self._add(operand.steps(self.builder, self.node, matrix, _masked(form, before, mask), after))
            return
        if self.kind == "lstm":
            form = form.plus(read_form(now))
        products = self._memory(self.batch, matrix.weight.shape[0])
        self._add(operand.steps(self.builder, self.node, matrix, form, products))
        gates = self._gates(products)
        if cells is None:
            self._store(_masked(_gru(self._gates(now), gates, read_form(before)), before, mask), after)
            return
        old, cell = (cells.narrowed(0, i, 1).at_round(0) for i in range(2))
        enter, forget, new, leave = gates
        kept = _product(_apply("sigmoid", forget), read_form(old))
        self._store(_masked(kept.plus(_product(_apply("sigmoid", enter), _apply("tanh", new))), old, mask), cell)
        form = _product(_apply("sigmoid", leave), _apply("tanh", read_form(cell)))
        self._lstm_output(direction, form, before, after, mask)

    def _gates(self, sums: Value) -> list[Form]:
        return [read_form(sums.narrowed(1, i * self.size, self.size)) for i in range(GATES[self.kind])]

    def _lstm_output(self, direction: Direction, form: Form, before: Value, after: Value, mask: Value | None) -> None:
        """The state of an LSTM, projected if the layer has projections."""
        if self.channels == self.size:
            self._store(_masked(form, before, mask), after)
            return
        hidden = self._store(form, self._memory(self.batch, self.size))
        matrix = Matrix.of(self.builder, self.spec, f"weight_hr{direction.suffix}")
        operand = row_operand(self.builder, self.node, hidden, [matrix])
        form = _masked(operand.product(matrix), before, mask)
        self._add(operand.steps(self.builder, self.node, matrix, form, after))

    def _add(self, steps: Sequence[Any]) -> None:
        for step in steps:
            self.builder.add(step)

    def states(self, which: int) -> Value:
        """The final states, [layers and directions, batch, channels]."""
        joined = self._memory(len(self.ends), self.batch, self.ends[0][which].shape[-1])
        for number, ends in enumerate(self.ends):
            self._store(read_form(ends[which]), joined.narrowed(0, number, 1).without(0))
        return joined


def _gru(inputs: Sequence[Form], states: Sequence[Form], before: Form) -> Form:
    """The state of a GRU, from what the input and the state before give to its gates."""
    reset, update = (_apply("sigmoid", inputs[i].plus(states[i])) for i in range(2))
    new = _apply("tanh", inputs[2].plus(_product(reset, states[2])))
    return new.plus(_product(update, before.plus(new, -1.0)))


def _masked(new: Form, old: Value, mask: Value | None) -> Form:
    """``new`` where the mask is 1, and ``old`` where it is 0."""
    if mask is None:
        return new
    before = read_form(old)
    return before.plus(_product(new.plus(before, -1.0), read_form(mask)))


def _apply(function: str, form: Form) -> Form:
    return Form.of(Apply(function, (form,)))


def _product(left: Form, right: Form) -> Form:
    return Form.of(Apply("mul", (left, right)))
