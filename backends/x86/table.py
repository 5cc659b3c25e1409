"""The op table of the x86 backend: one row per op. See :class:`~fxquant.backends.base.OpRule` for the columns."""

from __future__ import annotations

import math
import operator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...compiler.stubs import dequant_stub, quant_stub
from ...compiler.types import QParams
from ..base import Call, OpRule, OpTable, Output
from . import dynamic as d
from . import kernels as k
from .refusals import (
    pad_of_module,
    refuse_batch_norm,
    refuse_binary,
    refuse_conv,
    refuse_float_argument,
    refuse_interpolate,
    refuse_pad,
    refuse_pool,
)

INF = math.inf
UNIT_RANGE = QParams(1 / 256, 0)
SIGNED_UNIT_RANGE = QParams(2 / 256, 128)
Q = torch.ops.quantized

share = partial(OpRule, output=Output.SHARED, scale_equivariant=True)
view = partial(share, views=True)
floating = partial(OpRule, output=Output.FLOAT)
meta = partial(OpRule, output=Output.META)
observed = partial(OpRule, output=Output.OBSERVED, saturates=True)

NO_KERNEL = "torch has no int8 kernel for it on x86"
WITH_DYNAMIC = "no static int8 kernel; the overrides 'dynamic' and 'fp16' are for its weights"
AVERAGES = "averages span a smaller range than the int8 kernel keeps; quantized again behind it"
DEQUANTIZES = "the int8 kernel computes in fp32 inside; fp32 at once is faster and more exact"


def _conv(dims: int) -> OpRule:
    fused = {
        "add": k.conv2d_add,
        "hardswish": k.conv2d_activation("hardswish"),
        "silu": k.conv2d_activation("swish"),
    }
    return OpRule(
        f"conv{dims}d",
        getattr(nn, f"Conv{dims}d"),
        (getattr(torch, f"conv{dims}d"),),
        "stride padding dilation groups",
        weighted=True,
        functional=getattr(F, f"conv{dims}d"),
        saturates=True,
        refuse=refuse_conv,
        kernels=k.conv(dims),
        fused=fused if dims == 2 else {},
        dynamic=d.PointwiseConv,
        refuse_dynamic=d.refuse_window,
    )


def _conv_transpose(dims: int) -> OpRule:
    return OpRule(
        f"conv_transpose{dims}d",
        getattr(nn, f"ConvTranspose{dims}d"),
        (),
        "stride padding output_padding groups dilation",
        weighted=True,
        functional=getattr(F, f"conv_transpose{dims}d"),
        channel_axis=1,
        per_channel=False,
        saturates=True,
        refuse=refuse_conv,
        kernels=k.conv_transpose(dims),
    )


WEIGHTED = [
    *(_conv(d) for d in (1, 2, 3)),
    *(_conv_transpose(d) for d in (1, 2, 3)),
    OpRule(
        "linear",
        nn.Linear,
        weighted=True,
        functional=F.linear,
        saturates=True,
        float_output=True,
        dynamic=d.DynamicLinear,
        kernels=k.linear,
        fused={
            "leaky_relu": k.linear_activation(Q.linear_leaky_relu.default, "negative_slope"),
            "tanh": k.linear_activation(Q.linear_tanh.default),
        },
    ),
    OpRule(
        "embedding",
        nn.Embedding,
        params="padding_idx max_norm norm_type scale_grad_by_freq sparse",
        output=Output.WEIGHT_ONLY,
        weighted=True,
        functional=F.embedding,
        refuse=lambda call: d.refuse_rows(call.module) if call.module else None,
        kernels=k.embedding,
        dynamic=d.RowwiseEmbedding,
        refuse_dynamic=d.refuse_rows,
    ),
]

BATCH_NORMS = [
    observed(
        "batch_norm1d", nn.BatchNorm1d, affine=1, refuse=refuse_batch_norm, kernels=k.batch_norm(Q.batch_norm1d.default)
    ),
    observed(
        "batch_norm2d", nn.BatchNorm2d, affine=1, refuse=refuse_batch_norm, kernels=k.batch_norm(Q.batch_norm2d.default)
    ),
    observed(
        "batch_norm3d", nn.BatchNorm3d, affine=1, refuse=refuse_batch_norm, kernels=k.batch_norm(Q.batch_norm3d.default)
    ),
]

