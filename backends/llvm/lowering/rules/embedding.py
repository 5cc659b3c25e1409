"""Embeddings, and bags of them."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, fx

from ....base.dynamic_spec import DynamicSpec
from ..builder import Builder
from ..gather import GatherStep, Table, check_indices, has_equal_bags, table_of
from ..steps import TorchStep
from ..storage import Storage
from ..terms import Form, Total
from ..values import Value


def embedding(builder: Builder, node: fx.Node, spec: DynamicSpec) -> bool:
    """The rows of indices of any shape."""
    return _gather(builder, node, spec, "one", -1)


def embedding_bag(builder: Builder, node: fx.Node, spec: DynamicSpec) -> bool:
    """Sums or means of the rows of bags of one size: indices [bags, size]."""
    layer: Any = spec.layer
    info = builder.infos.get(node.args[0]) if node.args else None  # type: ignore[arg-type]
    if layer.mode == "max" or info is None or not has_equal_bags(layer, len(info.shape)):
        return False
    padding = -1 if layer.padding_idx is None else int(layer.padding_idx)
    return _gather(builder, node, spec, layer.mode, padding)


def _gather(
    builder: Builder, node: fx.Node, spec: DynamicSpec, mode: Literal["one", "sum", "mean"], padding: int
) -> bool:
    if len(node.args) != 1 or node.kwargs or getattr(spec.layer, "max_norm", None):
        return False
    argument: Any = node.args[0]
    if not isinstance(argument, fx.Node) or argument not in builder.infos or not builder.infos[argument].shape:
        return False
    weight = spec.weights["weight"]
    table: Table = builder.store.read((id(weight), "table"), lambda: table_of(weight, builder.store.placed))
    shape = builder.infos[node].shape
    target = Value.of(Storage("f32", shape, tuple(range(len(shape))), dense=True))
    builder.add(
        GatherStep(node, Form.of(Total()), target, indices=_indices(builder, argument, table.count), table=table,
                   mode=mode, padding=padding), node,
    )  # fmt: skip
    builder.set_value(node, target)
    return True


def _indices(builder: Builder, node: fx.Node, count: int) -> Value:
    """Indices as a kernel reads them, which are checked before each run."""
    given = builder.integers.get(node)
    if given is None:
        shape = builder.infos[node].shape
        given = Value.of(Storage("i64", shape, tuple(range(len(shape))), dense=True))
        constant = builder.constant(node) if node.op == "get_attr" else None

        def copied(value_of: Any) -> Tensor:
            return check_indices(value_of(node) if constant is None else constant, count)

        builder.add(TorchStep(None, {}, given, copied))
        return given
    builder.add(TorchStep(None, {}, None, lambda value_of: check_indices(value_of(node), count)))
    return given
