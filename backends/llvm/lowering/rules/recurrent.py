"""Recurrent layers and cells."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx

from ....base.dynamic_spec import DynamicSpec
from ..builder import Builder
from ..recurrence import Recurrence
from ..results import PaddedReference
from ..row_steps import LARGEST


def recurrent(builder: Builder, node: fx.Node, spec: DynamicSpec) -> bool:
    """nn.LSTM, nn.GRU and nn.RNN over a batch."""
    padded = isinstance(builder.modules.get(str(node.target)), PaddedReference)
    argument, *rest = node.args
    mask = rest.pop(0) if padded else None
    states = _given_states(rest) if not node.kwargs else None
    layer: Any = spec.layer
    read = [n for n in (argument, mask, *(states or ())) if n is not None]
    if states is None or not all(n in builder.lazy for n in read) or not _picked(node):
        return False
    if spec.op == "lstm" and not all(_picked(user) for user in node.users if user.args[1] == 1):
        return False
    shape = builder.infos[argument].shape  # type: ignore[index]
    if len(shape) != 3 or max(shape[2], layer.hidden_size) > LARGEST:
        return False
    value = builder.row_major(builder.float_value(argument), node)  # type: ignore[arg-type]
    value = value.permuted((1, 0, 2)) if layer.batch_first else value
    recurrence = Recurrence(builder, node, spec, value, builder.float_value(mask) if padded else None)  # type: ignore[arg-type]
    output = recurrence.run([builder.row_major(builder.float_value(n), node) for n in states])
    output = output.permuted((1, 0, 2)) if layer.batch_first else output
    ends: Any = None
    if any(user.args[1] == 1 for user in node.users):
        found = [(recurrence.states(i), 1.0, 0) for i in range(2 if spec.op == "lstm" else 1)]
        ends = found if spec.op == "lstm" else found[0]
    builder.pieces[node] = [(output, 1.0, 0), ends]
    return True


def cell(builder: Builder, node: fx.Node, spec: DynamicSpec) -> bool:
    """nn.LSTMCell, nn.GRUCell and nn.RNNCell over a batch."""
    argument, *rest = node.args
    states = _given_states(rest) if not node.kwargs else None
    if states is None or not all(n in builder.lazy for n in (argument, *states)):
        return False
    if len(builder.infos[argument].shape) != 2:  # type: ignore[index]
        return False
    is_lstm = spec.op == "lstmcell"
    if is_lstm and not _picked(node):
        return False
    value = builder.row_major(builder.float_value(argument), node)  # type: ignore[arg-type]
    recurrence = Recurrence(builder, node, spec, value.with_one(0))
    recurrence.run([builder.row_major(builder.float_value(n), node).with_one(0) for n in states])
    ends = [(end, 1.0, 0) for end in recurrence.ends[0]]
    if is_lstm:
        builder.pieces[node] = ends
    else:
        builder.set_value(node, *ends[0])
    return True


def _given_states(rest: Sequence[Any]) -> list[fx.Node] | None:
    """The initial states that a call gives; None if they are not known one by one."""
    if len(rest) > 1:
        return None
    given = rest[0] if rest else None
    parts = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    return parts if all(isinstance(p, fx.Node) for p in parts) else None


def _picked(node: fx.Node) -> bool:
    """Whether both results are read one by one."""
    return all(u.target is operator.getitem and u.args[1] in (0, 1) for u in node.users)
