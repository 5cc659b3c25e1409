"""Steps without layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .step import alike, both, image, plain, tokens

plain(
    "add",
    alike,
    lambda m, a, b: a + b,
    lambda m, a, b: torch.add(a, b).relu(),
    lambda m, a, b: a.add(b, alpha=2),
    lambda m, a, b: a - b,
)
plain("mul", alike, lambda m, a, b: a * b, lambda m, a, b: torch.mul(a, b), lambda m, a, b: a * b.sigmoid())
plain(
    "cat",
    lambda s: len(s.a) == len(s.b) and len(s.a) > 1 and s.a[:1] + s.a[2:] == s.b[:1] + s.b[2:],
    lambda m, a, b: torch.cat([a, b], 1),
    lambda m, a, b: torch.cat((b, a, a), dim=1),
    lambda m, a, b: torch.cat([a, b], -len(a.shape) + 1),
)
plain(
    "chunk",
    lambda s: both(s) and s.a[1] % 2 == 0,
    lambda m, a, b: torch.cat(a.chunk(2, 1)[::-1], 1),
    lambda m, a, b: a.chunk(2, 1)[0] * a.chunk(2, 1)[1].sigmoid(),
    lambda m, a, b: a.split(1, 1)[-1] + a,
    lambda m, a, b: torch.stack(a.unbind(1), 1),
)
plain(
    "scale",
    lambda s: True,
    lambda m, a, b: a * 1e-6,
    lambda m, a, b: a * 1e6,
    lambda m, a, b: a / 255,
    lambda m, a, b: -a,
    lambda m, a, b: a * 0,
)
plain(
    "shift",
    lambda s: True,
    lambda m, a, b: a + 3,
    lambda m, a, b: a - 100.0,
    lambda m, a, b: 1 - a,
    lambda m, a, b: a * 2 + 1,
)
plain(
    "activation",
    lambda s: True,
    lambda m, a, b: F.relu(a),
    lambda m, a, b: a.sigmoid(),
    lambda m, a, b: torch.tanh(a),
    lambda m, a, b: F.hardswish(a),
    lambda m, a, b: F.silu(a),
    lambda m, a, b: F.gelu(a),
    lambda m, a, b: F.leaky_relu(a, 0.1),
    lambda m, a, b: F.elu(a),
    lambda m, a, b: a.abs(),
    lambda m, a, b: F.hardsigmoid(a),
    lambda m, a, b: a.clamp(-1, 2),
    lambda m, a, b: F.softmax(a, -1),
    lambda m, a, b: F.hardtanh(a, -0.5, 0.5),
)
plain(
    "pool",
    lambda s: image(s) and min(s.a[2:]) > 2,
    lambda m, a, b: F.max_pool2d(a, 2),
    lambda m, a, b: F.avg_pool2d(a, 3, 1, 1),
    lambda m, a, b: F.max_pool2d(a, 3, 1, 1),
    lambda m, a, b: F.adaptive_avg_pool2d(a, 2),
    lambda m, a, b: a.mean((2, 3), keepdim=True) * a,
    lambda m, a, b: F.max_pool2d(a, 3, 2, ceil_mode=True),
)
plain(
    "resize",
    lambda s: image(s) and s.a[2:].numel() < 80,
    lambda m, a, b: F.interpolate(a, scale_factor=2.0),
    lambda m, a, b: F.pad(a, (0, 1, 1, 0)),
    lambda m, a, b: F.interpolate(a, scale_factor=2.0, mode="bilinear"),
    lambda m, a, b: F.pad(a, (1, 1, 1, 1), value=0.5),
)
plain(
    "move",
    image,
    lambda m, a, b: a.permute(0, 1, 3, 2),
    lambda m, a, b: a.flip(1),
    lambda m, a, b: a[:, :, ::2],
    lambda m, a, b: a[:, : a.shape[1] // 2 + 1],
    lambda m, a, b: a.transpose(1, 3).contiguous().transpose(1, 3),
    lambda m, a, b: a.roll(1, 2),
    lambda m, a, b: a.unsqueeze(1).squeeze(1),
)
plain(
    "to tokens",
    image,
    lambda m, a, b: a.flatten(2).transpose(1, 2),
    lambda m, a, b: a.mean(2),
    lambda m, a, b: a.reshape(a.shape[0], a.shape[1], -1),
)
plain(
    "to rows",
    tokens,
    lambda m, a, b: a.mean(1),
    lambda m, a, b: a[:, 0],
    lambda m, a, b: a.amax(1),
    lambda m, a, b: a.sum(-1),
)
plain(
    "attend",
    lambda s: tokens(s) and s.a[1] <= 64,
    lambda m, a, b: (a @ a.transpose(1, 2)).softmax(-1) @ a,
    lambda m, a, b: F.scaled_dot_product_attention(a, a, a),
    lambda m, a, b: torch.bmm(a, a.transpose(1, 2)).tanh(),
)


def _write(m: Any, a: Tensor, b: Tensor) -> Tensor:
    y = a * 1
    y[:, :1] = 0.5
    y[:, -1:] += 1
    return y


def _through_a_view(m: Any, a: Tensor, b: Tensor) -> Tensor:
    y = a + 0
    first = y[:, :1]
    first.mul_(2).clamp_(max=1)
    return y


def _augmented(m: Any, a: Tensor, b: Tensor) -> Tensor:
    a = a.clone()
    y = a
    y += b
    return y * a


plain(
    "in place",
    alike,
    _write,
    _through_a_view,
    _augmented,
    lambda m, a, b: a.clone().add_(b).relu_(),
    lambda m, a, b: (a * 1).masked_fill_(b > 0, 0.25),
)
plain(
    "where",
    alike,
    lambda m, a, b: torch.where(a > 0, a, b),
    lambda m, a, b: torch.maximum(a, b),
    lambda m, a, b: a.lerp(b, 0.25),
)
