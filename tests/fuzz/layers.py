"""Steps with layers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .step import Site, both, image, layer, step, tokens


def _conv(s: Site) -> nn.Module:
    c = s.a[1]
    kernel, stride, padding, dilation = s.pick(
        (3, 1, 1, 1), (1, 1, 0, 1), (3, 2, 1, 1), (5, 1, 2, 1), (3, 1, 2, 2), (2, 1, 1, 1)
    )
    return nn.Conv2d(c, s.pick(c, 8, 5, 16), kernel, stride, padding, dilation, bias=s.n % 3 > 0)


def _batch_norm(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return F.batch_norm(m[0](a), m[1].running_mean, m[1].running_var, m[1].weight, m[1].bias, m[1].training)


layer(
    "conv",
    image,
    _conv,
    lambda m, a, b: m[0](a),
    lambda m, a, b: F.relu(m[0](a)),
    lambda m, a, b: m[0](a).clamp(0, 6),
    lambda m, a, b: F.conv2d(a, m[0].weight, m[0].bias, m[0].stride, m[0].padding, m[0].dilation),
)
layer(
    "depthwise",
    image,
    lambda s: nn.Conv2d(
        s.a[1],
        s.a[1],
        3,
        s.pick(1, 2),
        1,
        groups=s.a[1],
        padding_mode=s.pick("zeros", "reflect", "circular", "replicate") if min(s.a[2:]) > 1 else "zeros",
    ),
    lambda m, a, b: m[0](a),
    lambda m, a, b: m[0](a).relu_(),
)
layer(
    "transposed",
    image,
    lambda s: nn.ConvTranspose2d(s.a[1], s.pick(4, 8), 3, s.pick(1, 2), 1, output_padding=s.pick(0, 1)),
    lambda m, a, b: m[0](a),
    lambda m, a, b: m[0](a).relu(),
)
step(
    "conv+bn",
    image,
    lambda s: s.pick(lambda m, a, b: m[1](m[0](a)), _batch_norm, lambda m, a, b: F.relu6(m[1](m[0](a)))),
    lambda s: [nn.Conv2d(s.a[1], 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)],
)
layer(
    "linear",
    lambda s: len(s.a) in (2, 3),
    lambda s: nn.Linear(s.a[-1], s.pick(s.a[-1], 12, 7), bias=s.n % 3 > 0),
    lambda m, a, b: m[0](a),
    lambda m, a, b: F.gelu(m[0](a)),
    lambda m, a, b: F.linear(a, m[0].weight),
    lambda m, a, b: a @ m[0].weight.t(),
)
layer(
    "conv1d",
    tokens,
    lambda s: nn.Conv1d(s.a[1], s.pick(6, 8), 3, padding=1),
    lambda m, a, b: m[0](a),
    lambda m, a, b: m[0](a).relu(),
)
layer(
    "layer_norm",
    both,
    lambda s: nn.LayerNorm(s.a[-1]),
    lambda m, a, b: m[0](a),
    lambda m, a, b: F.layer_norm(a, a.shape[-1:], m[0].weight),
)
layer("group_norm", lambda s: image(s) and s.a[1] % 2 == 0, lambda s: nn.GroupNorm(2, s.a[1]), lambda m, a, b: m[0](a))
layer("lone bn", image, lambda s: nn.BatchNorm2d(s.a[1]), lambda m, a, b: m[0](a))
layer("prelu", both, lambda s: nn.PReLU(s.pick(1, s.a[1])), lambda m, a, b: m[0](a))
