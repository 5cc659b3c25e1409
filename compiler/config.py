"""The user's choices: what is quantized, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Union

import torch
from torch import nn

from .errors import ConfigError, nearest

WEIGHT_SCHEMES = ("per_channel_symmetric", "per_tensor_symmetric", "per_channel_affine", "per_tensor_affine")
ACTIVATION_SCHEMES = ("per_tensor_affine", "per_tensor_symmetric")
ROUNDINGS = ("nearest", "learned")
SCALES = ("moving_average", "learned")
SWITCHES = ("equalize", "smooth", "absorb_bias", "correct_bias")  # passes that are "auto", True or False
OBSERVERS = ("measured", "histogram", "minmax", "moving_average", "percentile", "entropy")

# Forms of a layer that takes and gives fp32: what an override may ask for by name.
DYNAMIC_FORMS = {"dynamic": torch.int8, "fp16": torch.float16}

Override = Union["QuantConfig", str, None]


@dataclass(frozen=True)
class QuantConfig:
    """How to quantize; the defaults are what gives the best accuracy without measuring.

    Attributes:
        weight: granularity and symmetry of weights: ``"per_channel_symmetric"``, ``"per_tensor_symmetric"``,
            ``"per_channel_affine"`` or ``"per_tensor_affine"`` (int8).
        activation: ``"per_tensor_affine"`` or ``"per_tensor_symmetric"`` (uint8).
        observer: how activation ranges are found: ``"histogram"`` (range of least squared error), ``"measured"``
            (for each value the range that is best for the layers that read it), ``"minmax"``, ``"moving_average"``,
            ``"percentile"`` (99.99 %, unless that costs more than it saves) or ``"entropy"`` (least KL divergence).
        scales: how scales change in quantization-aware training: ``"moving_average"`` (of the extremes of activations;
            scales of weights follow the weights) or ``"learned"`` (by gradient, LSQ: Esser et al. 2020,
            arXiv:1902.08153; those of asymmetric weights follow the weights). Other schemes do not read it.
        weight_bits: 2 to 8; fewer than 8 run on the int8 kernels with the narrower range.
        rounding: of weights: ``"nearest"``, or ``"learned"`` (each weight up or down so that the layer's output error
            is least; Nagel et al. 2020, arXiv:2004.10568), which takes seconds to minutes.
        rounding_seconds: time budget for learned rounding of the whole model; layers beyond it round to nearest.
        equalize: scale channels across layers so that weight ranges are alike (see :mod:`fxquant.passes.equalize`).
            ``"auto"``: for layers whose weights have one scale.
        smooth: scale channels across layers so that activation ranges are alike, as far as the weights can bear it
            (:mod:`fxquant.passes.smooth`). ``"auto"``: where the estimated noise falls.
        absorb_bias: move what an activation never falls below into the next bias (:mod:`fxquant.passes.absorb_bias`).
            ``"auto"``: behind layers that were equalized.
        correct_bias: remove the mean error that quantization adds to each output channel
            (:mod:`fxquant.passes.correct_bias`). ``"auto"``: where the error of the whole model falls.
        mixed_precision: leave ops in fp32 whose int8 form ruins the output, or is measured to be slower
            (:mod:`fxquant.passes.keep_fp32`); "static" only.
        relu6_as_relu: replace every ReLU6 by ReLU, which changes the function, so that equalization can pass it.
        overrides: other choices for a part of the model. A key is a glob over module paths (``"head.*"``; a path
            covers all modules below it), a module class (``nn.Linear``) or the name of an op (``"add"``); a
            value is a :class:`QuantConfig`, ``"dynamic"`` (int8 weights, activations quantized on the fly), ``"fp16"``
            (fp16 weights), or ``None`` to leave the part in fp32. A path beats a class or an op, and among equals the
            later entry wins. A key that matches nothing is an error.

    Raises:
        ConfigError: a value is not one of the above.
    """

    weight: str = "per_channel_symmetric"
    activation: str = "per_tensor_affine"
    observer: str = "histogram"
    scales: str = "moving_average"
    weight_bits: int = 8
    rounding: str = "nearest"
    rounding_seconds: float = 300.0
    equalize: bool | str = "auto"
    smooth: bool | str = "auto"
    absorb_bias: bool | str = "auto"
    correct_bias: bool | str = "auto"
    mixed_precision: bool = True
    relu6_as_relu: bool = False
    overrides: Mapping[str | type[nn.Module], Override] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, valid in (
            ("weight", WEIGHT_SCHEMES),
            ("activation", ACTIVATION_SCHEMES),
            ("observer", OBSERVERS),
            ("scales", SCALES),
            ("rounding", ROUNDINGS),
            *((name, ("auto", True, False)) for name in SWITCHES),
            ("relu6_as_relu", (True, False)),
            ("mixed_precision", (True, False)),
        ):
            value = getattr(self, name)
            if not any(value is v or (isinstance(v, str) and value == v) for v in valid):
                raise ConfigError(f"QuantConfig.{name} is {value!r}. {nearest(value, map(str, valid))}")
        if not isinstance(self.weight_bits, int) or not 2 <= self.weight_bits <= 8:
            raise ConfigError(f"QuantConfig.weight_bits is {self.weight_bits!r}; it must be an int from 2 to 8.")
        seconds = self.rounding_seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise ConfigError(f"QuantConfig.rounding_seconds is {seconds!r}; it must be a positive number of seconds.")
        self._check_overrides()

    def _check_overrides(self) -> None:
        if not isinstance(self.overrides, Mapping):
            raise ConfigError(f"QuantConfig.overrides must be a dict, got {type(self.overrides).__name__}.")
        for key, value in self.overrides.items():
            if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, nn.Module)):
                raise ConfigError(f"Override key {key!r}: expected a module path, an op name or an nn.Module class.")
            if isinstance(value, str) and value in DYNAMIC_FORMS:
                continue
            if value is not None and not isinstance(value, QuantConfig):
                forms = " or ".join(map(repr, DYNAMIC_FORMS))
                raise ConfigError(
                    f"Override of {key!r} is {value!r}: expected a QuantConfig, {forms}, or None to leave it in fp32."
                )
            for name in ("relu6_as_relu", "rounding_seconds", "mixed_precision"):
                if value is not None and getattr(value, name) != getattr(type(self), name):
                    raise ConfigError(f"Override of {key!r} sets {name}, which is for the whole model only.")
            if value is not None and value.overrides:
                raise ConfigError(f"Override of {key!r} has overrides of its own; write them at the top level.")

    @property
    def weight_per_channel(self) -> bool:
        return self.weight.startswith("per_channel")

    @property
    def weight_symmetric(self) -> bool:
        return self.weight.endswith("symmetric")
