"""Clamps, batch normalization, ops of two inputs, fused ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantConfig
from fxquant.backends.ops.any_batch_norm import AnyBatchNorm

from .case import IMAGE, OTHER, batch_norm, case, conv, normal, one, only, pair, two

# Clamps -------------------------------------------------------------------------------------------------------

_CLAMPS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.7),
    "clamp": lambda: one(lambda _, x: x.clamp(-0.25, 0.8)),
}
for _rule, _clamp in _CLAMPS.items():
    case(f"{_rule}_behind_conv", _rule, lambda c=_clamp: nn.Sequential(conv(), c()), single=True)  # type: ignore[misc]
    case(f"{_rule}_behind_linear", _rule, lambda c=_clamp: nn.Sequential(nn.Linear(24, 16), c(), nn.Linear(16, 4)),  # type: ignore[misc]
         normal(24))  # fmt: skip
    case(f"{_rule}_behind_add", _rule, lambda c=_clamp: two(lambda m, x, y: m["c"](x + y), c=c()),  # type: ignore[misc]
         pair(IMAGE, IMAGE), **only("add"))  # fmt: skip
    case(f"{_rule}_behind_batch_norm", _rule, lambda c=_clamp: nn.Sequential(batch_norm(2), c()),  # type: ignore[misc]
         **only("batch_norm2d"))  # fmt: skip
    case(f"{_rule}_behind_pool", _rule, lambda c=_clamp: nn.Sequential(conv(), nn.MaxPool2d(2), c(), conv()))  # type: ignore[misc]
case("relu_with_two_readers", "relu", lambda: one(lambda m, x: (lambda y: m["b"](y) + m["c"](y.relu()))(m["a"](x)),
     a=conv(), b=conv(), c=conv()))  # fmt: skip
case(
    "clamp_one_sided",
    "clamp",
    lambda: nn.Sequential(conv(), one(lambda _, x: torch.clamp(x, max=0.3))),
    single=True,
)


# Batch norm, binary ops ---------------------------------------------------------------------------------------


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
case(
    "batch_norm_of_unknown_axes",
    "batch_norm",
    lambda: one(lambda m, x: m["c"](m["b"](x)), b=AnyBatchNorm(8), c=conv()),
    int8=False,
)
case("batch_norm2d", "batch_norm2d", lambda: nn.Sequential(batch_norm(2)), **only("batch_norm2d"))
case(
    "batch_norm3d",
    "batch_norm3d",
    lambda: nn.Sequential(batch_norm(3)),
    normal(8, 3, 4, 5),
    **only("batch_norm3d"),
)
case("batch_norm2d_before_conv", "batch_norm2d", lambda: one(lambda m, x: m["c"](m["b"](F.max_pool2d(m["a"](x), 2))),
     a=conv(), b=batch_norm(2), c=conv()))  # fmt: skip

case(
    "add",
    "add",
    lambda: two(lambda _, x, y: x + y),
    pair(IMAGE, IMAGE),
    other=pair(OTHER, OTHER),
    **only("add"),
)
case("add_same", "add", lambda: one(lambda _, x: x + x), **only("add"))
case("add_scalar", "add", lambda: one(lambda _, x: x + 3), **only("add"))
case("add_scalar_left", "add", lambda: one(lambda _, x: -1.5 + x), **only("add"))
case("add_gate", "add", lambda: two(lambda _, x, y: x + y), pair(IMAGE, (8, 1, 1)), **only("add"))
case("add_flat", "add", lambda: two(lambda _, x, y: torch.add(x, y)), pair((24,), (24,)), **only("add"))
case("add_alpha", "add", lambda: two(lambda m, x, y: m["b"](torch.add(m["a"](x), m["a"](y), alpha=2)), a=conv(),
     b=conv()), pair(IMAGE, IMAGE), int8=False)  # fmt: skip
case("add_different_axes", "add", lambda: two(lambda m, x, y: m["a"](x) + y, a=conv()),
     lambda batch: (torch.randn(batch, *IMAGE), torch.randn(8, 1, 1)), int8=False)  # fmt: skip
case(
    "mul",
    "mul",
    lambda: two(lambda _, x, y: x * y),
    pair(IMAGE, IMAGE),
    other=pair(OTHER, OTHER),
    **only("mul"),
)
case("mul_square", "mul", lambda: one(lambda _, x: x * x), **only("mul"))
case("mul_scalar", "mul", lambda: one(lambda _, x: x * 0.3), **only("mul"))
case("mul_negative_scalar", "mul", lambda: one(lambda _, x: x * -2), **only("mul"))
case("mul_zero", "mul", lambda: one(lambda _, x: x * 0.0), **only("mul"))
case("mul_gate", "mul", lambda: two(lambda _, x, y: x * y), pair(IMAGE, (8, 1, 1)), other=pair(OTHER, (8, 1, 1)),
     **only("mul"))  # fmt: skip
case("mul_gate_left", "mul", lambda: two(lambda _, x, y: y * x), pair(IMAGE, (8, 1, 1)), **only("mul"))
case("mul_relu", "mul", lambda: two(lambda _, x, y: F.relu(x * y)), pair(IMAGE, IMAGE), **only("mul"))
case("squeeze_excite", "mul", lambda: one(
    lambda m, x: (lambda y: m["d"](y * torch.sigmoid(m["c"](F.relu(m["b"](F.adaptive_avg_pool2d(y, 1)))))))(m["a"](x)),
    a=conv(), b=conv(8, 4, 1), c=conv(4, 8, 1), d=conv()))  # fmt: skip
case("sub", "sub", lambda: two(lambda m, x, y: m["a"](x) - m["b"](y), a=conv(), b=conv()), pair(IMAGE, IMAGE),
     int8=False)  # fmt: skip
case("div", "div", lambda: one(lambda m, x: m["a"](x) / 2.5, a=conv()), int8=False)
case("matmul", "matmul", lambda: two(lambda _, x, y: x @ y.transpose(1, 2)),
     pair((6, 16), (5, 16)), single=True,
     config=QuantConfig(overrides={"matmul": QuantConfig(), "transpose": None}))  # fmt: skip
case("matmul_by_default", "matmul", lambda: two(lambda m, x, y: m["a"](x) @ y, a=nn.Linear(16, 16)),
     pair((6, 16), (16, 5)), int8=False)  # fmt: skip
case(
    "cat_2",
    "cat",
    lambda: two(lambda _, x, y: torch.cat((x, y), 1)),
    pair(IMAGE, (4, 10, 12)),
    **only("cat"),
)
case("cat_3", "cat", lambda: one(lambda _, x: torch.cat([x, x * 3, x + 2], dim=1)),
     config=QuantConfig(overrides={"cat": QuantConfig(), "add": None, "mul": None}), single=True)  # fmt: skip
case("cat_of_convs", "cat", lambda: one(lambda m, x: m["d"](torch.cat([m["a"](x), 4 * m["b"](x), m["c"](x)], 1)),
     a=conv(), b=conv(), c=conv(), d=conv(24)))  # fmt: skip
case("cat_with_its_own_source", "cat", lambda: one(
    lambda m, x: (lambda y: torch.cat([y, m["b"](y)], -1))(m["a"](x)), a=conv(), b=conv()))  # fmt: skip
case(
    "stack",
    "stack",
    lambda: two(lambda _, x, y: torch.stack((x, y), 1)),
    pair(IMAGE, IMAGE),
    **only("stack"),
)
case(
    "stack_last",
    "stack",
    lambda: two(lambda _, x, y: torch.stack((x, y), -1)),
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

    return one(run, a=conv(), b=conv(), c=conv())


case("residual_add", "add", lambda: residual(lambda x: x))
case("residual_add_relu", "add", lambda: residual(F.relu))
case("residual_add_relu6_swapped", "add", lambda: residual(F.relu6, True))
case("conv_hardswish", "hardswish", lambda: nn.Sequential(conv(), nn.Hardswish()))
case("conv_hardswish_conv", "hardswish", lambda: nn.Sequential(conv(), nn.Hardswish(), conv()))
case("conv_silu", "silu", lambda: nn.Sequential(conv(), nn.SiLU(), conv()))
case("linear_leaky_relu", "leaky_relu", lambda: nn.Sequential(nn.Linear(24, 16), nn.LeakyReLU(0.1), nn.Linear(16, 4)),
     normal(24))  # fmt: skip
case("linear_tanh", "tanh", lambda: nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4)), normal(24))
