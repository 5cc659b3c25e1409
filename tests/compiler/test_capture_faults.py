"""Models as people write them that were once captured wrongly, or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import fxquant
from fxquant import CalibrationError, FallbackWarning, ModelError
from fxquant.compiler.numerics.metrics import sqnr

from .dynamic_toys import seeded
from .test_islands import compared
from .toys import Lambda

LINEARS: dict[str, Any] = {"l": nn.Linear(16, 16), "h": nn.Linear(16, 4)}


def rows(*shape: int) -> Tensor:
    return torch.randn(*(shape or (8, 16)))


def checked(model: nn.Module, calibration: list[Any], *others: Tensor, least: float = 20) -> fxquant.QuantizedModule:
    """Compile, and compare on the calibration data and ``others``, all in int8."""
    q = fxquant.compile(model, calibration=calibration)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        assert all(compared(q, model, x) > least for x in (calibration[0], *others))
    return q


def ones(m: Any, x: Tensor) -> Any:
    return m.h(F.relu(m.l(x)).mean(1) * torch.ones(x.shape[1], x.shape[1]).sum() / x.shape[1] ** 2)


def causal(m: Any, x: Tensor) -> Any:
    return m.h((torch.tril(torch.ones(x.shape[1], x.shape[1])) / x.shape[1]) @ F.relu(m.l(x)))


def exported(forward: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    """``forward`` with a branch on a size, which torch.fx does not trace."""

    def branching(m: Any, x: Tensor) -> Any:
        return forward(m, x) if x.shape[1] > 2 else x

    branching.__name__ = f"exported {forward.__name__}"
    return branching


def new_ones(m: Any, x: Tensor) -> Any:
    return m.h(m.l(x) * x.new_ones((x.shape[1],))[None, :, None])


def full(m: Any, x: Tensor) -> Any:
    return m.h(m.l(x) + torch.full((x.shape[1], 1), 0.5))


def eye(m: Any, x: Tensor) -> Any:
    return m.h(torch.eye(x.shape[1]) @ m.l(x))


@pytest.mark.parametrize(
    "forward", [ones, causal, *map(exported, (ones, causal, new_ones, full, eye))], ids=lambda f: f.__name__
)
def test_tensors_as_long_as_the_input(forward: Callable[[Any, Tensor], Any]) -> None:
    model = seeded(lambda: Lambda(forward, **LINEARS))
    checked(model, [rows(2, 10, 16) for _ in range(4)], rows(2, 25, 16), rows(3, 4, 16))


def test_an_upsampling_to_the_size_of_the_input() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.up(F.relu(m.down(x)), output_size=x.shape[-2:])

    down, up = nn.Conv2d(2, 8, 3, 2, 1), nn.ConvTranspose2d(8, 2, 3, 2, 1)
    model = seeded(lambda: Lambda(forward, down=down, up=up))
    checked(model, [rows(2, 2, 16, 16) for _ in range(4)], rows(2, 2, 17, 20), rows(1, 2, 16, 15))


class Hooked(nn.Module):
    """Reads what a hook keeps of a layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.h, self.kept = nn.Linear(16, 16), nn.Linear(16, 4), dict[str, Tensor]()
        self.l.register_forward_hook(lambda module, given, result: self.kept.__setitem__("l", result))

    def forward(self, x: Tensor) -> Any:
        self.l(x)
        return self.h(self.kept["l"].relu())


@pytest.mark.parametrize("called", ["never", "without gradients", "with gradients"])
@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_hooks_that_close_over_the_model(called: str, scheme: Any) -> None:
    model = seeded(Hooked)
    if called != "never":
        with torch.set_grad_enabled(called == "with gradients"):
            model(rows())
    data = [rows() for _ in range(4)]
    q = fxquant.compile(model, scheme, calibration=data if scheme == "static" else None)
    kept = dict(model.kept)  # type: ignore[arg-type]
    with torch.no_grad():
        given = q(data[0])
    assert dict(model.kept) == kept, "the model's own is not written to"  # type: ignore[arg-type]
    with torch.no_grad():
        assert sqnr([model(data[0])], [given]) > 20