BINARY = [
    observed(
        "add", torch.add, (operator.add, operator.iadd, "add", "add_", "__add__"), inputs=2,
        scale_equivariant=True, kernels=k.binary(Q.add.default), refuse=refuse_binary,
    ),
    observed(
        "mul", torch.mul, (operator.mul, operator.imul, "mul", "mul_", torch.multiply), inputs=2,
        product=True, kernels=k.binary(Q.mul.default), refuse=refuse_binary,
    ),
    floating("sub", torch.sub, (operator.sub, operator.isub, "sub", "sub_"), inputs=2, scale_equivariant=True,
             reason=NO_KERNEL),
    floating(
        "div", torch.div, (operator.truediv, operator.itruediv, "div", "div_", torch.true_divide), inputs=2,
        reason=NO_KERNEL,
    ),
    OpRule(
        "matmul", torch.matmul, (operator.matmul, "matmul", torch.bmm, "bmm"), inputs=2,
        kernels=k.elementwise_pair(Q.matmul.default), prefer_float=DEQUANTIZES,
    ),
    floating("scaled_dot_product_attention", F.scaled_dot_product_attention, (),
             "attn_mask dropout_p is_causal scale enable_gqa", inputs=3, reason=NO_KERNEL),
    OpRule("cat", torch.cat, (torch.concat, torch.concatenate), "dim", inputs=0, joins=True, scale_equivariant=True,
           kernels=k.cat),
    OpRule("stack", torch.stack, (), "dim", inputs=0, joins=True, scale_equivariant=True, kernels=k.cat),
]  # fmt: skip

CLAMPS = [
    share("relu", F.relu, (nn.ReLU, torch.relu, torch.relu_, "relu", "relu_", F.relu_),
          clamp=lambda call: (0.0, INF), keeps_channels=True),
    share("relu6", F.relu6, (nn.ReLU6,), clamp=lambda call: (0.0, 6.0), keeps_channels=True,
          scale_equivariant=False),
    share("hardtanh", F.hardtanh, (nn.Hardtanh, F.hardtanh_), "min_val max_val", keeps_channels=True,
          clamp=lambda call: (call.param("min_val", -1.0), call.param("max_val", 1.0)),
          scale_equivariant=False),
    share("clamp", torch.clamp, ("clamp", "clamp_", torch.clip, "clip"), "min max", keeps_channels=True,
          clamp=lambda call: (call.param("min", -INF), call.param("max", INF)), refuse=refuse_float_argument,
          scale_equivariant=False),
]  # fmt: skip

ACTIVATIONS = [
    observed("hardswish", F.hardswish, (nn.Hardswish,), kernels=k.elementwise(Q.hardswish.default)),
    observed(
        "leaky_relu", F.leaky_relu, (nn.LeakyReLU, F.leaky_relu_), "negative_slope", scale_equivariant=True,
        kernels=k.elementwise(
            Q.leaky_relu.default, extra=lambda c: (c.kwargs.get("negative_slope", 0.01), False)
        ),
    ),
    OpRule("sigmoid", torch.sigmoid, (nn.Sigmoid, F.sigmoid, "sigmoid", "sigmoid_", torch.special.expit),
           output=Output.FIXED, fixed=UNIT_RANGE, kernels=k.elementwise(Q.sigmoid.default)),
    OpRule("hardsigmoid", F.hardsigmoid, (nn.Hardsigmoid,),
           output=Output.FIXED, fixed=UNIT_RANGE, kernels=k.fixed(torch.ops.aten.hardsigmoid.default)),
    OpRule("tanh", torch.tanh, (nn.Tanh, F.tanh, "tanh", "tanh_"),
           output=Output.FIXED, fixed=SIGNED_UNIT_RANGE, kernels=k.fixed(torch.ops.aten.tanh.default)),
    observed("elu", F.elu, (nn.ELU, F.elu_), "alpha", kernels=k.elu),
    observed("prelu", nn.PReLU, scale_equivariant=True,
             kernels=k.no_kernels, reason="the int8 kernel rounds its slopes, too"),
    observed("silu", F.silu, (nn.SiLU,), kernels=k.silu),
    floating("gelu", F.gelu, (nn.GELU,), "approximate", reason=NO_KERNEL),
    floating("mish", F.mish, (nn.Mish,), reason=NO_KERNEL),
    floating("softplus", F.softplus, (nn.Softplus,), "beta threshold", reason=NO_KERNEL),
    floating("log_softmax", F.log_softmax, (nn.LogSoftmax, torch.log_softmax, "log_softmax"), "dim",
             reason=NO_KERNEL),
    OpRule("softmax", F.softmax, (nn.Softmax, torch.softmax, "softmax"), "dim", output=Output.FIXED,
           fixed=UNIT_RANGE, kernels=k.elementwise(Q.softmax.default, "dim"), prefer_float=DEQUANTIZES),
]  # fmt: skip

