"""One or more small models for every row of the x86 op table, each with inputs that reach the row's kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantConfig

Inputs = Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class OpCase:
    """A model that uses a row of the op table.

    Attributes:
        name: unique.
        build: makes the model; called under a fixed seed.
        inputs: forward arguments for a batch size, from the global RNG.
        rule: the row's name.
        int8: whether the report must say int8 for the op; else fp32 with a reason.
        gone: the op does nothing, or gives a size: it has no row in the report.
        single: one op between a quantize and a dequantize, so that results differ by one step of rounding only.
        config: how it is compiled.
        other: inputs of another spatial size, where the model takes any.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    rule: str
    int8: bool = True
    gone: bool = False
    single: bool = False
    config: QuantConfig = field(default_factory=QuantConfig)
    other: Inputs | None = None


class Fn(nn.Module):
    """`fn(layers, *inputs)` as a module."""

    def __init__(self, fn: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.fn = fn

    def forward(self, *args: Tensor) -> Any:
        return self.fn(self.layers, *args)


def _one(fn: Callable[..., Any], **layers: nn.Module) -> nn.Module:
    """A module whose forward takes one tensor (fx traces no `*args`)."""

    class One(Fn):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return self.fn(self.layers, x)

    return One(fn, **layers)


def _two(fn: Callable[..., Any], **layers: nn.Module) -> nn.Module:
    class Two(Fn):
        def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
            return self.fn(self.layers, x, y)

    return Two(fn, **layers)


def normal(*shape: int) -> Inputs:
    """A normal tensor `[batch, *shape]`."""
    return lambda batch: (torch.randn(batch, *shape),)


def pair(first: tuple[int, ...], second: tuple[int, ...], gain: float = 2.0) -> Inputs:
    """Two tensors of different ranges."""
    return lambda batch: (torch.randn(batch, *first), gain * torch.randn(batch, *second) + 0.5)


IMAGE = (8, 10, 12)
OTHER = (8, 14, 8)
CASES: list[OpCase] = []


def case(name: str, rule: str, build: Callable[[], nn.Module], inputs: Inputs | None = None, **options: Any) -> None:
    """Add a case; over images, unless other inputs are given."""
    if inputs is None:
        inputs = normal(*IMAGE)
        options.setdefault("other", normal(*OTHER))
    CASES.append(OpCase(name, build, inputs, rule, **options))


def only(rule: str) -> dict[str, Any]:
    """Options for an op that is int8 all alone."""
    return {"single": True, "config": QuantConfig(overrides={rule: QuantConfig()})}


def conv(cin: int = 8, cout: int = 8, kernel: int = 3, **options: Any) -> nn.Conv2d:
    options.setdefault("padding", kernel // 2)
    return nn.Conv2d(cin, cout, kernel, **options)


# Weighted ops -------------------------------------------------------------------------------------------------

for _name, _options in {
    "plain": {},
    "pointwise": {"kernel": 1},
    "stride": {"stride": 2},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2},
    "depthwise": {"groups": 8},
    "depthwise_5x5_stride": {"groups": 8, "kernel": 5, "stride": 2},
    "depthwise_multiplier": {"groups": 8, "cout": 16},
    "same": {"padding": "same"},
    "valid": {"padding": "valid"},
    "same_dilated": {"padding": "same", "dilation": 2},
    "no_bias": {"bias": False},
    "wide": {"cout": 24, "kernel": 1},
    "uneven_stride": {"stride": (2, 1), "padding": (0, 1)},
}.items():
    case(f"conv2d_{_name}", "conv2d", lambda o=_options: nn.Sequential(conv(**o)), single=True)  # type: ignore[misc]

case("conv2d_image", "conv2d", lambda: nn.Sequential(conv(3, 16, stride=2)), normal(3, 16, 16), single=True,
     other=normal(3, 20, 12))  # fmt: skip
case("conv2d_same_even", "conv2d", lambda: nn.Sequential(conv(), conv(8, 8, 4, padding="same"), conv()), int8=False)
case("conv2d_reflect", "conv2d", lambda: nn.Sequential(conv(), conv(padding_mode="reflect"), conv()), int8=False)
case("conv2d_functional", "conv2d", lambda: FunctionalConv())
case("conv1d", "conv1d", lambda: nn.Sequential(nn.Conv1d(8, 12, 3, padding=1)), normal(8, 20), single=True,
     other=normal(8, 31))  # fmt: skip
case("conv1d_strided_groups", "conv1d", lambda: nn.Sequential(nn.Conv1d(8, 12, 5, stride=2, groups=4, bias=False)),
     normal(8, 20), single=True, other=normal(8, 31))  # fmt: skip
case("conv3d", "conv3d", lambda: nn.Sequential(nn.Conv3d(4, 8, 3, padding=1)), normal(4, 4, 6, 6), single=True,
     other=normal(4, 3, 8, 5))  # fmt: skip
case("conv3d_strided", "conv3d", lambda: nn.Sequential(nn.Conv3d(4, 8, (1, 3, 3), stride=(1, 2, 2))),
     normal(4, 4, 6, 6), single=True)  # fmt: skip

for _name, (_cin, _cout, _kernel, _stride, _rest) in {
    "window_2_stride_2": (8, 8, 2, 2, {}),
    "window_2_stride_2_narrower": (16, 4, 2, 2, {}),
    "3_2_1": (8, 8, 3, 2, {"padding": 1}),
    "3_2_1_wider": (8, 12, 3, 2, {"padding": 1}),
    "output_padding": (8, 8, 3, 2, {"padding": 1, "output_padding": 1}),
    "4_2_1_no_bias": (8, 4, 4, 2, {"padding": 1, "bias": False}),
}.items():
    case(f"conv_transpose2d_{_name}", "conv_transpose2d",
         lambda a=(_cin, _cout, _kernel, _stride), o=_rest: nn.Sequential(nn.ConvTranspose2d(*a, **o)),  # type: ignore[misc]
         normal(_cin, 5, 6), single=True, other=normal(_cin, 7, 4))  # fmt: skip
case("conv_transpose1d", "conv_transpose1d", lambda: nn.Sequential(nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1)),
     normal(8, 10), single=True, other=normal(8, 13))  # fmt: skip
