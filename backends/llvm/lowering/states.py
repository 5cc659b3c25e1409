"""Recurrent layers return their states in tuples: read them one by one, also where a program passes them on whole."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from ...base.dynamic_layer import spec_of
from ...ops.table import OPS

PAIRS = ("lstm", "gru", "rnn", "lstmcell")  # ops that return two values
LSTM = ("lstm",)  # whose second value is a pair, too


def split_states(gm: fx.GraphModule) -> int:
    """Replace each tuple that is read as a whole by one of its values. Returns how many are."""
    modules = dict(gm.named_modules())
    count = 0
    for node in list(gm.graph.nodes):
        op = _op(modules.get(str(node.target))) if node.op == "call_module" else None
        if op not in PAIRS:
            continue
        _count_from_start(node)
        if op in LSTM:
            for user in list(node.users):
                if _picks(user) and user.args[1] == 1:
                    _count_from_start(user)
                    count += _split(user)
        count += _split(node, nested=op in LSTM)
    gm.graph.lint()
    gm.recompile()
    return count


def _count_from_start(pair: fx.Node) -> None:
    """Let the readers of a pair pick its values by 0 and 1."""
    for user in list(pair.users):
        if _picks(user) and user.args[1] in (-1, -2):
            user.args = (pair, int(user.args[1]) + 2)  # type: ignore[arg-type]


def _op(layer: nn.Module | None) -> str | None:
    spec, row = spec_of(layer), OPS.find(type(layer))
    return spec.op if spec is not None else row.name if row is not None else None


def _split(node: fx.Node, nested: bool = False) -> bool:
    """Let the readers of a pair read its values.

    Args:
        nested: the second value is a pair.
    """
    whole = [user for user in node.users if not _picks(user)]
    if not whole:
        return False
    first, second = _values(node)
    pair: Any = (first, _values(second) if nested else second)
    for user in whole:
        args: Any = map_arg((user.args, user.kwargs), lambda n: pair if n is node else n)
        user.args, user.kwargs = args
    return True


def _values(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    values = []
    for index in (1, 0):  # each is inserted right after the pair
        with node.graph.inserting_after(node):
            values.append(node.graph.call_function(operator.getitem, (node, index)))
    return values[1], values[0]


def _picks(user: fx.Node) -> bool:
    return user.target is operator.getitem and isinstance(user.args[1], int)
