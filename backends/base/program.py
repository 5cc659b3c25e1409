"""The frozen program: a quantized model that depends on no backend."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import fx, nn

from ...compiler.core.errors import StateError
from ...compiler.execution.graphs import copy_graph, with_nodes
from ...compiler.execution.sample import Batch
from ...compiler.execution.shapes import ValueInfo, value_infos
from .dynamic_layer import DynamicLayer, ReferenceLayer


@dataclass(frozen=True, eq=False)
class FrozenProgram:
    """A quantized model as plain data: what a backend lowers, and what a file or an exporter needs.

    Float ops in their canonical spelling stand between ``quantize`` and ``dequantize`` nodes with literal parameters.
    Weights are integer buffers after ``dequantize_channels``. Dynamic layers are :class:`ReferenceLayer` modules that
    hold a :class:`DynamicSpec`. The graph runs in plain torch.

    Nothing may change a program: a backend rewrites a copy (:func:`copy_program`).

    Attributes:
        module: the graph.
        example: a batch of calibration data, which gives the signature.
        fp32: ops that stay in fp32 although they may stand between a ``dequantize`` and a ``quantize``.
        deterministic: measured times must not change the result; they choose between kernels of the same result.
        keep_roundings: the model was trained with its roundings, so that a backend must not leave any out.
    """

    module: fx.GraphModule
    example: Batch
    fp32: frozenset[fx.Node] = frozenset()
    keep_roundings: bool = False
    deterministic: bool = True

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenProgram:
        """A copy of the graph; tensors are shared, as nothing may change them."""
        return copy_program(self).program

    def __reduce__(self) -> Any:
        raise StateError("A frozen program cannot be pickled. Keep the float model, and compile it again.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph in plain torch ops."""
        return self.module(*args, **kwargs)

    @cached_property
    def values(self) -> dict[fx.Node, ValueInfo]:
        """Shape and dtype of every value on the example."""
        return value_infos(self.module, self.example)

    @property
    def dynamic_layers(self) -> dict[str, ReferenceLayer]:
        """The dynamic layers by path."""
        return {path: m for path, m in self.module.named_modules() if isinstance(m, ReferenceLayer)}


@dataclass(frozen=True)
class ProgramCopy:
    """A copy that may be rewritten.

    Attributes:
        program: the copy; it shares tensors with the original.
        of: the node of the copy by that of the original.
    """

    program: FrozenProgram
    of: Mapping[fx.Node, fx.Node]


def copy_program(program: FrozenProgram, layers: Mapping[nn.Module, DynamicLayer] | None = None) -> ProgramCopy:
    """Copy a program; ``layers`` take the place of its dynamic layers."""
    copied = copy_graph(program.module)
    gm, made = copied.module, dict(layers or {})
    for path in dict.fromkeys(str(n.target) for n in gm.graph.nodes if n.op == "call_module"):
        module = gm.get_submodule(path)
        if module in made:
            gm.set_submodule(path, made[module])
        elif not made.keys().isdisjoint(module.modules()):
            gm.set_submodule(path, _with_layers(module, made))
    return ProgramCopy(replace(program, module=gm, fp32=with_nodes(program.fp32, copied.of)), copied.of)


def _with_layers(module: nn.Module, made: Mapping[nn.Module, DynamicLayer]) -> nn.Module:
    """A copy of ``module`` that shares its tensors, with other dynamic layers in it."""
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    memo |= {id(old): new for old, new in made.items()}
    return copy.deepcopy(module, memo)
