"""Pools and ops on shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import case, conv, normal, one

# Pools --------------------------------------------------------------------------------------------------------

_POOLS_2D: tuple[tuple[str, str, Callable[[], nn.Module]], ...] = (
    ("max_pool2d", "max_pool2d", lambda: nn.MaxPool2d(2)),
    ("max_pool2d_3_2_1_ceil", "max_pool2d", lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    ("max_pool2d_dilated", "max_pool2d", lambda: nn.MaxPool2d(2, 1, dilation=2)),
    ("avg_pool2d", "avg_pool2d", lambda: nn.AvgPool2d(2)),
    ("avg_pool2d_padded", "avg_pool2d", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    ("avg_pool2d_padded_ceil", "avg_pool2d", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    ("avg_pool2d_divisor", "avg_pool2d", lambda: nn.AvgPool2d(2, divisor_override=3)),
    ("adaptive_avg_pool2d", "adaptive_avg_pool2d", lambda: nn.AdaptiveAvgPool2d(1)),
    ("adaptive_avg_pool2d_uneven", "adaptive_avg_pool2d", lambda: nn.AdaptiveAvgPool2d((3, 5))),
)
for _name, _rule, _build in _POOLS_2D:
    case(_name, _rule, lambda b=_build: nn.Sequential(conv(), b()))  # type: ignore[misc]
case("max_pool2d_indices", "max_pool2d", lambda: one(
    lambda m, x: m["a"](F.max_pool2d(m["a"](x), 2, return_indices=True)[0]), a=conv()), int8=False)  # fmt: skip
case("mean", "mean", lambda: one(lambda m, x: m["b"](m["a"](x).mean((2, 3))), a=conv(), b=nn.Linear(8, 4)))
case("mean_keepdim", "mean", lambda: one(lambda m, x: m["b"](m["a"](x).mean((2, 3), keepdim=True)), a=conv(),
     b=conv(8, 4, 1)))  # fmt: skip
case("mean_of_all", "mean", lambda: one(lambda m, x: m["a"](x).mean(), a=conv()), int8=False)
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
    case(_name, _rule, lambda f=_shape: one(lambda m, x, f=f: f(m["a"](x)), a=conv()), int8=_int8)  # type: ignore[misc]
case(
    "shuffle_between_convs",
    "transpose",
    lambda: one(lambda m, x: m["b"](shuffle(m["a"](x))), a=conv(), b=conv()),
)
case("chunk_between_convs", "chunk", lambda: one(
    lambda m, x: (lambda p: torch.cat((p[0], m["b"](p[1])), 1))(m["a"](x).chunk(2, 1)),
    a=conv(), b=conv(4, 4)))  # fmt: skip
case("clone", "clone", lambda: one(lambda m, x: m["b"](m["a"](x).clone()), a=conv(), b=conv()))
case("zero_pad_module", "pad", lambda: nn.Sequential(conv(), nn.ZeroPad2d((0, 1, 0, 1)), conv(padding=0)))
case("reflection_pad_module", "pad", lambda: nn.Sequential(conv(), nn.ReflectionPad2d(1), conv(padding=0)))
case("upsample_module", "interpolate", lambda: nn.Sequential(conv(), nn.Upsample(scale_factor=2), conv()))