case("conv_transpose1d_same_channels", "conv_transpose1d", lambda: nn.Sequential(nn.ConvTranspose1d(8, 8, 2, stride=2)),
     normal(8, 10), single=True)  # fmt: skip
case("conv_transpose3d", "conv_transpose3d", lambda: nn.Sequential(nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1)),
     normal(4, 3, 4, 4), single=True)  # fmt: skip
case("conv_transpose2d_groups", "conv_transpose2d",
     lambda: nn.Sequential(conv(), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2), conv()), int8=False)  # fmt: skip

case("linear_to_fp32", "linear", lambda: nn.Sequential(nn.Linear(24, 10)), normal(24), single=True)
for name, clamp in (("relu", nn.ReLU), ("relu6", nn.ReLU6)):
    case(
        f"linear_{name}_to_fp32",
        "linear",
        partial(lambda clamp: nn.Sequential(nn.Linear(24, 10), clamp()), clamp),
        normal(24),
        single=True,
    )
case(
    "linear_linear",
    "linear",
    lambda: nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 10)),
    normal(24),
)
case("linear_no_bias_sequence", "linear",
     lambda: nn.Sequential(nn.Linear(24, 32, bias=False), nn.ReLU(), nn.Linear(32, 10)), normal(7, 24))  # fmt: skip
case("embedding", "embedding", lambda: nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 8)),
     lambda batch: (torch.randint(30, (batch, 6)),))  # fmt: skip
case("embedding_padding_idx", "embedding", lambda: nn.Sequential(nn.Embedding(30, 16, padding_idx=0), nn.Linear(16, 8)),
     lambda batch: (torch.randint(30, (batch, 6)),))  # fmt: skip
case("embedding_max_norm", "embedding",
     lambda: nn.Sequential(nn.Embedding(30, 16, max_norm=1.0), nn.Linear(16, 8)),
     lambda batch: (torch.randint(30, (batch, 6)),), int8=False)  # fmt: skip


