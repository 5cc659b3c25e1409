"""The user's choices: what is quantized, and how."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Union

from torch import fx, nn

from .errors import ConfigError, nearest

WEIGHT_SCHEMES = ("per_channel_symmetric", "per_tensor_symmetric", "per_channel_affine", "per_tensor_affine")
ACTIVATION_SCHEMES = ("per_tensor_affine", "per_tensor_symmetric")
ROUNDINGS = ("nearest", "learned")
SWITCH = ("auto", True, False)
OBSERVERS = ("measured", "histogram", "minmax", "moving_average", "percentile", "entropy")

Override = Union["QuantConfig", None]


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
        relu6_as_relu: replace every ReLU6 by ReLU, which changes the function, so that equalization can pass it.
        overrides: other choices for a part of the model. A key is a glob over module paths (``"head.*"``; a path
            covers all modules below it), a module class (``nn.Linear``) or the name of an op (``"add"``); a
            value is a :class:`QuantConfig`, or ``None`` to leave the part in fp32. A path beats a class or an
            op, and among equals the later entry wins. A key that matches nothing is an error.

    Raises:
        ConfigError: a value is not one of the above.
    """

    weight: str = "per_channel_symmetric"
    activation: str = "per_tensor_affine"
    observer: str = "histogram"
    weight_bits: int = 8
    rounding: str = "nearest"
    rounding_seconds: float = 300.0
    equalize: bool | str = "auto"
    smooth: bool | str = "auto"
    absorb_bias: bool | str = "auto"
    correct_bias: bool | str = "auto"
    relu6_as_relu: bool = False
    overrides: Mapping[str | type[nn.Module], Override] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, valid in (
            ("weight", WEIGHT_SCHEMES),
            ("activation", ACTIVATION_SCHEMES),
            ("observer", OBSERVERS),
            ("rounding", ROUNDINGS),
            *((name, SWITCH) for name in ("equalize", "smooth", "absorb_bias", "correct_bias")),
            ("relu6_as_relu", (True, False)),
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
            if value is not None and not isinstance(value, QuantConfig):
                raise ConfigError(
                    f"Override of {key!r} is {value!r}: expected a QuantConfig, or None to leave it in fp32."
                )
            for name in ("relu6_as_relu", "rounding_seconds"):
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


def module_path(node: fx.Node) -> str:
    """The dotted path of the module that ``node`` is, or in whose forward it stands ("" for the root)."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


@dataclass(frozen=True)
class ResolvedConfig:
    """Which :class:`QuantConfig` each node has; ``None`` is "leave in fp32"."""

    default: QuantConfig
    by_node: Mapping[fx.Node, Override]
    keys: Mapping[fx.Node, str | type[nn.Module]]

    def of(self, node: fx.Node) -> Override:
        return self.by_node.get(node, self.default)

    def key_of(self, node: fx.Node) -> str | type[nn.Module] | None:
        """The override entry that decided for ``node``, if any."""
        return self.keys.get(node)


def resolve(config: QuantConfig, named: Iterable[tuple[fx.Node, str]]) -> ResolvedConfig:
    """Match every override against ``named``: pairs of a node and its op's name.

    Raises:
        ConfigError: an override matches no node.
    """
    nodes = list(named)
    by_node: dict[fx.Node, Override] = {}
    keys: dict[fx.Node, str | type[nn.Module]] = {}
    matched: set[str | type[nn.Module]] = set()
    for matches in (_is_kind, _is_at_path):
        for key, value in config.overrides.items():
            hits = [node for node, op in nodes if matches(key, node, op)]
            by_node.update((n, value) for n in hits)
            keys.update((n, key) for n in hits)
            matched.update([key] if hits else [])
    for key in config.overrides:
        if key not in matched:
            valid = {module_path(n) or n.name for n, _ in nodes} | {op for _, op in nodes if op}
            raise ConfigError(f"Override {key!r} matches nothing in the model. {nearest(key, sorted(valid))}")
    return ResolvedConfig(replace(config, overrides={}), by_node, keys)


def _is_kind(key: str | type[nn.Module], node: fx.Node, op: str) -> bool:
    """Whether ``key`` is the op's name, or the class of its module or of one around it."""
    if isinstance(key, str):
        return key == op
    stack = node.meta.get("nn_module_stack") or {}
    return any(isinstance(cls, type) and issubclass(cls, key) for _, cls in stack.values())


def _is_at_path(key: str | type[nn.Module], node: fx.Node, op: str) -> bool:
    """Whether ``key`` is a glob for the path of the node's module or of one around it, or for its own name."""
    if not isinstance(key, str):
        return False
    parts = module_path(node).split(".")
    ancestors = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return fnmatch.fnmatchcase(node.name, key) or any(fnmatch.fnmatchcase(a, key) for a in ancestors)
