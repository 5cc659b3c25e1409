"""Forms in which a lowered graph is executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from ....compiler.core.errors import ConfigError
from ....compiler.core.progress import log
from ....compiler.core.tensors import map_tensors, tensors_of
from ....compiler.execution.graphs import ModelGraph
from ....compiler.execution.inputs import Signature, bind_inputs
from ....compiler.execution.timing import interleaved_medians
from ....compiler.execution.user_code import runs_user_code
from ....compiler.numerics.quantize import dequantize, dequantize_channels, quantize
from ...base.op import Output
from ...base.program import FrozenProgram
from ...ops.table import OPS
from ..runtime import script
from ..runtime.engine import ONEDNN, under_engine
from ..runtime.script import Run
from .emitter import Emitter


def eager(emitter: Emitter, program: FrozenProgram) -> Run:
    """Straight-line Python that calls op handles."""
    return emitter.straight_line()


class _Traceable(nn.Module):
    """Holds the constants as attributes, where TorchScript looks for packed weights."""

    def __init__(self, forward: Run, constants: dict[str, Any]) -> None:
        super().__init__()
        self._run = forward
        for name, value in constants.items():
            if isinstance(value, torch.Tensor) and value.is_mkldnn:
                self.register_buffer(name, value)  # it cannot be a constant of the trace
            else:  # modules are not registered: TorchScript would keep a type for each
                self.__dict__[name] = value

    def forward(self, *args: Any) -> Any:
        return self._run(self, *args)


def torchscript(emitter: Emitter, program: FrozenProgram) -> Run:
    """TorchScript.

    Raises:
        ConfigError: TorchScript does not take the graph.
    """
    try:
        return traced(emitter, program)
    except Exception as error:
        raise no_torchscript(error) from error


def traced(emitter: Emitter, program: FrozenProgram) -> Run:
    """The graph traced on the example, called like forward()."""
    modules = dict(program.module.named_modules())
    for node in program.module.graph.nodes:
        if runs_user_code(node, modules):  # a trace would keep what it decided on the example
            raise ValueError(f"'{node.target}' is not traced")
    signature = Signature.of(program.module)
    run = trace(emitter, signature.bind(*program.example))
    return lambda *args, **kwargs: run(*signature.bind(args, kwargs))


def trace(emitter: Emitter, inputs: Sequence[Any]) -> Run:
    """The graph traced on ``inputs``, run until TorchScript has specialized it."""
    module = _Traceable(*emitter.compile()).eval()
    run = under_engine(ONEDNN, script.trace(module, inputs))
    with torch.no_grad():
        for _ in range(3):  # the profiling executor specializes in its first runs
            run(*inputs)
    return run


def auto(emitter: Emitter, program: FrozenProgram) -> Run:
    """The faster of the two. TorchScript only if it gives the same values, also at other sizes of any axis."""
    straight = eager(emitter, program)
    try:
        scripted = traced(emitter, program)
        inputs = bind_inputs(program.module, *program.example)
        # A trace holds the sizes that Python computed. A model that takes no other batch size is not traced.
        others = (_agree(straight, scripted, resized) for resized in _batches(inputs))
        if next((agrees for agrees in others if agrees is not None), None) is not True:
            return straight
        # Not on inputs that the program does not take: the kernels of torch may abort the process there.
        larger = filter(partial(_takes, program), _larger(inputs) if _computes_sizes(program) else ())
        if any(_agree(straight, scripted, resized) is False for resized in (inputs, *larger)):
            return straight
    except Exception:  # TorchScript raises anything; and a future torch may have none
        return straight
    with torch.no_grad():
        times = interleaved_medians([lambda: straight(*inputs), lambda: scripted(*inputs)], rounds=9, seconds=1.0)
    log.info("x86: eager takes %.3g ms, TorchScript %.3g ms; the faster one runs", *times)
    return scripted if times[1] < times[0] else straight


def _agree(straight: Run, scripted: Run, inputs: Sequence[Any]) -> bool | None:
    """Whether both return the same; None if the model does not take the inputs."""
    with torch.no_grad():
        try:
            expected = straight(*inputs)
        except Exception:
            return None
        ours, theirs = tensors_of(expected), tensors_of(scripted(*inputs))
        return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _computes_sizes(program: FrozenProgram) -> bool:
    """Whether Python may compute sizes when the graph runs: in a node, or in an op of which nothing is known."""
    modules = dict(program.module.named_modules())
    for node in program.module.graph.nodes:
        row = OPS.of(node, modules)
        if not node.op.startswith("call") or node.target in (quantize, dequantize, dequantize_channels):
            continue
        if row is None or row.output is Output.META or (node.op == "call_module" and node.kwargs):
            return True
    return False


def _takes(program: FrozenProgram, inputs: Sequence[Any]) -> bool:
    with torch.no_grad():
        try:
            program.module.forward(*inputs)
        except Exception:
            return False
    return True


def _batches(inputs: Sequence[Any]) -> Iterator[list[Any]]:
    """The inputs with other batch sizes: twice as many, one more, one less."""
    tensors = [x for x in tensors_of(list(inputs)) if x.dim()]

    def mapped(function: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
        return [map_tensors(value, lambda x: function(x) if x.dim() else x) for value in inputs]

    yield mapped(lambda x: torch.cat([x, x]))
    yield mapped(lambda x: torch.cat([x, x[:1]]))
    if all(len(x) > 1 for x in tensors):
        yield mapped(lambda x: x[1:])


def _larger(inputs: Sequence[Any]) -> Iterator[list[Any]]:
    """The inputs with one more along each axis but the first, and along the last two."""
    most = max((x.dim() for x in tensors_of(list(inputs))), default=0)
    for axes in (*((axis,) for axis in range(1, most)), *([(most - 2, most - 1)] if most > 2 else [])):

        def grown(x: torch.Tensor, axes: tuple[int, ...] = axes) -> torch.Tensor:
            for axis in axes:
                x = torch.cat([x, x.narrow(axis, 0, 1)], axis) if axis < x.dim() and x.shape[axis] else x
            return x

        yield [map_tensors(value, grown) for value in inputs]


EXECUTORS: dict[str, Callable[[Emitter, FrozenProgram], Run]] = {
    "auto": auto,
    "eager": eager,
    "torchscript": torchscript,
}


def graph_forms(gm: fx.GraphModule, executor: str) -> list[Run]:
    """What can run a graph of dynamic layers, fastest first: TorchScript, if it takes the graph, and the graph itself.

    Raises:
        ConfigError: ``executor`` is "torchscript", and TorchScript does not take the graph.
    """
    if executor == "eager":
        return [gm.forward]
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    for node in graph.nodes:
        node.type = None  # fx writes annotations that TorchScript cannot read; all inputs are tensors
    try:
        scripted, signature = script.script_module(ModelGraph(gm, graph).eval()), Signature.of(gm)
        return [lambda *args, **kwargs: scripted(*signature.bind(args, kwargs)), gm.forward]
    except Exception as error:  # TorchScript raises anything; and a future torch may have none
        if executor == "torchscript":
            raise no_torchscript(error) from error
        return [gm.forward]  # not gm itself: its __call__ prints where it fails, which may be no failure here


def no_torchscript(error: Exception) -> ConfigError:
    """The error for a model that TorchScript does not take."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConfigError(f"executor='torchscript' cannot run this model ({reason}): use 'auto'.")