class FunctionalConv(nn.Module):
    """`F.conv2d` over parameters of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8, 3, 3) / 8)
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


# Clamps -------------------------------------------------------------------------------------------------------

_CLAMPS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.7),
    "clamp": lambda: _one(lambda _, x: x.clamp(-0.25, 0.8)),
}
for _rule, _clamp in _CLAMPS.items():
    case(f"{_rule}_behind_conv", _rule, lambda c=_clamp: nn.Sequential(conv(), c()), single=True)  # type: ignore[misc]
    case(f"{_rule}_behind_linear", _rule, lambda c=_clamp: nn.Sequential(nn.Linear(24, 16), c(), nn.Linear(16, 4)),  # type: ignore[misc]
         normal(24))  # fmt: skip
    case(f"{_rule}_behind_add", _rule, lambda c=_clamp: _two(lambda m, x, y: m["c"](x + y), c=c()),  # type: ignore[misc]
         pair(IMAGE, IMAGE), **only("add"))  # fmt: skip
    case(f"{_rule}_behind_batch_norm", _rule, lambda c=_clamp: nn.Sequential(batch_norm(2), c()),  # type: ignore[misc]
         **only("batch_norm2d"))  # fmt: skip
    case(f"{_rule}_behind_pool", _rule, lambda c=_clamp: nn.Sequential(conv(), nn.MaxPool2d(2), c(), conv()))  # type: ignore[misc]
case("relu_with_two_readers", "relu", lambda: _one(lambda m, x: (lambda y: m["b"](y) + m["c"](y.relu()))(m["a"](x)),
     a=conv(), b=conv(), c=conv()))  # fmt: skip
case(
    "clamp_one_sided",
    "clamp",
    lambda: nn.Sequential(conv(), _one(lambda _, x: torch.clamp(x, max=0.3))),
    single=True,
)


# Batch norm, binary ops ---------------------------------------------------------------------------------------


def batch_norm(dims: int) -> nn.Module:
    """With random statistics and parameters."""
    norm: nn.Module = getattr(nn, f"BatchNorm{dims}d")(8)
    with torch.no_grad():
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name in ("weight", "running_var") else tensor.normal_()
    return norm


case(
    "batch_norm1d",
    "batch_norm1d",
    lambda: nn.Sequential(batch_norm(1)),
    normal(8, 14),
    **only("batch_norm1d"),
)
case(
    "batch_norm1d_flat",
    "batch_norm1d",
    lambda: nn.Sequential(batch_norm(1)),
    normal(8),
    **only("batch_norm1d"),
)
case("batch_norm2d", "batch_norm2d", lambda: nn.Sequential(batch_norm(2)), **only("batch_norm2d"))
case(
    "batch_norm3d",
    "batch_norm3d",
    lambda: nn.Sequential(batch_norm(3)),
    normal(8, 3, 4, 5),
    **only("batch_norm3d"),
)
case("batch_norm2d_before_conv", "batch_norm2d", lambda: _one(lambda m, x: m["c"](m["b"](F.max_pool2d(m["a"](x), 2))),
     a=conv(), b=batch_norm(2), c=conv()))  # fmt: skip

case(
    "add",
    "add",
    lambda: _two(lambda _, x, y: x + y),
    pair(IMAGE, IMAGE),
    other=pair(OTHER, OTHER),
    **only("add"),
)
case("add_same", "add", lambda: _one(lambda _, x: x + x), **only("add"))
case("add_scalar", "add", lambda: _one(lambda _, x: x + 3), **only("add"))
case("add_scalar_left", "add", lambda: _one(lambda _, x: -1.5 + x), **only("add"))
case("add_gate", "add", lambda: _two(lambda _, x, y: x + y), pair(IMAGE, (8, 1, 1)), **only("add"))
case("add_flat", "add", lambda: _two(lambda _, x, y: torch.add(x, y)), pair((24,), (24,)), **only("add"))
case("add_alpha", "add", lambda: _two(lambda m, x, y: m["b"](torch.add(m["a"](x), m["a"](y), alpha=2)), a=conv(),
     b=conv()), pair(IMAGE, IMAGE), int8=False)  # fmt: skip
case("add_different_axes", "add", lambda: _two(lambda m, x, y: m["a"](x) + y, a=conv()),
     lambda batch: (torch.randn(batch, *IMAGE), torch.randn(8, 1, 1)), int8=False)  # fmt: skip
case(
    "mul",
    "mul",
    lambda: _two(lambda _, x, y: x * y),
    pair(IMAGE, IMAGE),
    other=pair(OTHER, OTHER),
    **only("mul"),
)
case("mul_square", "mul", lambda: _one(lambda _, x: x * x), **only("mul"))
case("mul_scalar", "mul", lambda: _one(lambda _, x: x * 0.3), **only("mul"))
case("mul_negative_scalar", "mul", lambda: _one(lambda _, x: x * -2), **only("mul"))
case("mul_zero", "mul", lambda: _one(lambda _, x: x * 0.0), **only("mul"))
case("mul_gate", "mul", lambda: _two(lambda _, x, y: x * y), pair(IMAGE, (8, 1, 1)), other=pair(OTHER, (8, 1, 1)),
     **only("mul"))  # fmt: skip
case("mul_gate_left", "mul", lambda: _two(lambda _, x, y: y * x), pair(IMAGE, (8, 1, 1)), **only("mul"))
case("mul_relu", "mul", lambda: _two(lambda _, x, y: F.relu(x * y)), pair(IMAGE, IMAGE), **only("mul"))
case("squeeze_excite", "mul", lambda: _one(
    lambda m, x: (lambda y: m["d"](y * torch.sigmoid(m["c"](F.relu(m["b"](F.adaptive_avg_pool2d(y, 1)))))))(m["a"](x)),
    a=conv(), b=conv(8, 4, 1), c=conv(4, 8, 1), d=conv()))  # fmt: skip
case("sub", "sub", lambda: _two(lambda m, x, y: m["a"](x) - m["b"](y), a=conv(), b=conv()), pair(IMAGE, IMAGE),
     int8=False)  # fmt: skip
case("div", "div", lambda: _one(lambda m, x: m["a"](x) / 2.5, a=conv()), int8=False)
case("matmul", "matmul", lambda: _two(lambda _, x, y: x @ y.transpose(1, 2)),
     pair((6, 16), (5, 16)), single=True,
     config=QuantConfig(overrides={"matmul": QuantConfig(), "transpose": None}))  # fmt: skip
case("matmul_by_default", "matmul", lambda: _two(lambda m, x, y: m["a"](x) @ y, a=nn.Linear(16, 16)),
     pair((6, 16), (16, 5)), int8=False)  # fmt: skip
case(
    "cat_2",
    "cat",
    lambda: _two(lambda _, x, y: torch.cat((x, y), 1)),
    pair(IMAGE, (4, 10, 12)),
    **only("cat"),
)
case("cat_3", "cat", lambda: _one(lambda _, x: torch.cat([x, x * 3, x + 2], dim=1)),
     config=QuantConfig(overrides={"cat": QuantConfig(), "add": None, "mul": None}), single=True)  # fmt: skip
case("cat_of_convs", "cat", lambda: _one(lambda m, x: m["d"](torch.cat([m["a"](x), 4 * m["b"](x), m["c"](x)], 1)),
     a=conv(), b=conv(), c=conv(), d=conv(24)))  # fmt: skip
case("cat_with_its_own_source", "cat", lambda: _one(
    lambda m, x: (lambda y: torch.cat([y, m["b"](y)], -1))(m["a"](x)), a=conv(), b=conv()))  # fmt: skip
case(
    "stack",
    "stack",
    lambda: _two(lambda _, x, y: torch.stack((x, y), 1)),
    pair(IMAGE, IMAGE),
    **only("stack"),
)
case(
    "stack_last",
    "stack",
    lambda: _two(lambda _, x, y: torch.stack((x, y), -1)),
    pair(IMAGE, IMAGE),
    **only("stack"),
)


# Fused --------------------------------------------------------------------------------------------------------


def residual(after: Callable[[Tensor], Tensor], swapped: bool = False) -> nn.Module:
    """conv -> (conv + itself)."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m["a"](x))
        y = m["c"](F.relu(m["b"](x)))
        return after(x + y if swapped else y + x)

    return _one(run, a=conv(), b=conv(), c=conv())


