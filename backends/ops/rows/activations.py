"""Clamps and activations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import fx, nn

from ....compiler.core.qparams import QParams
from ...base.op import Call, OpRow, Output
from .kinds import observed, shared

UNIT_RANGE = QParams(1 / 256, 0)
SIGNED_UNIT_RANGE = QParams(2 / 256, 128)


def _refuse_tensor_bounds(call: Call) -> str | None:
    tensors = any(isinstance(b, fx.Node) for b in (call.param("min"), call.param("max")))
    return "its bounds are tensors" if tensors else None


ROWS = [
    shared("relu", F.relu, (nn.ReLU, torch.relu, torch.relu_, "relu", "relu_", F.relu_),
           clamp=lambda call: (0.0, math.inf), keeps_channels=True),
    shared("relu6", F.relu6, (nn.ReLU6,), clamp=lambda call: (0.0, 6.0), keeps_channels=True, scale_equivariant=False),
    shared("hardtanh", F.hardtanh, (nn.Hardtanh, F.hardtanh_), "min_val max_val", keeps_channels=True,
           clamp=lambda call: (call.param("min_val", -1.0), call.param("max_val", 1.0)), scale_equivariant=False),
    shared("clamp", torch.clamp, ("clamp", "clamp_", torch.clip, "clip"), "min max", keeps_channels=True,
           clamp=lambda call: (call.param("min", -math.inf), call.param("max", math.inf)),
           refuse=_refuse_tensor_bounds, scale_equivariant=False),
    observed("hardswish", F.hardswish, (nn.Hardswish,)),
    observed("leaky_relu", F.leaky_relu, (nn.LeakyReLU, F.leaky_relu_), "negative_slope", scale_equivariant=True),
    OpRow("sigmoid", torch.sigmoid, (nn.Sigmoid, F.sigmoid, "sigmoid", "sigmoid_", torch.special.expit),
          output=Output.FIXED, fixed=UNIT_RANGE),
    OpRow("hardsigmoid", F.hardsigmoid, (nn.Hardsigmoid,), output=Output.FIXED, fixed=UNIT_RANGE),
    OpRow("tanh", torch.tanh, (nn.Tanh, F.tanh, "tanh", "tanh_"), output=Output.FIXED, fixed=SIGNED_UNIT_RANGE),
    observed("elu", F.elu, (nn.ELU, F.elu_), "alpha"),
    observed("prelu", nn.PReLU, scale_equivariant=True),
    observed("silu", F.silu, (nn.SiLU,)),
    OpRow("gelu", F.gelu, (nn.GELU,), "approximate"),
    OpRow("mish", F.mish, (nn.Mish,)),
    OpRow("softplus", F.softplus, (nn.Softplus,), "beta threshold"),
    OpRow("log_softmax", F.log_softmax, (nn.LogSoftmax, torch.log_softmax, "log_softmax"), "dim"),
    OpRow("softmax", F.softmax, (nn.Softmax, torch.softmax, "softmax"), "dim", output=Output.FIXED, fixed=UNIT_RANGE),
]  # fmt: skip
