"""Between placing and freezing, for training: layers round their weights, observers become fake-quants; and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from ..backends.base import Backend, IntegerWeight
from ..compiler.fake_quantize import FakeQuantize
from ..compiler.observers import FixedObserver, Observer, observer_of
from .assign_precision import Assignment
from .base import finish
from .fold_batchnorm import fold
from .freeze import joined_observers, joined_qparams
from .simulated_layer import SimulatedLayer


@dataclass
class Simulation:
    """What stands in a graph for training.

    Attributes:
        layers: by path, with the normalisation behind them.
        activations: fake-quants by the path of the observer that they stand for.
        known: the observers of ranges that are known from the op, by path: they are no matter of training.
    """

    layers: dict[str, SimulatedLayer] = field(default_factory=dict)
    activations: dict[str, FakeQuantize] = field(default_factory=dict)
    known: dict[str, FixedObserver] = field(default_factory=dict)

    def freeze_observers(self) -> None:
        """Let every scale be what it is from now on."""
        for fake_quant in self.activations.values():
            fake_quant.freeze()
        for layer in self.layers.values():
            layer.freeze()


def attach(gm: fx.GraphModule, assignment: Assignment, norms: Mapping[str, nn.Module]) -> Simulation:
    """Put :class:`SimulatedLayer` in place of layers, which does not round yet: the graph is as in fp32.

    ``norms``: the batch normalisations that :class:`~.fold_batchnorm.FoldBatchNorm` detached, by the layer's path.
    """
    done = Simulation()
    modules = dict(gm.named_modules())
    for unit in assignment.matched.units:
        path = str(unit.root.target)
        if unit.root.op != "call_module":
            continue
        if path in norms or (unit.rule.weighted and assignment.is_int8(unit)):
            layer = done.layers.setdefault(path, SimulatedLayer(path, modules[path], norms.get(path), unit.rule))
            # The layer stays where it is: its parameters may be read there by name.
            unit.root.target = add_as(gm, f"{unit.root.name}_simulated", layer)
    gm.recompile()
    return done


def add_as(parent: nn.Module, name: str, child: nn.Module) -> str:
    """Add ``child`` under ``name``, with underscores behind it if something has that name. Returns its name."""
    while hasattr(parent, name):
        name += "_"
    parent.add_module(name, child)
    return name


def simulate(gm: fx.GraphModule, assignment: Assignment, backend: Backend, simulation: Simulation) -> None:
    """Let a calibrated graph round: fake-quants take the place of observers, and int8 layers round their weights."""
    made = _fake_quants(gm, assignment)
    owner = {u.output: u for u in assignment.int8_units}
    modules = dict(gm.named_modules(remove_duplicate=False))
    for node in gm.graph.nodes:
        path = str(node.target)
        module = modules.get(path) if node.op == "call_module" else None
        observer = observer_of(module)
        if observer is None:
            continue
        source = owner.get(node.args[0])
        config = assignment.config_of(source) if source else assignment.config.default
        if isinstance(observer, FixedObserver):
            made[observer].freeze()
            simulation.known[path] = observer
        elif config.scales == "learned":
            made[observer].joined[0].learn()
        gm.set_submodule(path, made[observer])
        simulation.activations[path] = made[observer]
    for unit in assignment.int8_units:
        layer = modules.get(str(unit.root.target))
        if isinstance(layer, SimulatedLayer) and layer.rounds is None:
            layer.round_weight(assignment.config_of(unit), backend)


def _fake_quants(gm: fx.GraphModule, assignment: Assignment) -> dict[Observer, FakeQuantize]:
    """One for each observer, from its qparams; those whose values are joined know each other."""
    groups = joined_observers(gm, assignment)
    qparams = joined_qparams(groups)
    made: dict[Observer, FakeQuantize] = {}
    for group in groups:
        made |= {o: FakeQuantize(o.label, qparams[o], o.symmetric) for o in group}
        free = [made[o] for o in group if not isinstance(o, FixedObserver)]
        for fake_quant in free:
            fake_quant.joined = free
    return made


def settle(gm: fx.GraphModule, simulation: Simulation) -> dict[str, IntegerWeight]:
    """Put observers and layers back, with the ranges and the folded weights that training found.

    Returns the rounded weights by the layer's path. The layers themselves are changed.
    """
    for path, fake_quant in simulation.activations.items():
        known = simulation.known.get(path) or FixedObserver(fake_quant.label, fake_quant.qparams())
        gm.set_submodule(path, known)
    modules = dict(gm.named_modules(remove_duplicate=False))
    integers: dict[str, IntegerWeight] = {}
    for path, simulated in simulation.layers.items():
        rounded = simulated.integers()
        if rounded is not None:
            integers[path] = rounded
        if simulated.norm is not None:
            fold(simulated.layer, simulated.norm, simulated.rule)
    for node in gm.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, SimulatedLayer):
            node.target = module.path
    finish(gm)
    return integers