case("residual_add", "add", lambda: residual(lambda x: x))
case("residual_add_relu", "add", lambda: residual(F.relu))
case("residual_add_relu6_swapped", "add", lambda: residual(F.relu6, True))
case("conv_hardswish", "hardswish", lambda: nn.Sequential(conv(), nn.Hardswish()))
case("conv_hardswish_conv", "hardswish", lambda: nn.Sequential(conv(), nn.Hardswish(), conv()))
case("conv_silu", "silu", lambda: nn.Sequential(conv(), nn.SiLU(), conv()))
case("linear_leaky_relu", "leaky_relu", lambda: nn.Sequential(nn.Linear(24, 16), nn.LeakyReLU(0.1), nn.Linear(16, 4)),
     normal(24))  # fmt: skip
case("linear_tanh", "tanh", lambda: nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4)), normal(24))


# Activations, norms -------------------------------------------------------------------------------------------

for _rule, _build in {
    "hardswish": nn.Hardswish,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "elu": lambda: nn.ELU(0.7),
    "prelu": lambda: nn.PReLU(8),
    "softmax": lambda: nn.Softmax(-1),
    "group_norm": lambda: nn.GroupNorm(2, 8),
    "instance_norm2d": lambda: nn.InstanceNorm2d(8, affine=True),
}.items():
    case(_rule, _rule, lambda b=_build: nn.Sequential(b()), **only(_rule))  # type: ignore[misc]
    case(f"{_rule}_between_convs", _rule, lambda b=_build: nn.Sequential(conv(), b(), conv()),  # type: ignore[misc]
         config=QuantConfig(overrides={_rule: QuantConfig()}))  # fmt: skip
