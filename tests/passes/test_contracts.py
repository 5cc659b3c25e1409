"""The runner checks the contract of every pass, and finds passes that lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import fxquant
from fxquant import ContractError, QuantConfig
from fxquant.passes.base import PassResult
from fxquant.passes.rewrites.eliminate_noops import EliminateNoops
from fxquant.passes.runner import PassRunner
from tests.compiler.toys import images, normalized, small
from tests.models import ZOO, batches, settled

from .random_graphs import PROGRAMS, RandomGraph, uneven

FORCED: dict[str, Any] = {"equalize": True, "smooth": True, "absorb_bias": True, "correct_bias": True}


class Lying:
    """A pass that says it is exact, and does something else once or each time."""

    name = "lying"
    exact = True

    def __init__(self, rewrite: Callable[[fx.GraphModule], int]) -> None:
        self.rewrite = rewrite

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        return PassResult(self.rewrite(gm))


def first_layer(gm: fx.GraphModule) -> fx.Node:
    return next(n for n in gm.graph.nodes if n.op == "call_module")


def scales_a_weight(gm: fx.GraphModule) -> int:
    with torch.no_grad():
        gm.get_submodule(str(first_layer(gm).target)).get_parameter("weight").mul_(1.01)
    return 0


def never_ends(gm: fx.GraphModule) -> int:
    return 1


def forgets_to_recompile(gm: fx.GraphModule) -> int:
    node = first_layer(gm)
    with gm.graph.inserting_after(node):
        new = gm.graph.call_function(torch.clone, (node,))
    node.replace_all_uses_with(new, lambda user: user is not new)
    return 0


def breaks_the_order(gm: fx.GraphModule) -> int:
    node = first_layer(gm)
    later = next(n for n in gm.graph.nodes if node in n.all_input_nodes)
    node.args = (later,)
    return 0


def changes_a_shape(gm: fx.GraphModule) -> int:
    node = first_layer(gm)
    if node.args[0].target is not torch.cat:  # type: ignore[union-attr]
        with gm.graph.inserting_before(node):
            doubled = gm.graph.call_function(torch.cat, ([node.args[0], node.args[0]], 0))
        node.args = (doubled,)
        gm.recompile()
    return 0


def output_of(gm: fx.GraphModule) -> fx.Node:
    return next(n for n in gm.graph.nodes if n.op == "output")


def through(gm: fx.GraphModule, function: Callable[..., Any], *args: Any) -> int:
    """Put a function in front of the output, unless it is there."""
    output = output_of(gm)
    given: Any = output.args[0]
    if given.target is not function:
        with gm.graph.inserting_before(output):
            output.args = (gm.graph.call_function(function, (given, *args)),)
        gm.recompile()
    return 0


def changes_the_dtype(gm: fx.GraphModule) -> int:
    return through(gm, torch.Tensor.double)


def does_not_run(gm: fx.GraphModule) -> int:
    return through(gm, torch.reshape, (3, 3, 3))


def changes_the_mode(gm: fx.GraphModule) -> int:
    gm.get_submodule(str(first_layer(gm).target)).train()
    return 0


def draws_numbers(gm: fx.GraphModule) -> int:
    torch.rand(1)
    return 0


def changes_again(gm: fx.GraphModule) -> int:
    output = output_of(gm)
    with gm.graph.inserting_before(output):
        output.args = (gm.graph.call_function(torch.clone, (output.args[0],)),)
    gm.recompile()
    return 0


def counts_in_words(gm: fx.GraphModule) -> Any:
    return "one"


@pytest.mark.parametrize(
    ("rewrite", "message"),
    [
        (scales_a_weight, r"claims to be exact, but changes the output: \d+"),
        (never_ends, "rewrites 1 more places in a second run"),
        (forgets_to_recompile, r"it must call recompile\(\)"),
        (breaks_the_order, "does not lint"),
        (changes_a_shape, r"changes the shape of '\w+' from"),
        (changes_the_dtype, r"changes the outputs from .*float32.* to .*float64"),
        (does_not_run, "leaves a graph that does not run: shape"),
        (changes_the_mode, "changes the training mode"),
        (draws_numbers, "changes the state of torch's random number generator"),
        (changes_again, "changes the graph in a second run"),
        (counts_in_words, "reports 'one' rewrites"),
    ],
)
def test_a_pass_that_lies_is_found(rewrite: Callable[[fx.GraphModule], int], message: str) -> None:
    gm = normalized(small())
    PassRunner().run(Lying(rewrite), gm)  # without checks it passes
    gm = normalized(small())
    runner = PassRunner(debug=True, example=((images(),), {}))
    with pytest.raises(ContractError, match=f"Pass 'lying' .*{message}"):
        runner.run(Lying(rewrite), gm)


@pytest.mark.parametrize(
    ("result", "message"),
    [(None, "returns NoneType, not a PassResult"), (PassResult(0, {"conv": "?"}), "keys are no nodes")],  # type: ignore[dict-item]
)
def test_a_result_of_the_wrong_kind_is_found(result: Any, message: str) -> None:
    runner = PassRunner(debug=True, example=((images(),), {}))
    with pytest.raises(ContractError, match=message):
        runner.run(type("Wrong", (Lying,), {"__call__": lambda self, gm: result})(never_ends), normalized(small()))


def test_a_changed_integer_output_is_found() -> None:
    class Wrong(Lying):
        def __call__(self, gm: fx.GraphModule) -> PassResult:
            node: Any = output_of(gm).args[0]
            node.target = torch.argmin
            gm.recompile()
            return PassResult(0)

    gm = normalized(small())
    through(gm, torch.argmax, 1)
    with pytest.raises(ContractError, match="changes an integer output"):
        PassRunner(debug=True, example=((images(),), {})).run(Wrong(never_ends), gm)


def test_a_lie_before_there_is_data_is_found_in_a_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(self: EliminateNoops, gm: fx.GraphModule) -> PassResult:
        return PassResult(scales_a_weight(gm))

    monkeypatch.setattr(EliminateNoops, "__call__", lying)
    with pytest.raises(ContractError, match="Pass 'eliminate_noops' claims to be exact"):
        fxquant.compile(small(), calibration=[images()], backend="reference", debug=True)


def test_an_honest_pass_is_not_accused() -> None:
    runner = PassRunner(debug=True, keep_snapshots=True, example=((images(),), {}))
    assert runner.run(Lying(lambda gm: 0), normalized(small())).rewrites == 0
    assert list(runner.snapshots) == ["lying"]


def cropped(name: str, count: int, batch: int) -> list[tuple[Tensor, ...]]:
    """Small images, as no pass depends on their size; the positions of ``vit`` do."""
    size = 224 if name == "vit" else 64
    return [tuple(x[..., :size, :size] if x.dim() == 4 else x for x in b) for b in batches(name, count, batch)]


QUICK = (
    ("resnet18", "per_tensor_symmetric"),  # only these weights are equalized
    ("shufflenet_v2", "per_channel_symmetric"),
    ("mobilenet_v3_large", "per_channel_symmetric"),
    ("bert_encoder", "per_channel_symmetric"),  # smoothed
)
ALL = [(name, weight) for name in ZOO for weight in ("per_channel_symmetric", "per_tensor_symmetric")]
CASES = [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in ALL]


@pytest.mark.parametrize(("name", "weight"), CASES)
def test_every_pass_of_a_static_compilation_on_the_zoo(name: str, weight: Any) -> None:
    config = QuantConfig(weight=weight, observer="measured", **FORCED)
    q = fxquant.compile(settled(name), calibration=cropped(name, 2, 2), config=config, backend="reference", debug=True)
    assert q.report.counts.get("int8", 0) > 0


@pytest.mark.parametrize("name", ["mobilenet_v3_large", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_every_pass_of_training_on_the_zoo(name: str) -> None:
    (data,) = cropped(name, 1, 2)
    prepared = fxquant.prepare(settled(name), scheme="qat", calibration=[data], debug=True).train()
    prepared(*data).square().mean().backward()
    assert fxquant.convert(prepared.eval()).report.counts["int8"] > 0


@pytest.mark.parametrize("name", ["bert_encoder", "lstm_classifier"])
def test_every_pass_of_a_dynamic_compilation(name: str) -> None:
    q = fxquant.compile(settled(name), scheme="dynamic", debug=True, snapshots=True)
    assert {"merge_linears", "absorb_relus", "swap"} <= q.snapshots.keys()


def test_learned_rounding_and_dynamic_layers_keep_the_contract() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16), nn.ReLU(), nn.Linear(16, 5))
    config = QuantConfig(rounding="learned", rounding_seconds=2.0, overrides={"3": "dynamic"}, **FORCED)
    q = fxquant.compile(model.eval(), calibration=[images(4) for _ in range(2)], config=config, debug=True)
    assert {row.precision for row in q.report.rows} >= {"int8", "int8 dynamic"}


@settings(max_examples=15)
@given(program=PROGRAMS, seed=st.integers(0, 999))
def test_random_graphs(program: list[tuple[str, int, int]], seed: int) -> None:
    torch.manual_seed(seed)
    model = uneven(RandomGraph(program), 1.0)
    config = QuantConfig(weight="per_tensor_symmetric", mixed_precision=False, **FORCED)
    fxquant.compile(
        model, calibration=[torch.randn(2, 3, 6, 6) for _ in range(2)], config=config, backend="reference", debug=True
    )
