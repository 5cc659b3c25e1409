"""The second front end: ``torch.export``, for a forward() that ``torch.fx`` cannot trace.

It runs forward() on an example whose sizes are symbols, so that Python may compute with sizes and decide by them. What
it decided becomes part of the :class:`Interface`: the calls that the graph holds for.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from ..core.errors import CaptureError
from ..execution.graphs import ModelGraph
from ..execution.interface import ANY_SIZE, Interface, Leaf, kind_of
from ..execution.sample import Batch
from .aten import CHECKS, does_nothing, name_of, spelled
from .exporting import exporting
from .graph_checks import computes_the_same, same_sizes, with_size_one
from .tracer import tracing

_INLINED = ("wrap_with_set_grad_enabled", "wrap_with_autocast")  # blocks of no_grad() and autocast(enabled=False)


def export(model: nn.Module, batch: Batch) -> tuple[fx.GraphModule, Interface]:
    """The graph of ``model`` on ``batch``, in the spelling of users, and the calls that it holds for.

    Args:
        model: a copy for inference.
        batch: arguments of forward().

    Raises:
        CaptureError: ``torch.export`` refuses the model, or forward() changes a buffer or an input, or the graph does
            not compute the same.
    """
    inputs = _by_name(model, batch)
    program = _exported(model, _doubled(inputs))
    _refuse_changes(program)
    converter = Converter(program, model, inputs)
    gm = converter.converted()
    kinds = {name: kind_of(value) for name, value in inputs.items() if isinstance(value, list | tuple | Mapping)}
    interface = Interface(tuple(converter.leaves), {}, program.call_spec.out_spec, kinds)
    if not computes_the_same(gm, model, interface, ((), inputs)):
        raise CaptureError(f"torch.export does not capture what {type(model).__name__} computes.")
    return gm, replace(interface, ranges=_ranges(program, gm, model, interface, inputs))


def _by_name(model: nn.Module, batch: Batch) -> dict[str, Any]:
    bound = inspect.signature(model.forward).bind(*batch[0], **batch[1])
    inputs: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = inspect.signature(model.forward).parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise CaptureError(f"forward(*{name}) cannot be captured: give its inputs names.")
        inputs |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return inputs


def _doubled(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch of one as a batch of two: ``torch.export`` takes a size of one for a constant."""
    tensors = [v for v in pytree.tree_leaves(inputs) if isinstance(v, Tensor)]
    if any(v.dim() == 0 or v.shape[0] != 1 for v in tensors):
        return inputs
    return pytree.tree_map(lambda v: torch.cat([v, v]) if isinstance(v, Tensor) else v, inputs)


