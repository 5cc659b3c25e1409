"""The frozen program: no backend changes it, and every backend can run it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import StateError
from fxquant.backends.base.program import FrozenProgram, copy_program
from fxquant.backends.registry import BackendName, create_backend
from fxquant.compiler.core.tensors import tensors_of
from fxquant.passes.dynamic.layer_maker import LayerMaker
from tests.compiler.toys import Lambda, compiled, images, small, sqnr


def state(program: FrozenProgram) -> tuple[str, dict[str, Tensor]]:
    """The code, and copies of all tensors."""
    return str(program.module.graph), {n: t.clone() for n, t in program.module.state_dict().items()}


def residual() -> nn.Module:
    """What x86 fuses and enters in fp32: conv + add, conv + hardswish, a first convolution."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(m.stem(x))
        x = nn.functional.relu(m.a(x) + x)
        out: Tensor = m.head(x.mean((2, 3)))
        return out

    layers = {"stem": nn.Conv2d(3, 16, 3, padding=1), "a": nn.Conv2d(16, 16, 3, padding=1), "head": nn.Linear(16, 5)}
    return Lambda(forward, **layers).eval()


@pytest.mark.parametrize("name", ["llvm", "x86"])
def test_lowering_leaves_the_program_as_it_is(name: BackendName) -> None:
    q = fxquant.compile(residual(), calibration=[images(4) for _ in range(3)], backend=name)
    program = q.program
    before = state(program)
    backend = create_backend(name)
    first, second = (backend.lower(program, {}) for _ in range(2))
    after = state(program)
    assert before[0] == after[0] and all(torch.equal(t, after[1][n]) for n, t in before[1].items())
    x = images(4)
    with torch.no_grad():
        assert torch.equal(first.run(x), second.run(x)) and torch.equal(first.run(x), q(x))


def test_another_backend_runs_it() -> None:
    model, batches = residual(), [images(8) for _ in range(3)]
    q = fxquant.compile(model, calibration=batches)
    other = create_backend("reference").lower(q.program, {})
    with torch.no_grad():
        assert torch.equal(other.run(batches[0]), q.program(batches[0]))
        assert sqnr(q(batches[0]), other.run(batches[0])) > 25


def test_fused_kernels_show_in_the_graph_but_not_in_the_program() -> None:
    q = fxquant.compile(residual(), calibration=[images(4) for _ in range(3)])
    pairs = [sum("dequantize" in n.name for n in g.nodes) for g in (q.program.module.graph, q.graph.graph)]
    assert pairs[0] >= pairs[1]


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_dynamic_layers_are_specifications_without_kernels(scheme: Any) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    options: dict[str, Any] = {}
    if scheme == "static":
        options = {
            "calibration": [torch.randn(8, 16) for _ in range(3)],
            "config": fxquant.QuantConfig(overrides={"2": "dynamic"}),
        }
    q = fxquant.compile(model, scheme=scheme, **options)
    layers = q.program.dynamic_layers
    assert "2" in layers
    (spec,) = layers["2"].spec
    assert spec.layer.get_parameter("weight").is_meta and spec.layer.get_parameter("bias").device.type == "cpu"
    x = torch.randn(4, 16)
    with torch.no_grad():
        assert sqnr(q(x), q.program(x)) > 25
        # A backend makes its kernels from the specifications alone.
        made = copy_program(q.program, {m: _compiled(m) for m in layers.values()})
        assert sqnr(q(x), tensors_of(made.program(x))[0]) > 25


def _compiled(reference: Any) -> Any:
    (spec,) = reference.spec
    make = create_backend("x86").bindings[spec.op].dynamic
    assert make is not None
    return make(spec)


def test_layers_are_made_once() -> None:
    maker = LayerMaker(create_backend("x86"))
    from fxquant.passes.dynamic.plan import LayerRequest

    layer, request = nn.Linear(8, 4), LayerRequest(torch.int8, fxquant.QuantConfig())
    assert maker.make(layer, request, relu=False) is maker.make(layer, request, relu=False)


def test_a_copy_has_nodes_of_its_own_and_runs_alike() -> None:
    program = compiled(small()).program
    twin = copy.deepcopy(program)
    x = images()
    assert torch.equal(twin(x), program(x)) and twin != program
    assert {n.graph for n in (*twin.fp32, *twin.values)} <= {twin.module.graph}


def test_it_cannot_be_pickled() -> None:
    with pytest.raises(StateError, match="cannot be pickled"):
        pickle.dumps(compiled(small()).program)
