"""How a compiled static model is called: layouts of outputs, inputs that it cannot take, copies, what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import CallError, ConfigError, QuantConfig, StateError
from fxquant.compiler.capture.capture import capture
from fxquant.compiler.execution.inputs import Signature
from fxquant.compiler.execution.interface import ANY_CALL
from fxquant.compiler.execution.layouts import OutputLayouts
from fxquant.compiler.runtime.static_call import StaticCall

from .toys import Lambda

X = torch.randn(2, 3, 12, 12)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()


@pytest.mark.parametrize("executor", ("eager", "torchscript"))
@pytest.mark.parametrize("weights", (torch.contiguous_format, torch.channels_last))
def test_outputs_have_the_strides_of_fp32(executor: Any, weights: Any) -> None:
    model = net().to(memory_format=weights)  # type: ignore[call-overload]  # torch has no such overload
    q = fxquant.compile(model, calibration=[X], executor=executor)
    for x in (X, X.contiguous(memory_format=torch.channels_last), torch.cat([X, X])):
        assert q(x).stride() == model(x).stride()
    if weights == torch.contiguous_format:
        assert q(X).view(2, -1).shape == (2, 8 * 64)


def test_strides_of_nested_outputs() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.c(x)
        return {"image": y, "count": 3, "more": [y.mean((2, 3)), (m.d(y), "text")]}

    model = Lambda(forward, c=nn.Conv2d(3, 8, 3), d=nn.Conv2d(8, 4, 1)).eval()
    ours, theirs = fxquant.compile(model, calibration=[X])(X), model(X)
    assert ours["count"] == 3 and ours["more"][1][1] == "text" and isinstance(ours["more"][1], tuple)
    assert ours["image"].stride() == theirs["image"].stride()
    assert ours["more"][1][0].stride() == theirs["more"][1][0].stride()


def test_a_model_that_needs_contiguous_images() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.c(x.view(-1, 3, 12, 12)), x.view(-1)

    model = Lambda(forward, c=nn.Conv2d(3, 8, 3)).eval()
    q = fxquant.compile(model, calibration=[X])
    assert q(X)[0].stride() == model(X)[0].stride()


def test_layouts_of_a_model_that_draws_leave_random_numbers_alone() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.pool(m.c(x))
        return F.dropout(y, 0.5, training=True) + torch.binomial(torch.ones_like(y), torch.full_like(y, 0.5))

    model = Lambda(forward, c=nn.Conv2d(3, 8, 3), pool=nn.FractionalMaxPool2d(2, output_ratio=0.5)).eval()
    before = torch.get_rng_state()
    layouts = OutputLayouts.of(capture(model), ((X,), {}))
    assert layouts is not None and layouts.plain == (torch.contiguous_format,)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("executor", ("eager", "torchscript"))
@pytest.mark.parametrize(
    ("bad", "text"),
    (
        (X.double(), "Input 'input' has another dtype: got float64 (2, 3, 12, 12), calibrated with float32"),
        (X.int(), "Input 'input' is an integer tensor; forward() was traced for a float tensor."),
        (X[:, :2], "another number of channels: got float32 (2, 2, 12, 12)"),
        (X[0, 0], "another number of axes"),
        ("image", "Input 'input' is str; forward() was traced for a float tensor."),
        (X[..., :2, :2], "The call failed: "),
    ),
)
def test_a_wrong_input_is_named_in_one_line(executor: Any, bad: Any, text: str) -> None:
    q = fxquant.compile(net(), calibration=[X], executor=executor)
    with pytest.raises(CallError) as caught:
        q(bad)
    message = str(caught.value)
    assert text in message and "\n" not in message and len(message) < 300
    assert torch.isfinite(q(X)).all()


@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
def test_nan_and_inf_are_not_rounded_in_silence(value: float) -> None:
    q, x = fxquant.compile(net(), calibration=[X]), X.clone()
    x[1, 2, 3, 4] = value
    with pytest.raises(CallError, match="Input 'input' holds NaN or inf"):
        q(x)


def test_large_numbers_are_no_inf() -> None:
    """Their sum is."""
    q = fxquant.compile(net(), calibration=[X])
    assert torch.isfinite(q(torch.full_like(X, 3e38))).all()


def test_no_state_dict() -> None:
    q = fxquant.compile(net(), calibration=[X])
    with pytest.raises(StateError, match=r"Save the state_dict\(\) of the float model"):
        q.state_dict()
    with pytest.raises(StateError, match="cannot load a state_dict"):
        q.load_state_dict({})
    with pytest.raises(StateError, match=r"no state_dict\(\)"):
        nn.Sequential(q).state_dict()


class Counter(nn.Module):
    """Keeps a state, and sets an attribute when it is first called."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.layer, self.counts, self.calls, self.lazy = nn.Linear(8, 8), counts, 0, None

    def forward(self, x: Tensor) -> Tensor:
        if self.lazy is None:
            self.lazy = 1.0  # type: ignore[assignment]
        self.calls += self.counts
        out: Tensor = self.layer(x) * self.lazy + self.calls
        return out