def _exported(model: nn.Module, inputs: dict[str, Any]) -> Any:
    def sizes(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        # Conditions on the height and width of images take minutes to solve in some models.
        axes = range(value.dim()) if value.dim() < 4 else range(1)
        return dict.fromkeys(axes, torch.export.Dim.AUTO)

    def run() -> Any:
        dynamic = pytree.tree_map(sizes, inputs)
        program = torch.export.export(model, (), inputs, dynamic_shapes=dynamic, strict=False)
        return program.run_decompositions({})  # without in-place ops, and with layers whole

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with tracing:
                return exporting(run)
        except Exception as error:
            text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise CaptureError(f"torch.export cannot capture {type(model).__name__}: {text}") from error


def _refuse_changes(program: Any) -> None:
    for output in program.graph_signature.output_specs:
        if output.kind is OutputKind.BUFFER_MUTATION:
            raise CaptureError(f"forward() changes the buffer '{output.target}', and a compiled model keeps no state.")
        if output.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(f"forward() changes its input '{output.target}'.")


def _ranges(
    program: Any, gm: fx.GraphModule, model: nn.Module, interface: Interface, inputs: Mapping[str, Any]
) -> dict[Any, tuple[int, int]]:
    # torch.export assumes that no size is 0 or 1. Most models compute the same for 1.
    ones = [
        symbols
        for symbols in same_sizes(interface, inputs)
        if computes_the_same(gm, model, interface, ((), with_size_one(interface, inputs, symbols)))
    ]
    found = {}
    for symbol, values in program.range_constraints.items():
        least = int(values.lower) if values.lower.is_Integer else 0
        if least <= 2:
            least = 1 if any(symbol in symbols for symbols in ones) else 2
        found[symbol] = least, int(values.upper) if values.upper.is_Integer else ANY_SIZE
    return found


class Converter:
    """Makes a graph over the model's own parameters from an exported program."""

    def __init__(self, program: Any, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        self.program, self.model, self.inputs = program, model, inputs
        self.graph, self.new = fx.Graph(), dict[fx.Node, Any]()
        self.leaves: list[Leaf] = []
        self.tops: dict[str, fx.Node] = {}

    def converted(self) -> fx.GraphModule:
        """The graph."""
        signature, graph = self.program.graph_signature, self.program.graph
        parameters = inspect.signature(self.model.forward).parameters
        for name in self.inputs:  # with the default of forward(): a call may leave out what calibration gave
            default = parameters[name].default if name in parameters else inspect.Parameter.empty
            plain = isinstance(default, bool | int | float | str | None)
            self.tops[name] = self.graph.placeholder(name, default_value=default if plain else inspect.Parameter.empty)
        paths = iter(pytree.tree_flatten_with_path(dict(self.inputs))[0])
        placeholders = {n.name: n for n in graph.nodes if n.op == "placeholder"}
        for spec in signature.input_specs:
            node = placeholders[spec.arg.name]
            if spec.kind is InputKind.USER_INPUT:
                self.new[node] = self._input(node, *next(paths))
            else:
                self.new[node] = self._constant(spec)
        for node in graph.nodes:
            if node.op not in ("placeholder", "output"):
                self._convert(node, self.program.graph_module)
        (outputs,) = (n.args[0] for n in graph.nodes if n.op == "output")
        self.graph.output(tuple(self._moved(value) for value in outputs))
        gm = ModelGraph(self.model, self.graph, type(self.model).__name__)
        gm.graph.eliminate_dead_code()
        return gm

    def _input(self, node: fx.Node, path: Any, value: Any) -> Any:
        name, rest = path[0].key, tuple(path[1:])
        if not isinstance(value, Tensor):
            self.leaves.append(Leaf(name, rest, None, value))
            return value
        self.leaves.append(Leaf(name, rest, tuple(map(_size, node.meta["val"].shape))))
        part = self.tops[name]
        for key in rest:
            if isinstance(key, pytree.GetAttrKey):
                part = self.graph.call_function(getattr, (part, key.name))
            else:
                index = key.idx if isinstance(key, pytree.SequenceKey) else key.key
                part = self.graph.call_method("__getitem__", (part, index))
        return part

    def _constant(self, spec: Any) -> fx.Node:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and _has(self.model, spec.target):
            return self.graph.get_attr(spec.target)
        name = f"_constant_{spec.arg.name}"
        value = {**self.program.constants, **self.program.state_dict}[spec.target]
        self.model.register_buffer(name, value, persistent=False)
        return self.graph.get_attr(name)

    def _convert(self, node: fx.Node, owner: nn.Module) -> None:
        if node.op == "get_attr":
            return  # a block, taken where it is called
        if getattr(node.target, "__name__", "") in _INLINED or str(node.target) in _INLINED:
            self._inline(node, owner)
        elif name_of(node.target) in CHECKS:
            return
        elif does_nothing(node):
            self.new[node] = self._moved(node.args[0])
        else:
            op, target, args, kwargs = spelled(node, self._moved(node.args), dict(self._moved(node.kwargs)))
            made = self.graph.create_node(op, target, args, kwargs, name=node.name)
            for key in ("stack_trace", "nn_module_stack"):
                if key in node.meta:
                    made.meta[key] = node.meta[key]
            self.new[node] = made

    def _inline(self, node: fx.Node, owner: nn.Module) -> None:
        (place, block), *_ = [(i, a) for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr"]
        if "autocast" in str(node.target) and node.args[2]:
            raise CaptureError("forward() turns autocast on. Quantize the model without it.")
        inner: Any = owner.get_submodule(str(block.target))
        given = iter(node.args[place + 1 :])
        for part in inner.graph.nodes:
            if part.op == "placeholder":
                self.new[part] = self._moved(next(given))
            elif part.op == "output":
                self.new[node] = self._moved(part.args[0])
            else:
                self._convert(part, inner)

    def _moved(self, value: Any) -> Any:
        """``value`` over nodes of the new graph."""
        if isinstance(value, list | tuple):
            return (list if isinstance(value, list) else tuple)(map(self._moved, value))
        if isinstance(value, dict):
            return {k: self._moved(v) for k, v in value.items()}
        return self.new[value] if isinstance(value, fx.Node) else value


def _size(size: Any) -> Any:
    expression = size if isinstance(size, int) else size.node.expr
    return int(expression) if getattr(expression, "is_Integer", True) else expression


def _has(model: nn.Module, path: str) -> bool:
    owner, _, leaf = path.rpartition(".")
    try:
        return isinstance(getattr(model.get_submodule(owner), leaf, None), Tensor)
    except AttributeError:
        return False