case("prelu_one", "prelu", lambda: nn.Sequential(nn.PReLU()), **only("prelu"))
case("instance_norm2d_no_affine", "instance_norm2d", lambda: nn.Sequential(nn.InstanceNorm2d(8)),
     **only("instance_norm2d"))  # fmt: skip
case("instance_norm2d_statistics", "instance_norm2d",
     lambda: nn.Sequential(conv(), nn.InstanceNorm2d(8, track_running_stats=True), conv()),
     config=QuantConfig(overrides={"instance_norm2d": QuantConfig()}), int8=False)  # fmt: skip
case("instance_norm1d", "instance_norm1d", lambda: nn.Sequential(nn.InstanceNorm1d(8, affine=True)), normal(8, 20),
     **only("instance_norm1d"))  # fmt: skip
case("instance_norm3d", "instance_norm3d", lambda: nn.Sequential(nn.InstanceNorm3d(8, affine=True)), normal(8, 3, 5, 6),
     **only("instance_norm3d"))  # fmt: skip
case("layer_norm", "layer_norm", lambda: nn.Sequential(nn.LayerNorm(24)), normal(7, 24), **only("layer_norm"))
case("layer_norm_no_affine", "layer_norm", lambda: nn.Sequential(nn.LayerNorm(24, elementwise_affine=False)),
     normal(7, 24), **only("layer_norm"))  # fmt: skip
case("layer_norm_by_default", "layer_norm", lambda: nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24)), normal(7, 24),
     int8=False)  # fmt: skip
for _rule, _build in {
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "log_softmax": lambda: nn.LogSoftmax(1),
}.items():
    case(_rule, _rule, lambda b=_build: nn.Sequential(conv(), b(), conv()), int8=False)  # type: ignore[misc]


for _cls in (nn.LSTM, nn.GRU, nn.RNN):
    case(_cls.__name__.lower(), _cls.__name__.lower(), lambda c=_cls: _one(  # type: ignore[misc]
        lambda m, x: m["b"](m["a"](x)[0]), a=c(24, 16, batch_first=True), b=nn.Linear(16, 4)),
        normal(7, 24), int8=False)  # fmt: skip
for _cell in (nn.GRUCell, nn.RNNCell):
    case(_cell.__name__.lower(), _cell.__name__.lower(),
         lambda c=_cell: nn.Sequential(c(24, 16), nn.Linear(16, 8)), normal(24), int8=False)  # type: ignore[misc]  # fmt: skip
case("lstmcell", "lstmcell", lambda: _one(lambda m, x: m["b"](m["a"](x)[0]), a=nn.LSTMCell(24, 16), b=nn.Linear(16, 8)),
     normal(24), int8=False)  # fmt: skip
case("embedding_bag", "embedding_bag", lambda: nn.Sequential(nn.EmbeddingBag(30, 16), nn.Linear(16, 8)),
     lambda batch: (torch.randint(30, (batch, 6)),), int8=False)  # fmt: skip
case("attention", "scaled_dot_product_attention",
     lambda: _one(lambda m, x: m["b"](F.scaled_dot_product_attention(m["a"](x), x, x)), a=nn.Linear(24, 24),
                  b=nn.Linear(24, 8)),
     normal(7, 24), int8=False)  # fmt: skip

# Pools --------------------------------------------------------------------------------------------------------