def test_a_copy_has_a_state_of_its_own() -> None:
    x = torch.randn(2, 8)
    q = fxquant.compile(Counter(True).eval(), "dynamic")
    first = q(x)
    copied = copy.deepcopy(q)
    assert torch.allclose(q(x), first + 1) and torch.allclose(q(x), first + 2)
    assert torch.allclose(copied(x), first + 1)


def test_an_attribute_that_is_set_late_does_not_turn_the_fast_forms_off() -> None:
    x = torch.randn(2, 8)
    q = fxquant.compile(Counter(False).eval(), "dynamic")
    expected = q(x)
    for _ in range(3):
        assert torch.equal(q(x), expected)
    forms: Any = q._compiled.run  # type: ignore[union-attr]
    assert forms.faster and list(forms._chosen.values()) != [forms.model]


def test_what_would_be_ignored_is_refused() -> None:
    with pytest.raises(ConfigError, match="executor='torchscript' is for backend 'x86'"):
        fxquant.compile(net(), calibration=[X], backend="reference", executor="torchscript")
    with pytest.raises(ConfigError, match="observer='minmax' is for scheme 'static'"):
        fxquant.compile(net(), "dynamic", config=QuantConfig(observer="minmax"))
    with pytest.raises(ConfigError, match="calibration_batches is True"):
        fxquant.compile(net(), calibration=[X], calibration_batches=True)


def test_autocast_around_anything_changes_nothing() -> None:
    plain = fxquant.compile(net(), calibration=[X])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = fxquant.compile(net())
        around(X)
        around.freeze()
        assert torch.equal(around(X), plain(X)) and around(X).dtype == torch.float32
        rows = fxquant.sensitivity(net(), [X]).rows
    assert rows == fxquant.sensitivity(net(), [X]).rows


def test_a_small_output_is_not_ruined_beside_a_large_one() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.c(x)
        large, small = y[:, :4] * 1e4, y[:, 4:]
        z = torch.cat([large, small], 1)
        return z[:, :4], m.d(z[:, 4:] + 0)

    torch.manual_seed(0)
    model = Lambda(forward, c=nn.Conv2d(3, 8, 3), d=nn.Conv2d(4, 4, 1)).eval()
    large, small = fxquant.compile(model, calibration=[X])(X)
    for ours, theirs in zip((large, small), model(X), strict=True):
        assert 10 * torch.log10(theirs.square().mean() / (ours - theirs).square().mean()) > 10


@pytest.mark.parametrize(("error", "explained"), ((TimeoutError("late"), False), (RuntimeError("shape"), True)))
def test_only_errors_of_torch_are_explained(error: Exception, explained: bool) -> None:
    def run(x: Tensor) -> Tensor:
        raise error

    call = StaticCall(run, Signature(("x",), {}), (X,), None, ANY_CALL)
    with pytest.raises(CallError if explained else TimeoutError):
        call(X)


def test_other_kinds_of_tensors_are_refused_in_one_line() -> None:
    q = fxquant.compile(net(), calibration=[X])
    for x in (X.to("meta"), X.to_sparse(), X.to_mkldnn()):
        with pytest.raises(CallError, match="must be a dense tensor on the CPU"):
            q(x)


def test_the_compiled_module_stays_as_it_is() -> None:
    q = fxquant.compile(Counter(False).eval(), "dynamic")
    for change in (q.half, q.double, lambda: q.to(torch.bfloat16)):
        with pytest.raises(StateError, match="packed for this CPU"):
            change()


def test_moving_to_where_it_is_changes_nothing() -> None:
    q = fxquant.compile(net(), calibration=[X])
    expected = q(X)
    assert q.to("cpu") is q and q.float() is q and q.cpu() is q
    assert torch.equal(q(X), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_tracing_is_refused() -> None:
    q = fxquant.compile(net(), calibration=[X])
    with pytest.raises(StateError, match="cannot be traced"):
        torch.jit.trace(q, X)
