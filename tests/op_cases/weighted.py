"""Convolutions, linear layers, embeddings."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import case, conv, normal

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
