"""Which channels of a graph must share a scale.

Every output channel of a layer gets a slot. A slot follows its channel through all ops that a positive scale commutes
with. Slots that are added must share a scale. A slot ends at the layers that read it; at any other op it is *pinned*.
Ops that move channels (concatenation, shuffle, flatten) need no code of their own: the op is run on the numbers of the
slots, and the result is read back.

The slots of a value are a tensor with as many axes as the value, of size 1 along the axes that make no difference.

The classes of slots that share a scale are the connected components of "is added to". A class that is not pinned can be
scaled by ``s``: divide the outputs of all its producers by ``s``, multiply the inputs of all its consumers by ``s``
(Nagel et al. 2019, arXiv:1906.04721, eq. 6, for one producer and one consumer).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ...backends.base.op import OpRow, Output
from ...backends.ops.table import OPS
from ...backends.ops.units import tensor_inputs
from ...compiler.execution.sample import Batch
from ...compiler.execution.visitor import Visitor
from ..layers.layer_weight import input_channels, output_channels
from ..layers.sharing import Sharing
from .slots import components, decode, numberings


@dataclass(frozen=True)
class Port:
    """The output or the input channels of a layer, with their classes."""

    node: fx.Node
    layer: nn.Module
    row: OpRow
    slots: Tensor


@dataclass(frozen=True)
class ScaleClasses:
    """Classes of channels that share a scale.

    Attributes:
        count: how many there are.
        producers, consumers: the layers that give and that read them.
        free: ``(count,)``, whether a class may be scaled.
        refusals: why the output of a layer may not be scaled.
        inputs: the value that each consumer reads, and the axis of its channels, counted from the end.
    """

    count: int
    producers: Sequence[Port]
    consumers: Sequence[Port]
    free: Tensor
    refusals: Mapping[fx.Node, str]
    inputs: Mapping[fx.Node, tuple[fx.Node, int]]


def scale_classes(gm: fx.GraphModule, example: Batch, refuse: Callable[[fx.Node], str | None]) -> ScaleClasses:
    """Follow every channel through a normalized graph, on one batch.

    Args:
        refuse: the reason why a layer must be left as it is, or None.
    """
    tracker = _Tracker(gm, refuse)
    tracker.run.visit(example)
    return tracker.result()


class _Tracker:
    def __init__(self, gm: fx.GraphModule, refuse: Callable[[fx.Node], str | None]) -> None:
        self.run = Visitor(gm, self._see)
        self.refuse = refuse
        self.modules = dict(gm.named_modules())
        self.sharing = Sharing(gm)
        self.known: dict[fx.Node, Any] = {}  # slots of a value, or of each in a tuple
        self.count = 0
        self.producers: list[Port] = []
        self.consumers: list[Port] = []
        self.inputs: dict[fx.Node, tuple[fx.Node, int]] = {}
        self.equal: list[tuple[Tensor, Tensor]] = []
        self.pins: list[tuple[Tensor, str]] = []
        self.refusals: dict[fx.Node, str] = {}

    def _see(self, n: fx.Node, result: Any) -> Any:
        if n.op == "output":
            self._pin(n.all_input_nodes, "it is an output of the model")
        elif n.op not in ("placeholder", "get_attr"):
            self._track(n, result)
        return result

    def _track(self, n: fx.Node, result: Any) -> None:
        row = OPS.of(n, self.modules)
        if row is None:
            self._pin(n.all_input_nodes, f"'{n.name}' is not known to fxquant")
        elif row.output is Output.META:
            self._pin(n.all_input_nodes if isinstance(result, Tensor) else (), f"'{n.name}' reads it as a whole")
        elif n.op == "call_module" and (row.weighted or row.affine is not None):
            self._layer(n, row, self.modules[str(n.target)], result)
        elif row.product:
            self._product(n, row, result)
        elif not row.scale_equivariant:
            self._pin(n.all_input_nodes, f"{row.name} '{n.name}' is not scale-equivariant")
        elif row.inputs == 2:
            self._sum(n, row)
        else:
            self._follow(n, row)

    def _layer(self, n: fx.Node, row: OpRow, layer: nn.Module, result: Tensor) -> None:
        reason = self.refuse(n) or self.sharing.reason(layer, str(n.target))
        if not isinstance(getattr(layer, "weight", None), Tensor):
            reason = f"'{n.target}' has no weight"
        if reason or row.output is Output.WEIGHT_ONLY:
            self._pin(n.all_input_nodes, reason or f"{row.name} looks rows up")
            self.refusals |= {n: reason} if reason else {}
            return
        weight: Any = layer.weight
        if row.weighted:
            self._consume(n, row, layer, n.args[0])  # type: ignore[arg-type]
            axis = result.dim() - (weight.dim() - 1)
        else:
            self._pin(n.all_input_nodes, f"{row.name} '{n.name}' is not scale-equivariant")
            axis = row.affine % result.dim()  # type: ignore[operator]
        channels = output_channels(layer, row)
        if result.shape[axis] != channels or (not row.weighted and weight.dim() > 1):
            return
        slots = torch.arange(self.count, self.count + channels)
        self.count += channels
        along = [1] * result.dim()
        along[axis] = channels
        self.known[n] = slots.reshape(along)
        self.producers.append(Port(n, layer, row, slots))

    def _consume(self, n: fx.Node, row: OpRow, layer: Any, source: fx.Node) -> None:
        known = self.known.get(source)
        if not isinstance(known, Tensor):
            return
        axis = 1 - layer.weight.dim()  # from the end: batches may differ in axes
        channels = input_channels(layer, row)
        if known.numel() != known.shape[axis]:
            self._pin([source], f"{row.name} '{n.name}' reads another axis")
            return
        self.consumers.append(Port(n, layer, row, known.flatten().expand(channels)))
        self.inputs[n] = (source, axis)

    def _product(self, n: fx.Node, row: OpRow, result: Tensor) -> None:
        """A product scales with each factor: it follows the first factor that has its shape."""
        factors = tensor_inputs(n, row)
        if len(set(factors)) < len(factors):
            self._pin(factors, f"{row.name} '{n.name}' squares it")
            return
        carrier = next((f for f in factors if f in self.known and self.run.env[f].shape == result.shape), None)
        self._pin([f for f in factors if f is not carrier], f"it is a factor in '{n.name}'")
        if carrier is not None:
            self.known[n] = self.known[carrier]

    def _sum(self, n: fx.Node, row: OpRow) -> None:
        terms = tensor_inputs(n, row)
        known = [self.known.get(t) for t in terms]
        if len(terms) < 2 or not all(isinstance(k, Tensor) for k in known):
            self._pin(terms, f"{row.name} '{n.name}' adds what cannot be scaled")
            return
        first, second = torch.broadcast_tensors(*known)
        self.equal.append((first.flatten(), second.flatten()))
        self.known[n] = first

    def _follow(self, n: fx.Node, row: OpRow) -> None:
        """Run the op on the numbers of the slots."""
        sources = tensor_inputs(n, row)
        known: list[Any] = [self.known.get(s) for s in sources]
        if n.target is operator.getitem and known and isinstance(known[0], tuple):
            self.known[n] = known[0][n.args[1]]  # type: ignore[index]
            return
        if not known or not all(isinstance(k, Tensor) for k in known):
            self._pin(sources, f"{row.name} '{n.name}' joins it with what cannot be scaled")
            return
        numbers, *checks = [self._run_on(n, sources, known, values) for values in numberings(self.count)]
        found = [decode(parts, self.count) for parts in zip(numbers, *checks, strict=True)]
        if any(f is None for f in found):
            self._pin(sources, f"{row.name} '{n.name}' mixes channels or pads them")
            return
        self.known[n] = tuple(found) if row.multiple else found[0]

    def _run_on(
        self, n: fx.Node, sources: Sequence[fx.Node], known: Sequence[Tensor], values: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """The results of the op if every channel holds the value of its slot, each with ``values``."""
        probes = {s: values[k].expand(self.run.env[s].shape) for s, k in zip(sources, known, strict=True)}
        args, kwargs = (map_arg(a, lambda m: probes.get(m, self.run.env[m])) for a in (n.args, n.kwargs))
        given = getattr(self.run, n.op)(n.target, args, kwargs)
        return [(t, values) for t in (given if isinstance(given, list | tuple) else [given])]

    def _pin(self, nodes: Sequence[fx.Node], reason: str) -> None:
        for node in nodes:
            known = self.known.get(node)
            parts = known if isinstance(known, tuple) else (known,)
            self.pins += [(k.flatten(), reason) for k in parts if k is not None]

    def result(self) -> ScaleClasses:
        """The classes; slots are numbered by their class."""
        label = components(self.count, self.equal)
        why = torch.full((self.count,), -1)
        for number, (slots, _) in enumerate(self.pins):
            why[label[slots]] = torch.where(why[label[slots]] < 0, number, why[label[slots]])

        def labelled(ports: list[Port]) -> list[Port]:
            return [Port(p.node, p.layer, p.row, label[p.slots]) for p in ports]

        producers = labelled(self.producers)
        read = torch.zeros(self.count, dtype=torch.bool)
        for port in labelled(self.consumers):
            read[port.slots] = True
        for port in producers:
            pinned = why[port.slots].max()
            if pinned >= 0:
                self.refusals[port.node] = self.pins[int(pinned)][1]
            elif not read[port.slots].all():
                self.refusals[port.node] = "no layer reads it"
        free = (why < 0) & read
        return ScaleClasses(self.count, producers, labelled(self.consumers), free, self.refusals, self.inputs)
