"""Forms in which a lowered graph is executed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from ...compiler.errors import ConfigError
from ...compiler.latency import interleaved_medians
from ...compiler.values import bind_inputs, tensors_of
from ..base import Frozen
from .emitter import Emitter
from .engine import ONEDNN, under_engine

Run = Callable[..., Any]


def eager(emitter: Emitter, frozen: Frozen) -> Run:
    """Straight-line Python over bound op handles."""
    return emitter.straight_line()


class _Traceable(nn.Module):
    """The constants as attributes, which is where TorchScript looks for packed weights."""

    def __init__(self, forward: Run, constants: dict[str, Any]) -> None:
        super().__init__()
        self._run = forward
        for name, value in constants.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *args: Any) -> Any:
        return self._run(self, *args)


def torchscript(emitter: Emitter, frozen: Frozen) -> Run:
    """The same, traced on the example and frozen by TorchScript, whose deprecation warnings stay here."""
    module = _Traceable(*emitter.compile()).eval()
    inputs = tuple(bind_inputs(frozen.module, frozen.example_args, frozen.example_kwargs))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        script = torch.jit.freeze(torch.jit.trace(module, inputs, check_trace=False))
        run = under_engine(ONEDNN, script)
        for _ in range(3):  # the profiling executor specialises on its first runs
            run(*inputs)
    return lambda *args, **kwargs: run(*bind_inputs(frozen.module, args, kwargs))


def auto(emitter: Emitter, frozen: Frozen) -> Run:
    """The faster of the two; TorchScript only where it gives the same values, at another batch size, too."""
    straight = eager(emitter, frozen)
    try:
        script = torchscript(emitter, frozen)
        inputs = bind_inputs(frozen.module, frozen.example_args, frozen.example_kwargs)
        if not (_agree(straight, script, inputs) and _agree(straight, script, _twice(inputs))):
            return straight
    except Exception:  # TorchScript raises anything; and a future torch may have none
        return straight
    with torch.no_grad():
        times = interleaved_medians([lambda: straight(*inputs), lambda: script(*inputs)], rounds=9, seconds=1.0)
    return script if times[1] < times[0] else straight


def _agree(straight: Run, script: Run, inputs: Sequence[Any]) -> bool:
    with torch.no_grad():
        try:
            expected = straight(*inputs)
        except Exception:  # the model itself takes no other batch size
            return True
        ours, theirs = tensors_of(expected), tensors_of(script(*inputs))
        return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _twice(inputs: Sequence[Any]) -> list[Any]:
    return [torch.cat([x, x]) if isinstance(x, torch.Tensor) and x.dim() else x for x in inputs]


EXECUTORS: dict[str, Callable[[Emitter, Frozen], Run]] = {
    "auto": auto,
    "eager": eager,
    "torchscript": torchscript,
}


class Scripted:
    """A graph of float ops and dynamic layers, and the same compiled by TorchScript, which needs no example.

    The first call runs both: TorchScript is used from then on if it gives the same, and for tensors only.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.script = _script(gm)
        self._agrees: bool | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or self._agrees is False or not all(isinstance(a, torch.Tensor) for a in args):
            return self.gm(*args, **kwargs)
        if self._agrees is None:
            expected = self.gm(*args)
            self._agrees = _same(expected, self.script, args)
            return expected
        return self.script(*args)


def _script(gm: fx.GraphModule) -> Run:
    """``gm`` compiled by TorchScript; raises whatever that raises."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    for node in graph.nodes:
        node.type = None  # fx writes annotations that TorchScript cannot read; all inputs are tensors
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        run: Run = torch.jit.freeze(torch.jit.script(fx.GraphModule(gm, graph).eval()))
    return run


def _same(expected: Any, script: Run, args: Sequence[Any]) -> bool:
    with torch.no_grad():
        try:
            given = script(*args)
        except Exception:
            return False
    ours, theirs = tensors_of(given), tensors_of(expected)
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def run_layers(tree: nn.Module, executor: str) -> Run:
    """What runs a tree of dynamic layers: TorchScript where ``tree`` is a graph that it can compile, else ``tree``.

    Raises:
        ConfigError: ``executor`` is "torchscript", which cannot.
    """
    if executor == "eager":
        return tree
    try:
        if not isinstance(tree, fx.GraphModule):
            raise TypeError("the model was not traced")
        return Scripted(tree)
    except Exception as error:  # TorchScript raises anything; and a future torch may have none
        if executor == "torchscript":
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"executor='torchscript' cannot run this model ({reason}): use 'auto'.") from error
        return tree
