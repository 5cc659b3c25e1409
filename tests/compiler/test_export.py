"""Models that torch.fx cannot trace: forward() computes with sizes, decides by them, or changes views in place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import CalibrationError, CallError, FallbackWarning, StateError
from fxquant.compiler.numerics.metrics import sqnr

from .in_place_cases import REFUSED
from .toys import Lambda

IMAGES = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(1))

Forward = Callable[[Any, Tensor], Any]


def branch_on_size(m: Any, x: Tensor) -> Any:
    if x.size(1) != 3:
        raise ValueError(f"3 channels are needed, not {x.size(1)}")
    return m.d(m.c(x)) if x.shape[2] > 4 else m.c(x)


def loop_over_size(m: Any, x: Tensor) -> Any:
    y = m.l(x)
    for i in range(x.size(2) // 8):
        y = y + m.l(x) * (i + 1)
    return y


def unpacked_shape(m: Any, x: Tensor) -> Any:
    return m.l(x).view(*x.shape[:-1], 4, 4).transpose(1, 2).flatten(2)


def sliced_table(m: Any, x: Tensor) -> Any:
    scores = m.l(x) @ m.l(x).transpose(1, 2)
    return scores.masked_fill(m.causal[:, : x.size(1), : x.size(1)] == 0, -1e4).softmax(-1) @ x


def item_assignment(m: Any, x: Tensor) -> Any:
    y = m.l(x)
    y[:, :2] = 0
    y[:, -1:] += 1
    return m.l(y)


def same_padding(m: Any, x: Tensor) -> Any:
    wanted = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:]]
    return m.strided(F.pad(x, [wanted[1] // 2, wanted[1] - wanted[1] // 2, wanted[0] // 2, wanted[0] - wanted[0] // 2]))


def nested_results(m: Any, x: Tensor) -> Any:
    if len(x.shape) == 3:
        y = m.l(x)
    return {"out": y, "more": [y.mean(1), (None, 3, "text")]}


def no_grad_inside(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        table = torch.arange(x.size(1)).float()[None, :, None] / max(x.size(1), 1)
    return m.l(x + table)


PARTS: dict[str, Any] = {
    "c": nn.Conv2d(3, 8, 3), "d": nn.Conv2d(8, 8, 1), "strided": nn.Conv2d(3, 8, 3, 2), "l": nn.Linear(16, 16),
    "causal": torch.ones(1, 32, 32).tril(),
}  # fmt: skip
FORWARDS: list[tuple[Forward, Tensor]] = [
    (branch_on_size, IMAGES), (loop_over_size, TOKENS), (unpacked_shape, TOKENS), (sliced_table, TOKENS),
    (item_assignment, TOKENS), (same_padding, IMAGES), (nested_results, TOKENS), (no_grad_inside, TOKENS),
]  # fmt: skip


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [t for item in items for t in tensors(item)]


def check(q: Any, model: nn.Module, *args: Any) -> None:
    with torch.no_grad():
        expected, given = tensors(model(*args)), tensors(q(*args))
    assert [t.shape for t in expected] == [t.shape for t in given]
    assert sqnr(expected, given) > 25


@pytest.mark.parametrize(("forward", "x"), FORWARDS, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("batch", (1, 4))
def test_any_batch_size_computes_the_same(forward: Forward, x: Tensor, batch: int) -> None:
    torch.manual_seed(0)
    model = Lambda(forward, **copy.deepcopy(PARTS)).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    q = fxquant.compile(model, calibration=x.split(batch))
    assert any(row.op.startswith(("conv", "linear")) for row in q.report.rows)
    for part in (x, x[:1], x[:3]):
        check(q, model, part)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_structure_of_the_results_is_kept() -> None:
    model = Lambda(nested_results, **PARTS).eval()
    out = fxquant.compile(model, calibration=[TOKENS])(TOKENS)
    assert list(out) == ["out", "more"] and out["more"][1] == (None, 3, "text") and isinstance(out["more"], list)


@pytest.mark.parametrize("length", (1, 5, 6, 11))
def test_other_lengths_of_a_sequence(length: int) -> None:
    model = Lambda(sliced_table, **PARTS).eval()
    q = fxquant.compile(model, calibration=[TOKENS])
    check(q, model, torch.cat((TOKENS, TOKENS), 1)[:2, :length])  # within the calibrated ranges


@pytest.mark.parametrize("forward", REFUSED)
def test_in_place_changes_of_any_view(forward: Forward) -> None:
    torch.manual_seed(0)
    model = Lambda(forward, c=nn.Conv2d(3, 8, 3), d=nn.Conv2d(8, 8, 1)).eval()
    check(fxquant.compile(model, calibration=[IMAGES]), model, IMAGES)


class Masked(nn.Module):
    """An optional mask and a flag, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, doubled: bool = False, **other: Any
    ) -> dict[str, Tensor]:
        batch, length, _ = x.shape
        scores = self.q(x).view(batch, length, 4, 4).transpose(1, 2) @ self.k(x).view(batch, length, 4, 4).permute(
            0, 2, 3, 1
        )
        if mask is not None:
            scores = scores + (1 - mask[:, None, None, :]) * -1e4
        mixed = (scores.softmax(-1) @ x.view(batch, length, 4, 4).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        return {"y": self.out(mixed) * (2 if doubled else 1)}


def test_inputs_by_name_with_defaults_and_flags() -> None:
    torch.manual_seed(0)
    model, mask = Masked().eval(), (torch.rand(4, 6) > 0.3).float()
    q = fxquant.compile(model, calibration=[{"x": TOKENS, "mask": mask, "doubled": True}])
    with torch.no_grad():
        expected, given = model(TOKENS[:2], mask[:2], doubled=True), q(TOKENS[:2], mask[:2], doubled=True)
        assert sqnr([expected["y"]], [given["y"]]) > 25
    with pytest.raises(CallError, match="Input 'mask' has size 5 on axis 1; forward\\(\\) was traced for 6"):
        q(TOKENS, mask[:, :5])
    with pytest.warns(FallbackWarning, match="in fp32 in such calls: Input 'doubled' is False; forward"):
        assert torch.equal(q(TOKENS, mask)["y"], model(TOKENS, mask)["y"]), "as forward() has it by default"
    assert torch.equal(q(TOKENS[:1], mask[:1])["y"], model(TOKENS[:1], mask[:1])["y"]), "without a second warning"
    with pytest.warns(FallbackWarning, match="Input 'mask' is None"):
        assert torch.equal(q(TOKENS, None, doubled=True)["y"], model(TOKENS, None, doubled=True)["y"])
    with torch.no_grad():
        model.out.weight.mul_(2)
    with pytest.raises(CallError, match="Input 'mask' is None; forward\\(\\) was traced for a tensor"):
        q(TOKENS, None, doubled=True)  # the model is not what was compiled
    without = fxquant.compile(model, calibration=[TOKENS])
    check(without, model, TOKENS)


def test_calibration_with_calls_of_two_kinds_is_refused() -> None:
    batches = [{"x": TOKENS, "doubled": True}, {"x": TOKENS}]
    with pytest.raises(CalibrationError, match="Calibration batch 1: Input 'doubled' is False; forward"):
        fxquant.compile(Masked().eval(), calibration=batches)


def test_lists_and_dicts_of_inputs() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(16, 16)

        def forward(self, parts: list[Tensor], named: dict[str, Tensor]) -> Tensor:
            total = sum(self.l(part) for part in parts if part.size(1) > 1)
            return total * named["scale"]

    model, batch = Lists().eval(), ([TOKENS, TOKENS * 2], {"scale": torch.tensor(2.0)})
    q = fxquant.compile(model, calibration=[batch])
    check(q, model, *batch)
    with pytest.raises(CallError, match="Input 'parts\\[1\\]' has size 2 on axis 0"):
        q([TOKENS, TOKENS[:2]], batch[1])


def test_a_size_that_forward_decided_by_is_checked() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.l(x) if x.size(1) > 4 else m.l(x) * 2

    model = Lambda(forward, **PARTS).eval()
    q = fxquant.compile(model, calibration=[TOKENS])
    check(q, model, TOKENS[:2, :5])
    with pytest.warns(FallbackWarning, match="'x' has size 4 on axis 1; forward\\(\\) was traced for 5 or more"):
        given = q(TOKENS[:2, :4])
    assert torch.equal(given, model(TOKENS[:2, :4]))


def test_what_changes_a_buffer_stays_python() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(16, 16)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Any:
            assert isinstance(self.calls, Tensor)
            self.calls.add_(x.size(1))
            return self.l(x) * self.calls if x.size(1) > 1 else x

    model = Counting().eval()
    q = fxquant.compile(model, calibration=[TOKENS])
    assert "changes 'calls'" in q.report.islands[""]
    for _ in range(3):
        check(q, model, TOKENS)


def test_calibration_by_calls() -> None:
    model = Lambda(sliced_table, **PARTS).eval()
    q = fxquant.compile(model)
    assert torch.allclose(q(TOKENS), model(TOKENS), atol=1e-5)
    q(TOKENS * 0.5)
    check(q.freeze(), model, TOKENS)


def test_before_the_first_batch_there_is_no_graph() -> None:
    prepared = fxquant.prepare(Lambda(sliced_table, **PARTS).eval())
    assert str(prepared)
    with pytest.raises(StateError, match="no graph before the first batch"):
        _ = prepared.graph
