"""Calibration data: what may be given, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxquant
from fxquant import CalibrationError, ConfigError, ModelError
from fxquant.compiler.core.tensors import tensors_of
from fxquant.compiler.execution.sample import copy_batch, items_of

from .toys import compiled, images, small, sqnr


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(3, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        y: Tensor = self.a(left) + self.b(right)
        return y


def pairs(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(5, 6), torch.randn(5, 3)) for _ in range(count)]


def expected_to_work(model: nn.Module, calibration: Any, *inputs: Tensor) -> None:
    assert sqnr(model(*inputs), compiled(model, calibration)(*inputs)) > 25


@pytest.mark.parametrize("kind", ["tensors", "tuples", "lists", "dicts", "tuple of batches", "with targets"])
def test_batches_of_one_input(kind: str) -> None:
    xs = [images() for _ in range(3)]
    calibration: dict[str, Any] = {
        "tensors": xs,
        "tuples": [(x,) for x in xs],
        "lists": [[x] for x in xs],
        "dicts": [{"x": x} for x in xs],
        "tuple of batches": tuple(xs),
        "with targets": [(x, torch.zeros(2, dtype=torch.long)) for x in xs],
    }
    expected_to_work(small(), calibration[kind], xs[0])


@pytest.mark.parametrize("kind", ["tuples", "lists", "dicts", "with targets"])
def test_batches_of_two_inputs(kind: str) -> None:
    given = pairs()
    calibration: dict[str, Any] = {
        "tuples": given,
        "lists": [list(p) for p in given],
        "dicts": [{"right": b, "left": a} for a, b in given],
        "with targets": [(a, b, torch.zeros(5)) for a, b in given],
    }
    expected_to_work(TwoInputs(), calibration[kind], *given[0])


def test_data_loader_of_inputs_and_targets() -> None:
    xs = torch.randn(8, 3, 8, 8)
    loader: DataLoader[Any] = DataLoader(TensorDataset(xs, torch.arange(8)), batch_size=2)
    expected_to_work(small(), loader, xs[:2])


def test_data_loader_of_inputs_alone() -> None:
    xs = torch.randn(8, 3, 8, 8)
    loader: DataLoader[Any] = DataLoader(TensorDataset(xs), batch_size=4)
    expected_to_work(small(), loader, xs)


def test_the_result_takes_keyword_arguments() -> None:
    model, (left, right) = TwoInputs(), pairs(1)[0]
    q = compiled(model, pairs())
    assert torch.equal(q(right=right, left=left), q(left, right))


@pytest.mark.parametrize("limit", [1, 4])
def test_a_generator_is_read_no_further_than_asked(limit: int) -> None:
    read: list[int] = []

    def endless() -> Iterator[Tensor]:
        while True:
            read.append(1)
            yield images()

    compiled(small(), endless(), calibration_batches=limit)
    assert len(read) == limit


def test_batches_of_several_sizes() -> None:
    expected_to_work(small(), [images(1), images(4), images(2)], images(3))


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "no batch"),
        (iter(()), "no batch"),
        (3, "iterable of batches, got int"),
        ("data", "iterable of batches, got str"),
        ({"x": images()}, "iterable of batches, got dict"),
        (images(), r"got Tensor\. Wrap a single batch in a list: calibration=\[batch\]"),
        ([()], "batch 0 .*needs input 'x'"),
        ([(images(), images(), images())], "batch 0 .*takes 1 inputs .*got 3"),
        ([{"y": images()}], "batch 0 .*no input named 'y'"),
        ([images(), {}], "batch 1 .*needs input 'x'"),
        ([images() * torch.nan], "batch 0 holds NaN or inf in input 'x'"),
        ([images(), images() / 0], "batch 1 holds NaN or inf in input 'x'"),
    ],
)
def test_refusals(calibration: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        compiled(small(), calibration)


@pytest.mark.parametrize("batch", [images(size=12), images(channels=4), images().long(), 3.0, "text", None])
def test_a_first_batch_that_the_forward_does_not_take(batch: Any) -> None:
    with pytest.raises(CalibrationError, match="batch 0"):
        compiled(small(), [batch])


@pytest.mark.parametrize("batch", [images(size=12), images(channels=4), 3.0])
def test_a_later_batch_that_the_forward_does_not_take(batch: Any) -> None:
    with pytest.raises(CalibrationError, match=r"forward\(\) fails on calibration batch"):
        compiled(small(), [images(), batch])


def test_the_message_numbers_the_batch_that_fails() -> None:
    with pytest.raises(CalibrationError, match=r"batch 2 \(shapes \[\(2, 3, 12, 12\)\]\)"):
        compiled(small(), [images(), images(), images(size=12)])


def test_lazy_calls_are_checked_alike() -> None:
    q = fxquant.compile(small(), backend="reference")
    with pytest.raises(CalibrationError):
        q(images(), images())
    with pytest.raises(CalibrationError):
        q(images(size=12))


def test_nan_inside_of_the_model_names_the_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e10)
    with pytest.raises(CalibrationError, match="NaN or inf in the output of"):
        compiled(model, [images() * 1e30])


@pytest.mark.parametrize("limit", [0, -1, 2.5, "3"])
def test_calibration_batches_must_be_positive(limit: Any) -> None:
    with pytest.raises(ConfigError, match="calibration_batches"):
        compiled(small(), calibration_batches=limit)


def test_a_model_error_is_not_taken_for_bad_data() -> None:
    with pytest.raises(ModelError, match="nothing to quantize"):
        compiled(nn.Sequential(nn.GELU()))


def test_targets_in_a_dict_are_dropped() -> None:
    class Optional(TwoInputs):
        def forward(self, left: Tensor, right: Tensor, labels: Tensor | None = None) -> Tensor:
            y: Tensor = self.a(left) + self.b(right)
            return y if labels is None else y - labels[:, None]

    batches = [{"left": a, "right": b, "labels": torch.arange(5)} for a, b in pairs()]
    for model in (Optional(), TwoInputs()):
        expected_to_work(model, batches, *pairs(1)[0])


def test_kept_batches_have_tensors_of_their_own() -> None:
    """In containers, too: a loader may fill one buffer again and again."""
    buffer = torch.zeros(3, 4)
    kept = copy_batch((([buffer, {"x": buffer}], "name"), {"more": (buffer,)}))
    buffer.fill_(1)
    assert items_of(kept) == 3
    assert kept[0][1] == "name" and not any(t.any() for t in tensors_of([*kept[0], *kept[1].values()]))
