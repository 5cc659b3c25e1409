"""What a case is, and how to build one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
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


def one(fn: Callable[..., Any], **layers: nn.Module) -> nn.Module:
    """A module whose forward takes one tensor (fx traces no `*args`)."""

    class One(Fn):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return self.fn(self.layers, x)

    return One(fn, **layers)


def two(fn: Callable[..., Any], **layers: nn.Module) -> nn.Module:
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


def batch_norm(dims: int) -> nn.Module:
    """With random statistics and parameters."""
    norm: nn.Module = getattr(nn, f"BatchNorm{dims}d")(8)
    with torch.no_grad():
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name in ("weight", "running_var") else tensor.normal_()
    return norm
