"""A lowered program: plans by the shapes of their inputs."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ....compiler.core.interrupts import held
from ....compiler.core.locks import process_lock
from ....compiler.core.progress import log
from ....compiler.core.tensors import check_dense
from ....compiler.execution.inputs import Signature
from ...base.backend import KernelChoice
from ...base.program import FrozenProgram
from ..codegen.isa import Isa
from .kernel_errors import kernel_errors
from .lower import Lowering
from .plan import Plan
from .weights import WeightStore

PLANS = 128  # that are kept; each takes about a megabyte for a hundred steps
ARENAS = 512 * 2**20  # bytes of arenas that the plans of a program may keep
PLAIN = (int, float, str, type(None))
MANY_SHAPES = (
    f"Inputs of more than {PLANS} shapes: each new one takes a plan, and time for kernels of new shapes. "
    "Pad inputs to a few shapes, or use backend='x86'."
)


_PLANNING = process_lock()  # one for all programs: such a lock is never freed


class PlannedProgram:
    """Runs a program like its forward().

    A plan is built when inputs of new shapes come; the least recently used one is dropped.

    Args:
        store: weights that other programs share.
    """

    def __init__(self, program: FrozenProgram, isa: Isa, store: WeightStore | None = None) -> None:
        self.program, self.isa = program, isa
        self._signature = Signature.of(program.module)
        self._inputs = [n for n in program.module.graph.nodes if n.op == "placeholder"]
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._newest: tuple[Any, Lowering] | None = None
        self._built = 0
        self._store = store or WeightStore()

    def on_example(self) -> tuple[Mapping[fx.Node, KernelChoice], int]:
        """What runs each op on the example, and the bytes of weights and parameters as they are packed for it."""
        plan, lowering = self._with_lowering(self._given(*self.program.example))
        return lowering.choices, plan.constants.size + sum(plan.packed.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self._given(args, kwargs)
        if any(isinstance(v, Tensor) and not v.numel() for v in given.values()):
            with torch.no_grad():
                # There is nothing to compute. Not __call__, which prints where it fails.
                return self.program.module.forward(*given.values())
        return self._planned(given).run(given)

    def kernel_errors(self, *args: Any, **kwargs: Any) -> Mapping[fx.Node, int]:
        """See :class:`~....base.backend.Lowered`."""
        given = self._given(args, kwargs)
        plan, lowering = self._with_lowering(given)
        return kernel_errors(self.program.module, plan, lowering.builder.quantized, given)

    def _with_lowering(self, given: Mapping[fx.Node, Any]) -> tuple[Plan, Lowering]:
        """A plan with the lowering that made it, of which only the newest is kept."""
        key = _key_of(given)
        with _PLANNING:
            if self._newest is None or self._newest[0] != key or key not in self._plans:
                self._plans.pop(key, None)
                self._built_plan(key, given)
            assert self._newest is not None
            return self._plans[key], self._newest[1]

    def _given(self, args: Any, kwargs: Mapping[str, Any]) -> dict[fx.Node, Any]:
        values = self._signature.bind(args, kwargs)
        return {n: _readable(v, str(n.target)) for n, v in zip(self._inputs, values, strict=True)}

    def _planned(self, given: Mapping[fx.Node, Any]) -> Plan:
        key = _key_of(given)
        known = self._plans.get(key)
        if known is not None:
            with contextlib.suppress(KeyError):  # another thread may have dropped it
                self._plans.move_to_end(key)
            return known
        return self._built_plan(key, given)

    @property
    def _arenas(self) -> int:
        """Bytes of the arenas that plans keep for themselves."""
        return sum(plan.program.own_bytes for plan in self._plans.values())

    @held  # an interrupt in a finalizer of llvmlite would be lost
    def _built_plan(self, key: Any, given: Mapping[fx.Node, Any]) -> Plan:
        with _PLANNING:
            if key not in self._plans:
                self._built += 1
                if self._built == PLANS + 1:
                    log.warning(MANY_SHAPES)
                lowering = Lowering(self.program.module, given, self.isa, self._store)
                self._plans[key], self._newest = lowering.plan(), (key, lowering)
                while len(self._plans) > PLANS or (len(self._plans) > 1 and self._arenas > ARENAS):
                    self._plans.popitem(last=False)
            return self._plans[key]


def _readable(value: Any, name: str) -> Any:
    """Tensors that kernels can read: without gradient, and without lazy negation or overlap."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, PLAIN) else pytree.tree_map_only(Tensor, partial(_readable, name=name), value)
    check_dense(value, name)
    value = value.detach()
    if value.dtype == torch.float32 and not (value.is_contiguous() or _channels_last(value)):
        value = value.contiguous()
    return value.resolve_neg()


def _channels_last(value: Tensor) -> bool:
    return value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)


def _key_of(given: Mapping[fx.Node, Any]) -> Any:
    return tuple(_key(v) for v in given.values())


def _key(value: Any) -> Any:
    """Equal for inputs that a plan serves alike."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.stride()
    if isinstance(value, PLAIN):
        return type(value), value
    leaves, structure = pytree.tree_flatten(value)
    return structure, repr(value) if leaves == [value] else tuple(map(_key, leaves))
