"""Ops that move values without computing: shapes, selections, padding, resizing."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .kinds import shared, size, view


def _pad_parameters(module: Any) -> dict[str, Any]:
    """The call of ``F.pad`` that a padding module makes."""
    mode = "reflect" if isinstance(module, nn.ReflectionPad2d) else "constant"
    return {"pad": module.padding, "mode": mode, "value": getattr(module, "value", None)}


ROWS = [
    view("reshape", torch.reshape, ("view", "reshape"), "shape"),
    view("flatten", torch.flatten, (nn.Flatten, "flatten"), "start_dim end_dim"),
    view("unflatten", torch.unflatten, (nn.Unflatten, "unflatten"), "dim sizes",
         from_module=lambda m: {"dim": m.dim, "sizes": m.unflattened_size}),
    view("permute", torch.permute, ("permute",), "dims"),
    view("transpose", torch.transpose, ("transpose", torch.swapaxes, "swapaxes"), "dim0 dim1"),
    view("squeeze", torch.squeeze, ("squeeze",), "dim"),
    view("unsqueeze", torch.unsqueeze, ("unsqueeze",), "dim"),
    view("expand", "expand", (), "size"),
    shared("repeat", "repeat", (), "repeats"),
    view("select", torch.select, ("select",), "dim index"),
    view("narrow", torch.narrow, ("narrow",), "dim start length"),
    view("chunk", torch.chunk, ("chunk",), "chunks dim", multiple=True),
    view("split", torch.split, ("split",), "split_size_or_sections dim", multiple=True),
    view("getitem", "getitem", (operator.getitem,)),
    shared("clone", torch.clone, ("clone",), keeps_channels=True),
    shared("pixel_shuffle", F.pixel_shuffle, (nn.PixelShuffle,), "upscale_factor"),
    shared("pixel_unshuffle", F.pixel_unshuffle, (nn.PixelUnshuffle,), "downscale_factor"),
    shared("channel_shuffle", torch.channel_shuffle, (nn.ChannelShuffle,), "groups"),
    shared("pad", F.pad, (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d), "pad mode value",
           from_module=_pad_parameters),
    shared("interpolate", F.interpolate, (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
           "size scale_factor mode align_corners recompute_scale_factor antialias", keeps_channels=True),
    size("size", "size"),
    size("dim", "dim", ("numel", "ndimension", "is_contiguous", len)),
    size("getattr", getattr),
]  # fmt: skip
