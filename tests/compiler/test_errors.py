"""What is refused, with which error and which words; and every error is one of ours."""

from __future__ import annotations

import threading
import warnings
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import ConfigError, FxquantError, ModelError

from .toys import Lambda, compiled, data, images, small


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("path", ["body.0.weight", "head.bias", "bn.running_var"])
def test_nan_weights_name_the_layer(path: str, bad: float) -> None:
    model = small()
    with torch.no_grad():
        model.state_dict()[path].view(-1)[0] = bad
    layer, _, leaf = path.rpartition(".")
    with pytest.raises(ModelError, match=rf"{leaf} of layer '{layer}' holds NaN or inf"):
        compiled(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=rf"'stem.weight' is {dtype}.*model\.float\(\)"):
        compiled(small().to(dtype))


def test_other_devices() -> None:
    with pytest.raises(ModelError, match=r"'stem.weight' is on device 'meta'.*model\.cpu\(\)"):
        compiled(small().to("meta"))


def test_an_already_compiled_model() -> None:
    q = compiled(small())
    with pytest.raises(ModelError, match=r"already quantized: QuantizedModule\. Compile the float model"):
        compiled(q)
    with pytest.raises(ModelError, match=r"already quantized: '0' \(QuantizedModule\)"):
        compiled(nn.Sequential(q))
    with pytest.raises(ModelError, match="already quantized"):
        compiled(fxquant.prepare(small(), backend="reference"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "statik"}, "scheme is 'statik'. Did you mean 'static'"),
        ({"backend": "x68"}, "backend is 'x68'. Did you mean 'x86'"),
        ({"executor": "eagre"}, "executor is 'eagre'. Did you mean 'eager'"),
        ({"executor": "qqqq"}, "Valid: .*'eager', 'torchscript'"),
        ({"scheme": None}, "scheme is None"),
    ],
)
def test_unknown_choices(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compiled(small(), **options)


@pytest.mark.parametrize("model", [torch.relu, None, 3, small().state_dict(), nn.Conv2d])
def test_what_is_no_module(model: Any) -> None:
    with pytest.raises(ModelError, match=r"Expected an nn\.Module, got"):
        compiled(model)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.GELU()),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
        Lambda(lambda m, x: x),
        Lambda(lambda m, x: torch.sin(x)),
        Lambda(lambda m, x: torch.sin(F.gelu(x) + x)),
    ],
)
def test_nothing_to_quantize(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="nothing to quantize"):
        compiled(model)


def test_nothing_to_quantize_tells_why() -> None:
    with pytest.raises(ModelError, match=r"(?s)nothing to quantize.*conv: left in fp32 by override '\*'"):
        compiled(
            Lambda(lambda m, x: m.conv(x), conv=nn.Conv2d(3, 3, 1)),
            config=fxquant.QuantConfig(overrides={"*": None}),
        )


def test_a_model_that_cannot_be_copied() -> None:
    model = small()
    vars(model)["kept"] = threading.Lock()
    with pytest.raises(ModelError, match=r"Small cannot be deep-copied"):
        compiled(model)


def test_a_lazy_module_without_shapes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(FxquantError):
        compiled(model, [torch.randn(2, 3)])


class Counted(nn.Module):
    """An op that keeps state outside of the graph is left as it is, but never silently wrong in shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.conv(x)
        return {"out": y, "parts": [y.relu(), (y + 1,)]}


def test_structured_outputs_keep_their_form() -> None:
    model = Counted().eval()
    x = images()
    q = compiled(model)
    ours, theirs = q(x), model(x)
    assert list(ours) == list(theirs)
    assert ours["out"].shape == theirs["out"].shape
    assert isinstance(ours["parts"][1], tuple) and ours["parts"][0].shape == (*x.shape[:1], 4, 8, 8)


def test_errors_are_also_of_the_builtin_kinds() -> None:
    assert issubclass(ConfigError, ValueError) and issubclass(ModelError, ValueError)
    assert issubclass(fxquant.CalibrationError, ValueError)
    assert issubclass(fxquant.StateError, RuntimeError)


def test_the_reference_takes_no_unknown_executor() -> None:
    with pytest.raises(ConfigError, match="executor"):
        fxquant.compile(small(), calibration=data(), backend="reference", executor=cast(Any, "jit"))