def test_a_function_that_closes_over_the_model() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.h = nn.Linear(16, 16), nn.Linear(16, 4)
            self.body = lambda x: self.l(x).relu()

        def forward(self, x: Tensor) -> Any:
            return self.h(self.body(x))

    assert checked(seeded(Own), [rows() for _ in range(4)]).report.quantized_share == 1


def test_tied_weights_in_an_exported_model() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.l, self.head = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 50, bias=False)
            self.head.weight = self.e.weight

        def forward(self, ids: Tensor) -> Any:
            x = self.e(ids) if ids.shape[1] < 99 else self.e(ids[:, :99])
            return self.head(x + self.l(x))

    checked(seeded(Tied), [torch.randint(50, (2, 9)) for _ in range(3)], torch.randint(50, (3, 5)))


def test_convolutions_that_share_their_weight_in_an_exported_model() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x)) if x.shape[1] == 4 else x

    checked(seeded(Shared), [rows(2, 4, 8, 8) for _ in range(4)], rows(1, 4, 8, 8))


def test_any_keyword_arguments() -> None:
    class Open(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(16, 4)

        def forward(self, x: Tensor, **options: Any) -> Any:
            return self.l(x)

    model = seeded(Open)
    checked(model, [rows()], rows(3, 16), least=10)
    q = fxquant.compile(model, calibration=[{"x": rows(), "condition": rows()}])
    with torch.no_grad():
        assert sqnr([model(x := rows())], [q(x, condition=rows())]) > 10


@pytest.mark.parametrize(
    "join",
    [
        lambda y: torch.stack(y.chunk(2, 1)).sum(0),
        lambda y: torch.cat(y.split([4, 12], 1), 1)[:, :8],
        lambda y: torch.cat(y.chunk(4, 1)[::-1], 1)[:, :8],
        lambda y: torch.stack(y.unbind(1), 1)[:, 8:],
    ],
)
def test_all_parts_of_a_tensor_at_once(join: Callable[[Tensor], Tensor]) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.h(join(m.l(x)))

    checked(seeded(lambda: Lambda(forward, l=nn.Linear(16, 16), h=nn.Linear(8, 4))), [rows() for _ in range(4)])


def test_a_pruned_layer() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)))
    prune.l1_unstructured(model[0], "weight", 0.5)  # type: ignore[index]
    prune.random_unstructured(model[0], "weight", 0.1)  # type: ignore[index]
    assert checked(model, [rows() for _ in range(4)]).report.quantized_share == 1


def test_torchscript_inside_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Sequential(nn.Linear(16, 4)))
    with pytest.raises(ModelError, match="'1' is TorchScript"):
        fxquant.compile(nn.Sequential(nn.Linear(16, 16), scripted).eval(), calibration=[rows()])


def test_numpy_batches_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"is a numpy.ndarray: convert it with torch.from_numpy\(\)"):
        fxquant.compile(nn.Sequential(nn.Linear(16, 16)).eval(), calibration=[np.zeros((2, 16), np.float32)])


def test_an_image_of_one_pixel_is_resized() -> None:
    """torch's quantized kernels mistake its layout (image pooling of DeepLab)."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.l(x)
        return m.h(F.interpolate(m.m(F.adaptive_avg_pool2d(y, 1)), size=y.shape[2:], mode=m.mode) + y)

    for mode in ("nearest", "bilinear"):
        parts: dict[str, Any] = {"l": nn.Conv2d(3, 8, 3), "m": nn.Conv2d(8, 8, 1), "h": nn.Conv2d(8, 4, 1)}
        model = seeded(lambda parts=parts: Lambda(forward, **parts))  # type: ignore[misc]
        model.mode = mode  # type: ignore[assignment]
        checked(model, [rows(2, 3, 9, 9) for _ in range(4)])