NORMS = [
    OpRule(
        "layer_norm", nn.LayerNorm, affine=-1, prefer_float=DEQUANTIZES,
        kernels=k.elementwise(
            Q.layer_norm.default, extra=lambda c: (list(c.module.normalized_shape), c.module.weight, c.module.bias, c.module.eps)),  # type: ignore[union-attr,arg-type]  # noqa: E501
    ),
    OpRule(
        "group_norm", nn.GroupNorm, affine=1, prefer_float=DEQUANTIZES,
        kernels=k.elementwise(
            Q.group_norm.default, extra=lambda c: (c.module.num_groups, c.module.weight, c.module.bias, c.module.eps)),  # type: ignore[union-attr]
    ),
    *(
        OpRule(
            f"instance_norm{d}d", getattr(nn, f"InstanceNorm{d}d"), affine=1, prefer_float=DEQUANTIZES,
            refuse=lambda c: "it keeps running statistics" if c.param("track_running_stats") else None,
            kernels=k.elementwise(
                Q.instance_norm.default, extra=lambda c: (c.module.weight, c.module.bias, c.module.eps)),  # type: ignore[union-attr]
        )
        for d in (1, 2, 3)
    ),
]  # fmt: skip

RECURRENT = [
    *(
        floating(cls.__name__.lower(), cls, reason=WITH_DYNAMIC, dynamic=d.DynamicRecurrent,
                 refuse_dynamic=d.refuse_recurrent)
        for cls in (nn.LSTM, nn.GRU)
    ),
    *(
        floating(cls.__name__.lower(), cls, reason=WITH_DYNAMIC, dynamic=d.DynamicCell)
        for cls in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    ),
    floating("rnn", nn.RNN, reason="torch has int8 kernels for LSTM, GRU and the cells, not for nn.RNN"),
    floating("embedding_bag", nn.EmbeddingBag, reason=WITH_DYNAMIC, dynamic=d.RowwiseEmbeddingBag,
             refuse_dynamic=d.refuse_bag),
]  # fmt: skip

_POOL = "kernel_size stride padding dilation ceil_mode return_indices"
_AVG = "kernel_size stride padding ceil_mode count_include_pad divisor_override"

POOLS = [
    share("max_pool1d", F.max_pool1d, (nn.MaxPool1d, torch.max_pool1d, F.max_pool1d_with_indices), _POOL,
          refuse=refuse_pool, keeps_channels=True),
    share("max_pool2d", F.max_pool2d, (nn.MaxPool2d, torch.max_pool2d, F.max_pool2d_with_indices), _POOL,
          refuse=refuse_pool, keeps_channels=True),
    floating("max_pool3d", F.max_pool3d, (nn.MaxPool3d, torch.max_pool3d, F.max_pool3d_with_indices), _POOL,
             reason=NO_KERNEL),
    share("avg_pool2d", F.avg_pool2d, (nn.AvgPool2d,), _AVG, keeps_channels=True),
    share("avg_pool3d", F.avg_pool3d, (nn.AvgPool3d,), _AVG, keeps_channels=True),
    share("avg_pool1d", F.avg_pool1d, (nn.AvgPool1d,), "kernel_size stride padding ceil_mode count_include_pad",
          keeps_channels=True),
    # Averages over whole images span a far smaller range than what they average: their own qparams keep more
    # than the int8 kernels can, whose output has those of the input.
    *(
        OpRule(f"adaptive_avg_pool{d}d", getattr(F, f"adaptive_avg_pool{d}d"),
               (getattr(nn, f"AdaptiveAvgPool{d}d"),), "output_size", scale_equivariant=True, kernels=k.no_kernels,
               reason=AVERAGES)
        for d in (1, 2, 3)
    ),
    OpRule("mean", torch.mean, ("mean",), "dim keepdim", scale_equivariant=True, kernels=k.no_kernels, reason=AVERAGES,
           refuse=lambda c: None if "dim" in c.node.kwargs else "it averages over the batch, too"),
]  # fmt: skip

