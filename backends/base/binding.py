"""What a backend can do with an op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .dynamic_layer import DynamicLayer
from .dynamic_spec import DynamicSpec
from .op import Call


@dataclass(frozen=True)
class Binding:
    """What a backend can do with an op, as passes may ask. A backend adds its kernels in a subclass.

    Attributes:
        int8: the op has an int8 form in the static scheme.
        reason: why it has none, or why its int8 form computes in fp32.
        refuse: the reason why a given call cannot be int8 here, or None.
        prefer_fp32: why the op stays in fp32 although it has an int8 form. An override still asks for int8.
        per_channel: the weight can have one scale per output channel; False: one scale in all.
        float_output: the int8 form can return fp32, so that its output needs no qparams.
        dynamic: makes the layer with fp32 input and output and int8 or fp16 weights; None if there is none.
        mixed_weights: such a layer may have some weights in fp16 and others in int8.
        group_scales: each output of such a layer may have a scale for each group of inputs.
        refuse_dynamic: the reason why a given module cannot become such a layer, or None.
        prefer_float: why a given module stays in fp32 although it could become one, or None. An override still asks for
            it.
    """

    int8: bool = True
    reason: str = ""
    refuse: Callable[[Call], str | None] | None = None
    prefer_fp32: str = ""
    per_channel: bool = True
    float_output: bool = False
    dynamic: Callable[[DynamicSpec], DynamicLayer] | None = None
    mixed_weights: bool = False
    group_scales: bool = False
    refuse_dynamic: Callable[[nn.Module], str | None] | None = None
    prefer_float: Callable[[nn.Module], str | None] | None = None