for _name, _rule, _build in (
    ("max_pool2d", "max_pool2d", lambda: nn.MaxPool2d(2)),
    ("max_pool2d_3_2_1_ceil", "max_pool2d", lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    ("max_pool2d_dilated", "max_pool2d", lambda: nn.MaxPool2d(2, 1, dilation=2)),
    ("avg_pool2d", "avg_pool2d", lambda: nn.AvgPool2d(2)),
    ("avg_pool2d_padded", "avg_pool2d", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    ("avg_pool2d_padded_ceil", "avg_pool2d", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    ("avg_pool2d_divisor", "avg_pool2d", lambda: nn.AvgPool2d(2, divisor_override=3)),
    ("adaptive_avg_pool2d", "adaptive_avg_pool2d", lambda: nn.AdaptiveAvgPool2d(1)),
    ("adaptive_avg_pool2d_uneven", "adaptive_avg_pool2d", lambda: nn.AdaptiveAvgPool2d((3, 5))),
):
    case(_name, _rule, lambda b=_build: nn.Sequential(conv(), b()))  # type: ignore[misc]
case("max_pool2d_indices", "max_pool2d", lambda: _one(
    lambda m, x: m["a"](F.max_pool2d(m["a"](x), 2, return_indices=True)[0]), a=conv()), int8=False)  # fmt: skip
case("mean", "mean", lambda: _one(lambda m, x: m["b"](m["a"](x).mean((2, 3))), a=conv(), b=nn.Linear(8, 4)))
case("mean_keepdim", "mean", lambda: _one(lambda m, x: m["b"](m["a"](x).mean((2, 3), keepdim=True)), a=conv(),
     b=conv(8, 4, 1)))  # fmt: skip
case("mean_of_all", "mean", lambda: _one(lambda m, x: m["a"](x).mean(), a=conv()), int8=False)
for _rule, _build in {
    "max_pool1d": lambda: nn.MaxPool1d(3, 2, 1),
    "avg_pool1d": lambda: nn.AvgPool1d(3, 2, 1),
    "adaptive_avg_pool1d": lambda: nn.AdaptiveAvgPool1d(3),
}.items():
    case(_rule, _rule, lambda b=_build: nn.Sequential(nn.Conv1d(8, 8, 3), b(), nn.Conv1d(8, 4, 1)), normal(8, 20),  # type: ignore[misc]
         other=normal(8, 27))  # fmt: skip
for _rule, _build in {
    "max_pool3d": lambda: nn.MaxPool3d(2),
    "avg_pool3d": lambda: nn.AvgPool3d(2),
    "adaptive_avg_pool3d": lambda: nn.AdaptiveAvgPool3d(2),
}.items():
    case(_rule, _rule, lambda b=_build: nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), b(), nn.Conv3d(8, 4, 1)),  # type: ignore[misc]
         normal(8, 4, 6, 6), int8=_rule != "max_pool3d")  # fmt: skip


# Shapes -------------------------------------------------------------------------------------------------------


def shuffle(x: Tensor) -> Tensor:
    """Channels shuffled in two groups by view, transpose, reshape."""
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


_SHAPES: dict[str, tuple[str, Callable[..., Any], bool]] = {
    "shuffle_by_view": ("reshape", shuffle, True),
    "view": ("reshape", lambda x: x.view(x.size(0), -1), True),
    "flatten": ("flatten", lambda x: torch.flatten(x, 1), True),
    "unflatten": ("unflatten", lambda x: x.unflatten(1, (2, 4)), True),
    "permute": ("permute", lambda x: x.permute(0, 2, 3, 1), True),
    "transpose": ("transpose", lambda x: x.transpose(1, 2), True),
    "squeeze": ("squeeze", lambda x: x[:, :1].squeeze(1), True),
    "unsqueeze": ("unsqueeze", lambda x: x.unsqueeze(2), True),
    "expand": ("expand", lambda x: x[:, :1].expand(-1, 8, -1, -1), False),
    "repeat": ("repeat", lambda x: x.repeat(1, 2, 1, 1), False),
    "select": ("select", lambda x: x.select(1, 3), True),
    "narrow": ("narrow", lambda x: x.narrow(1, 2, 4), True),
    "chunk": ("chunk", lambda x: x.chunk(2, dim=1)[1], True),
    "chunk_both": ("chunk", lambda x: torch.add(*[x.chunk(2, 1)[i] for i in (0, 1)]), True),
    "split": ("split", lambda x: x.split(3, 1)[0], True),
    "split_sections": ("split", lambda x: torch.split(x, [2, 6], 1)[1], True),
    "getitem": ("getitem", lambda x: x[:, 1:5, ::2], True),
    "getitem_index": ("getitem", lambda x: x[:, :, 0], True),
    "pixel_shuffle": ("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), True),
    "pixel_unshuffle": ("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), True),
    "channel_shuffle": ("channel_shuffle", lambda x: torch.channel_shuffle(x, 2), True),
    "pad": ("pad", lambda x: F.pad(x, (1, 0, 2, 1)), True),
    "pad_reflect": ("pad", lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), True),
    "pad_value": ("pad", lambda x: F.pad(x, (1, 1), value=1.0), False),
    "pad_replicate": ("pad", lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"), False),
    "interpolate_nearest": ("interpolate", lambda x: F.interpolate(x, scale_factor=2), True),
    "interpolate_bilinear": ("interpolate", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), True),
    "interpolate_bilinear_corners": (
        "interpolate", lambda x: F.interpolate(x, size=(15, 9), mode="bilinear", align_corners=True), True),
    "interpolate_bicubic": ("interpolate", lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), False),
}  # fmt: skip
for _name, (_rule, _shape, _int8) in _SHAPES.items():
    case(_name, _rule, lambda f=_shape: _one(lambda m, x, f=f: f(m["a"](x)), a=conv()), int8=_int8)  # type: ignore[misc]
case(
    "shuffle_between_convs",
    "transpose",
    lambda: _one(lambda m, x: m["b"](shuffle(m["a"](x))), a=conv(), b=conv()),
)
case("chunk_between_convs", "chunk", lambda: _one(
    lambda m, x: (lambda p: torch.cat((p[0], m["b"](p[1])), 1))(m["a"](x).chunk(2, 1)),
    a=conv(), b=conv(4, 4)))  # fmt: skip
case("clone", "clone", lambda: _one(lambda m, x: m["b"](m["a"](x).clone()), a=conv(), b=conv()))
case("zero_pad_module", "pad", lambda: nn.Sequential(conv(), nn.ZeroPad2d((0, 1, 0, 1)), conv(padding=0)))
case("reflection_pad_module", "pad", lambda: nn.Sequential(conv(), nn.ReflectionPad2d(1), conv(padding=0)))
case("upsample_module", "interpolate", lambda: nn.Sequential(conv(), nn.Upsample(scale_factor=2), conv()))


# What does nothing, gives sizes, or marks a region ------------------------------------------------------------

for _name, _rule, _do in (
    ("dropout", "dropout", lambda x: F.dropout(x, 0.5, False)),
    ("contiguous", "contiguous", lambda x: x.contiguous()),
    ("detach", "detach", lambda x: x.detach()),
    ("size", "size", lambda x: x.reshape(x.size(0), -1).reshape(x.size(0), 8, 10, -1)),
    ("dim", "dim", lambda x: x.flatten(1) if x.dim() is None else x),
    ("getattr", "getattr", lambda x: x.reshape(x.shape)),
):
    case(_name, _rule, lambda f=_do: _one(lambda m, x, f=f: m["b"](f(m["a"](x))), a=conv(), b=conv()),  # type: ignore[misc]
         normal(*IMAGE), gone=True)  # fmt: skip
case("identity", "identity", lambda: nn.Sequential(conv(), nn.Identity(), conv()), gone=True)
case("dropout_module", "dropout", lambda: nn.Sequential(conv(), nn.Dropout(), conv()), gone=True)
# The scale factor is 0, so that what is dropped at random does not tell runs apart.
case("dropout_at_inference", "dropout",
     lambda: _one(lambda m, x: m["a"](x) + 0.0 * F.dropout(m["a"](x), 0.5, True), a=conv()), int8=False)  # fmt: skip


def _stub(name: str) -> nn.Module:
    """What torch.ao's class of that name looks like to us, without importing it."""
    cls = type(name, (nn.Identity,), {"__module__": "torch.ao.quantization.stubs"})
    return cls()


for _stub_name, _rule in (("QuantStub", "quant_stub"), ("DeQuantStub", "dequant_stub")):
    case(_rule, _rule, lambda: nn.Sequential(conv(), _stub("QuantStub"), conv(), _stub("DeQuantStub"), conv()),
         gone=True)  # fmt: skip