SHAPES = [
    view("reshape", torch.reshape, ("view", "reshape"), "shape"),
    view("flatten", torch.flatten, (nn.Flatten, "flatten"), "start_dim end_dim"),
    view("unflatten", torch.unflatten, (nn.Unflatten, "unflatten"), "dim sizes",
          from_module=lambda m: {"dim": m.dim, "sizes": m.unflattened_size}),
    view("permute", torch.permute, ("permute",), "dims"),
    view("transpose", torch.transpose, ("transpose", torch.swapaxes, "swapaxes"), "dim0 dim1"),
    view("squeeze", torch.squeeze, ("squeeze",), "dim"),
    view("unsqueeze", torch.unsqueeze, ("unsqueeze",), "dim"),
    view("expand", "expand", (), "size", refuse=lambda c: NO_KERNEL),
    share("repeat", "repeat", (), "repeats", refuse=lambda c: NO_KERNEL),
    view("select", torch.select, ("select",), "dim index"),
    view("narrow", torch.narrow, ("narrow",), "dim start length"),
    view("chunk", torch.chunk, ("chunk",), "chunks dim", multiple=True),
    view("split", torch.split, ("split",), "split_size_or_sections dim", multiple=True),
    view("getitem", "getitem", (operator.getitem,)),
    share("clone", torch.clone, ("clone",), keeps_channels=True),
    share("pixel_shuffle", F.pixel_shuffle, (nn.PixelShuffle,), "upscale_factor"),
    share("pixel_unshuffle", F.pixel_unshuffle, (nn.PixelUnshuffle,), "downscale_factor"),
    share("channel_shuffle", torch.channel_shuffle, (nn.ChannelShuffle,), "groups"),
    share("pad", F.pad, (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d), "pad mode value",
          refuse=refuse_pad, from_module=pad_of_module),
    share("interpolate", F.interpolate, (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
          "size scale_factor mode align_corners recompute_scale_factor antialias", refuse=refuse_interpolate,
          keeps_channels=True),
]  # fmt: skip


def _always(call: Call) -> bool:
    return True


def _at_inference(call: Call) -> bool:
    """Dropout: a module is in eval mode; the function drops wherever it is told to."""
    return call.module is not None or not call.param("training", True) or call.param("p", 0.5) == 0


_DROPOUTS = tuple(getattr(nn, f"{kind}{d}") for kind in ("Dropout",) for d in ("1d", "2d", "3d"))

NOOPS = [
    floating("identity", nn.Identity, views=True, noop=_always, reason="does nothing"),
    floating("dropout", F.dropout, (nn.Dropout, nn.AlphaDropout, *_DROPOUTS, F.dropout1d, F.dropout2d, F.dropout3d),
             "p training", views=True, noop=_at_inference, reason="drops values at random, also at inference"),
    floating("contiguous", "contiguous", views=True, noop=_always, reason="does nothing"),
    floating("detach", torch.detach, ("detach",), views=True, noop=_always, reason="does nothing"),
    floating("quant_stub", quant_stub, views=True, scale_equivariant=True, reason="border of the quantized region"),
    floating("dequant_stub", dequant_stub, views=True, scale_equivariant=True, reason="border of the quantized region"),
]  # fmt: skip

SIZES = [
    meta("size", "size"),
    meta("dim", "dim", ("numel", "ndimension", "is_contiguous", len)),
    meta("getattr", getattr),
]


def build_table() -> OpTable:
    """The rows of this backend."""
    rows: list[Any] = [
        *WEIGHTED, *BATCH_NORMS, *BINARY, *CLAMPS, *ACTIVATIONS, *NORMS, *RECURRENT, *POOLS, *SHAPES,
        *NOOPS, *SIZES,
    ]  # fmt: skip
    return OpTable(rows)
