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
from .script import script

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
    """TorchScript, or an error of ours: see :func:`traced`."""
    try:
        return traced(emitter, frozen)
    except Exception as error:
        raise no_torchscript(error) from error


def traced(emitter: Emitter, frozen: Frozen) -> Run:
    """The same, traced on the example."""
    run = trace(emitter, bind_inputs(frozen.module, frozen.example_args, frozen.example_kwargs))
    return lambda *args, **kwargs: run(*bind_inputs(frozen.module, args, kwargs))


def trace(emitter: Emitter, inputs: Sequence[Any]) -> Run:
    """The graph traced on ``inputs`` and frozen by TorchScript, whose deprecation warnings stay here."""
    module = _Traceable(*emitter.compile()).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        run = under_engine(ONEDNN, torch.jit.freeze(torch.jit.trace(module, tuple(inputs), check_trace=False)))
        for _ in range(3):  # the profiling executor specialises on its first runs
            run(*inputs)
    return run


def auto(emitter: Emitter, frozen: Frozen) -> Run:
    """The faster of the two; TorchScript only where it gives the same values, at another batch size, too."""
    straight = eager(emitter, frozen)
    try:
        scripted = traced(emitter, frozen)
        inputs = bind_inputs(frozen.module, frozen.example_args, frozen.example_kwargs)
        if not (_agree(straight, scripted, inputs) and _agree(straight, scripted, _twice(inputs))):
            return straight
    except Exception:  # TorchScript raises anything; and a future torch may have none
        return straight
    with torch.no_grad():
        times = interleaved_medians([lambda: straight(*inputs), lambda: scripted(*inputs)], rounds=9, seconds=1.0)
    return scripted if times[1] < times[0] else straight


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


def graph_forms(gm: fx.GraphModule, executor: str) -> list[Run]:
    """What runs a graph of dynamic layers, fastest first: compiled by TorchScript, if it can be, and as it stands.

    Raises:
        ConfigError: ``executor`` is "torchscript", and it cannot.
    """
    if executor == "eager":
        return [gm.forward]
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    for node in graph.nodes:
        node.type = None  # fx writes annotations that TorchScript cannot read; all inputs are tensors
    try:
        return [script(fx.GraphModule(gm, graph).eval()), gm.forward]
    except Exception as error:  # TorchScript raises anything; and a future torch may have none
        if executor == "torchscript":
            raise no_torchscript(error) from error
        return [gm.forward]  # its __call__ prints where it fails, which is no failure here


def no_torchscript(error: Exception) -> ConfigError:
    """What to say of a model that TorchScript does not take."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConfigError(f"executor='torchscript' cannot run this model ({reason}): use 'auto'.")
