"""Activations, normalizations, and layers that stay in fp32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fxquant import QuantConfig

from .case import case, conv, normal, one, only

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
    case(_cls.__name__.lower(), _cls.__name__.lower(), lambda c=_cls: one(  # type: ignore[misc]
        lambda m, x: m["b"](m["a"](x)[0]), a=c(24, 16, batch_first=True), b=nn.Linear(16, 4)),
        normal(7, 24), int8=False)  # fmt: skip
for _cell in (nn.GRUCell, nn.RNNCell):
    case(_cell.__name__.lower(), _cell.__name__.lower(),
         lambda c=_cell: nn.Sequential(c(24, 16), nn.Linear(16, 8)), normal(24), int8=False)  # type: ignore[misc]  # fmt: skip
case("lstmcell", "lstmcell", lambda: one(lambda m, x: m["b"](m["a"](x)[0]), a=nn.LSTMCell(24, 16), b=nn.Linear(16, 8)),
     normal(24), int8=False)  # fmt: skip
case("embedding_bag", "embedding_bag", lambda: nn.Sequential(nn.EmbeddingBag(30, 16), nn.Linear(16, 8)),
     lambda batch: (torch.randint(30, (batch, 6)),), int8=False)  # fmt: skip
case("attention", "scaled_dot_product_attention",
     lambda: one(lambda m, x: m["b"](F.scaled_dot_product_attention(m["a"](x), x, x)), a=nn.Linear(24, 24),
                  b=nn.Linear(24, 8)),
     normal(7, 24), int8=False)  # fmt: skip
