"""What the tests of the llvm backend share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant.backends.base.program import FrozenProgram, copy_program
from fxquant.backends.llvm.backend import LLVMBackend
from fxquant.backends.llvm.codegen.isa import Isa
from fxquant.backends.llvm.codegen.isas import available
from fxquant.backends.llvm.lowering.drop_pairs import drop_pairs
from fxquant.backends.llvm.lowering.entry import widen_entry
from fxquant.backends.llvm.lowering.gather import GatherStep
from fxquant.backends.llvm.lowering.loops import by_round
from fxquant.backends.llvm.lowering.lower import Lowering
from fxquant.backends.llvm.lowering.plan import Plan
from fxquant.backends.llvm.lowering.products import PanelStep
from fxquant.backends.llvm.lowering.row_steps import RowStep
from fxquant.backends.llvm.lowering.states import split_states
from fxquant.backends.llvm.lowering.steps import FillStep, Step
from fxquant.compiler.runtime.quantized_module import QuantizedModule
from fxquant.passes.dynamic.layer_maker import LayerMaker, MadeLayer
from fxquant.passes.dynamic.plan import LayerRequest

from .oracle import evaluate

BEST = available()[0]


def made(layer: nn.Module, isa: Isa | None = None, dtype: torch.dtype = torch.int8, **config: Any) -> MadeLayer:
    """A layer that quantizes its input at run time, or that has fp16 weights."""
    request = LayerRequest(dtype, fxquant.QuantConfig(**config))
    both = LayerMaker(LLVMBackend(isa=isa)).make(layer.eval(), request, False)
    assert isinstance(both, MadeLayer), both
    return both


def frozen(model: nn.Module, calibration: Sequence[tuple[Tensor, ...]], **options: Any) -> FrozenProgram:
    """The program of a model as the llvm backend executes it."""
    options.setdefault("backend", "llvm")
    q = fxquant.compile(model.eval(), calibration=calibration, **options)
    assert isinstance(q, QuantizedModule) and q.program is not None
    program = copy_program(q.program).program
    split_states(program.module)
    drop_pairs(program)
    widen_entry(program)
    return program


def placeholders(program: FrozenProgram, args: tuple[Tensor, ...]) -> dict[fx.Node, Any]:
    """The values of the placeholders."""
    nodes = [n for n in program.module.graph.nodes if n.op == "placeholder"]
    return dict(zip(nodes, args, strict=True))


def planned(program: FrozenProgram, args: tuple[Tensor, ...], isa: Isa = BEST) -> Plan:
    """A plan for inputs."""
    return Lowering(program.module, placeholders(program, args), isa).plan()


def check_steps(program: FrozenProgram, args: tuple[Tensor, ...], isa: Isa = BEST) -> int:
    """Compare every step with the oracle, bit by bit. Returns how many were compared.

    Rows (normalization, softmax) are left out: their sums have an order of their own. Panels are compared by the
    product that reads them, loops by their first round; for rows of tables see test_embedding.
    """
    plan, given = planned(program, args, isa), placeholders(program, args)
    steps = list(by_round(plan.steps))
    compared = 0

    def read(arena: Any) -> Any:
        def of(value: Any) -> Tensor:
            return plan.view(arena, value, given).clone()

        return of

    def check(index: int, arena: Any) -> None:
        nonlocal compared
        step, number = steps[index]
        if number or not isinstance(step, Step) or isinstance(step, RowStep | PanelStep | GatherStep):
            return
        if step.target.storage.place == "output":
            return
        expected, actual = evaluate(step, read(arena)), plan.view(arena, step.target, given)
        if actual.dtype != torch.float32:
            actual = actual.int()
        assert torch.equal(expected, actual), f"{step.kind} of '{step.node.name}': {_difference(expected, actual)}"
        compared += 1

    plan.run(given, after=check)
    assert any(isinstance(s, Step) for s in plan.steps)
    return compared


def _difference(expected: Tensor, actual: Tensor) -> str:
    apart = (expected.double() - actual.double()).abs()
    return f"{int((apart > 0).sum())} of {apart.numel()} differ, by up to {float(apart.max()):.4g}"


def fills(plan: Plan) -> list[FillStep]:
    return [s for s in plan.steps if isinstance(s, FillStep)]
