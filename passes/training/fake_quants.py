"""Between placing and freezing, for training: layers round their weights, observers become fake-quants; and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from ...backends.base.weights import IntegerWeight
from ...compiler.execution.graphs import called_module
from ...compiler.numerics.fake_quantize import FakeQuantize
from ...compiler.numerics.observer import Observer
from ...compiler.numerics.observers import FixedObserver
from ...compiler.numerics.stubs import observer_of
from ..analysis.assignment import Assignment
from ..base import PassResult, finish
from ..quantization.joined_observers import joined_observers, joined_qparams
from ..rewrites.fold_batchnorm import fold
from .simulated_layer import SimulatedLayer


@dataclass
class Simulation:
    """The modules that simulate int8 in a graph.

    Attributes:
        layers: layers by path, with the normalization after them.
        activations: fake-quants by the path of the observer that they replace.
        known: the observers of ranges that are known from the op, by path: training does not change those.
    """

    layers: dict[str, SimulatedLayer] = field(default_factory=dict)
    activations: dict[str, FakeQuantize] = field(default_factory=dict)
    known: dict[str, FixedObserver] = field(default_factory=dict)

    def freeze_observers(self) -> None:
        """Keep every scale as it is from now on."""
        for fake_quant in self.activations.values():
            fake_quant.freeze()
        for layer in self.layers.values():
            layer.freeze()


class AttachLayers:
    """Puts a :class:`SimulatedLayer`, which does not round yet, in place of each layer. Exact if ``norms`` is empty.

    Args:
        assignment: which ops are int8.
        norms: the batch normalizations that :class:`~..rewrites.fold_batchnorm.FoldBatchNorm` detached, by the path of
            the layer before them.
        simulation: the layers are added to it.
    """

    name = "attach_layers"

    def __init__(self, assignment: Assignment, norms: Mapping[str, nn.Module], simulation: Simulation) -> None:
        self.assignment, self.norms, self.simulation = assignment, norms, simulation
        self.exact = not norms

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        modules, count = dict(gm.named_modules()), 0
        for unit in self.assignment.matched.units:
            path = str(unit.root.target)
            if unit.root.op != "call_module" or isinstance(modules[path], SimulatedLayer):
                continue
            if path in self.norms or (unit.row.weighted and self.assignment.is_int8(unit)):
                made = SimulatedLayer(path, modules[path], self.norms.get(path), unit.row)
                layer = self.simulation.layers.setdefault(path, made)
                # The layer itself stays where it is: its parameters may be read there by name.
                unit.root.target = add_as(gm, f"{unit.root.name}_simulated", layer)
                count += 1
        gm.recompile()
        return PassResult(count)


def add_as(parent: nn.Module, name: str, child: nn.Module) -> str:
    """Add ``child`` under ``name``, with underscores after it if the name is taken. Returns the name."""
    while hasattr(parent, name):
        name += "_"
    parent.add_module(name, child)
    return name


class PlaceFakeQuants:
    """Not exact: fake-quants take the place of the calibrated observers, and int8 layers round their weights.

    Args:
        assignment: which ops are int8.
        simulation: the fake-quants are added to it.
    """

    name = "simulate"
    exact = False

    def __init__(self, assignment: Assignment, simulation: Simulation) -> None:
        self.assignment, self.simulation = assignment, simulation

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        made = _fake_quants(gm, self.assignment)
        owner = {u.output: u for u in self.assignment.int8_units}
        modules = dict(gm.named_modules(remove_duplicate=False))
        count = 0
        for node in gm.graph.nodes:
            path = str(node.target)
            observer = observer_of(called_module(node, modules))
            if observer is None:
                continue
            source = owner.get(node.args[0])
            config = self.assignment.config_of(source) if source else self.assignment.config.default
            if isinstance(observer, FixedObserver):
                made[observer].freeze()
                self.simulation.known[path] = observer
            elif config.scales == "learned":
                made[observer].joined[0].learn()
            gm.set_submodule(path, made[observer])
            self.simulation.activations[path] = made[observer]
            count += 1
        for unit in self.assignment.int8_units:
            layer = modules.get(str(unit.root.target))
            if isinstance(layer, SimulatedLayer) and layer.rounds is None:
                layer.round_weight(self.assignment.config_of(unit), self.assignment.backend)
                count += 1
        return PassResult(count)


def _fake_quants(gm: fx.GraphModule, assignment: Assignment) -> dict[Observer, FakeQuantize]:
    """A fake-quant for each observer, with its qparams. Those whose values are joined know each other."""
    groups = joined_observers(gm, assignment)
    qparams = joined_qparams(groups)
    made: dict[Observer, FakeQuantize] = {}
    for group in groups:
        made |= {o: FakeQuantize(o.label, qparams[o], o.symmetric) for o in group}
        free = [made[o] for o in group if not isinstance(o, FixedObserver)]
        for fake_quant in free:
            fake_quant.joined = free
    return made


class SettleTraining:
    """Not exact: puts observers and layers back, with the ranges and the folded weights that training found.

    Args:
        simulation: what was trained; its layers are changed.

    Attributes:
        weights: the rounded weights by the path of the layer.
    """

    name = "settle"
    exact = False

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.weights: dict[str, IntegerWeight] = {}

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        modules = dict(gm.named_modules(remove_duplicate=False))
        nodes = [n for n in gm.graph.nodes if n.op == "call_module"]
        simulated = [n for n in nodes if isinstance(modules[str(n.target)], SimulatedLayer)]
        fake_quants = {p: f for p, f in self.simulation.activations.items() if isinstance(modules.get(p), FakeQuantize)}
        for path, fake_quant in fake_quants.items():
            known = self.simulation.known.get(path) or FixedObserver(fake_quant.label, fake_quant.qparams())
            gm.set_submodule(path, known)
        if simulated:
            for path, layer in self.simulation.layers.items():
                rounded = layer.integers()
                if rounded is not None:
                    self.weights[path] = rounded
                if layer.norm is not None:
                    fold(layer.layer, layer.norm, layer.row)
        for node in simulated:
            node.target = modules[str(node.target)].path
        finish(gm)
        return PassResult(len(fake_quants) + len(simulated))
