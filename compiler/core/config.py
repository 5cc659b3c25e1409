"""The user's choices: what is quantized, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Union, get_args

import torch
from torch import nn

from .errors import ConfigError
from .messages import check_choice, shown

WeightScheme = Literal["per_channel_symmetric", "per_tensor_symmetric", "per_channel_affine", "per_tensor_affine"]
ActivationScheme = Literal["per_tensor_affine", "per_tensor_symmetric"]
Rounding = Literal["nearest", "learned"]
Scales = Literal["moving_average", "learned"]
ObserverName = Literal["measured", "histogram", "minmax", "moving_average", "percentile", "entropy"]
Switch = Literal["auto", True, False]

WEIGHT_SCHEMES = get_args(WeightScheme)
ACTIVATION_SCHEMES = get_args(ActivationScheme)
OBSERVERS = get_args(ObserverName)
SWITCHES = ("equalize", "smooth", "absorb_bias", "correct_bias")  # passes that are "auto", True or False

# What an override may ask for by name: layers that take and give fp32.
DYNAMIC_DTYPES = {"dynamic": torch.int8, "fp16": torch.float16}

Override = Union["QuantConfig", Literal["dynamic", "fp16"], None]

_VALID = {
    "weight": WEIGHT_SCHEMES,
    "activation": ACTIVATION_SCHEMES,
    "observer": OBSERVERS,
    "scales": get_args(Scales),
    "rounding": get_args(Rounding),
    **dict.fromkeys(SWITCHES, get_args(Switch)),
    "relu6_as_relu": (True, False),
    "mixed_precision": (True, False),
    "deterministic": (True, False),
}
_WHOLE_MODEL = ("relu6_as_relu", "rounding_seconds", "mixed_precision", "deterministic")


@dataclass(frozen=True)
class QuantConfig:
    """How to quantize. The defaults need no labels and little time.

    Attributes:
        weight: granularity and symmetry of weights: ``"per_channel_symmetric"``, ``"per_tensor_symmetric"``,
            ``"per_channel_affine"`` or ``"per_tensor_affine"`` (int8).
        activation: ``"per_tensor_affine"`` or ``"per_tensor_symmetric"`` (uint8).
        observer: how the range of an activation is found: ``"histogram"`` (least squared error), ``"measured"`` (least
            error at the outputs of the layers that read it), ``"minmax"``, ``"moving_average"``, ``"percentile"``
            (99.99 %, but never narrower than the range of least squared error) or ``"entropy"`` (least KL divergence).
        scales: how scales change in quantization-aware training: ``"moving_average"`` (scales of activations follow
            the extremes of each batch, scales of weights follow the weights) or ``"learned"`` (by gradient; LSQ, Esser
            et al. 2020, arXiv:1902.08153; scales of asymmetric weights follow the weights). Only "qat" reads it.
        weight_bits: 2 to 8. Fewer than 8 bits use the int8 kernels with a narrower range of integers. Dynamic layers
            and embeddings of the llvm backend store up to 4 bits in 4 bits.
        group_size: how many inputs of an output share a scale: a multiple of 16, or None (all). Only dynamic layers
            read it, and only symmetric weights have groups. 32 to 128 is usual for 4 bits.
        rounding: of weights: ``"nearest"``, or ``"learned"`` (each weight up or down, so that the error of the layer's
            output is least; AdaRound, Nagel et al. 2020, arXiv:2004.10568). Learning takes seconds to minutes.
        rounding_seconds: time limit for learned rounding of the whole model. Later layers are rounded to nearest.
        equalize: scale channels across layers so that their weight ranges agree
            (:mod:`fxquant.passes.rewrites.equalize`). ``"auto"``: only layers whose weights have one scale.
        smooth: scale channels across layers so that their activation ranges agree, as far as the weights allow
            (:mod:`fxquant.passes.rewrites.smooth`). ``"auto"``: where the measured noise falls.
        absorb_bias: move the least value of an activation into the next bias
            (:mod:`fxquant.passes.rewrites.absorb_bias`). ``"auto"``: only layers whose weights have one scale.
        correct_bias: subtract the mean error of each output channel from the bias
            (:mod:`fxquant.passes.quantization.correct_bias`). ``"auto"``: if the error of the model's output falls.
        mixed_precision: leave ops in fp32 that ruin the output in int8, or are slower in int8
            (:mod:`fxquant.compiler.workflows.mixed_precision`). Only "static" reads it.
        deterministic: the same model and data give the same result in every compilation on one kind of CPU, however
            busy the machine is: a cost model decides what is faster in int8, and measured times choose only between
            kernels that give the same integers. False: measured times decide. :func:`fxquant.search` always measures.
        relu6_as_relu: replace every ReLU6 by ReLU, so that equalization can pass it. This changes the function: an
            ``AccuracyWarning`` says by how much if the float output on the first batch has less than 20 dB.
        overrides: other choices for a part of the model. A key is a glob over module paths (``"head.*"``; a path
            includes all modules below it), a module class (``nn.Linear``) or the name of an op (``"add"``). A
            value is a :class:`QuantConfig`, ``"dynamic"`` (int8 weights, activations quantized at run time), ``"fp16"``
            (fp16 weights), or ``None`` (leave the part in fp32). A path beats a class or an op; among equals the
            later entry wins. A key that matches nothing is an error.

    Raises:
        ConfigError: a value is not one of the above.
    """

    weight: WeightScheme = "per_channel_symmetric"
    activation: ActivationScheme = "per_tensor_affine"
    observer: ObserverName = "histogram"
    scales: Scales = "moving_average"
    weight_bits: int = 8
    group_size: int | None = None
    rounding: Rounding = "nearest"
    rounding_seconds: float = 300.0
    equalize: Switch = "auto"
    smooth: Switch = "auto"
    absorb_bias: Switch = "auto"
    correct_bias: Switch = "auto"
    mixed_precision: bool = True
    deterministic: bool = True
    relu6_as_relu: bool = False
    overrides: Mapping[str | type[nn.Module], Override] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, valid in _VALID.items():
            check_choice(f"QuantConfig.{name}", getattr(self, name), valid)
        if not isinstance(self.weight_bits, int) or not 2 <= self.weight_bits <= 8:
            raise ConfigError(f"QuantConfig.weight_bits is {shown(self.weight_bits)}; it must be an int from 2 to 8.")
        self._check_group_size()
        seconds = self.rounding_seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise ConfigError(
                f"QuantConfig.rounding_seconds is {shown(seconds)}; it must be a positive number of seconds."
            )
        self._check_overrides()

    def _check_group_size(self) -> None:
        size = self.group_size
        if size is None:
            return
        if isinstance(size, bool) or not isinstance(size, int) or size < 16 or size % 16:
            raise ConfigError(f"QuantConfig.group_size is {shown(size)}; it must be a multiple of 16, or None.")
        if self.weight != "per_channel_symmetric":
            raise ConfigError(f"group_size={size} needs weight='per_channel_symmetric', not {self.weight!r}.")

    def _check_overrides(self) -> None:
        if not isinstance(self.overrides, Mapping):
            raise ConfigError(f"QuantConfig.overrides must be a dict, got {type(self.overrides).__name__}.")
        for key, value in self.overrides.items():
            if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, nn.Module)):
                raise ConfigError(
                    f"Override key {shown(key)}: expected a module path, an op name or an nn.Module class."
                )
            if value is None or (isinstance(value, str) and value in DYNAMIC_DTYPES):
                continue
            if not isinstance(value, QuantConfig):
                names = " or ".join(map(repr, DYNAMIC_DTYPES))
                raise ConfigError(
                    f"Override of {key!r} is {shown(value)}: expected a QuantConfig, {names}, or None, which leaves it "
                    "in fp32."
                )
            for name in _WHOLE_MODEL:
                if getattr(value, name) != getattr(type(self), name):
                    raise ConfigError(f"Override of {key!r} sets {name}, which is for the whole model only.")
            if value.overrides:
                raise ConfigError(f"Override of {key!r} has overrides of its own; write them at the top level.")

    @property
    def weight_per_channel(self) -> bool:
        return self.weight.startswith("per_channel")

    @property
    def weight_symmetric(self) -> bool:
        return self.weight.endswith("symmetric")

    @property
    def activation_symmetric(self) -> bool:
        return self.activation.endswith("symmetric")
