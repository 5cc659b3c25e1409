"""The inputs of a graph for a call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn


@dataclass(frozen=True)
class Signature:
    """The inputs of forward().

    Attributes:
        names: of all inputs, in order.
        defaults: of those that have one.
        more: it has ``*args`` or ``**kwargs``, and takes other inputs, too.
    """

    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    more: bool = False

    @staticmethod
    def of(gm: fx.GraphModule) -> Signature:
        """The signature of the forward() of ``gm``."""
        nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
        return Signature(tuple(str(n.target) for n in nodes), {str(n.target): n.args[0] for n in nodes if n.args})

    @staticmethod
    def of_forward(model: nn.Module) -> Signature:
        """The signature of the forward() of ``model``."""
        parameters = inspect.signature(model.forward).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        defaults = {p.name: p.default for p in named if p.default is not p.empty}
        return Signature(tuple(p.name for p in named), defaults, len(named) < len(parameters))

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The value of each input by name, for a call with ``args`` and ``kwargs``.

        Raises:
            TypeError: the call does not fit forward().
        """
        count = len(self.names)
        if not self.more:
            return dict(zip(self.names, self.bind(args, kwargs), strict=True))
        known = {name: value for name, value in kwargs.items() if name in self.names}
        named = dict(zip(self.names, self.bind(args[:count], known), strict=True))
        return {**named, **{f"args[{i}]": value for i, value in enumerate(args[count:])}, **kwargs}

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The value of each input, in order, for a call with ``args`` and ``kwargs``.

        Raises:
            TypeError: the call does not fit forward().
        """
        names = self.names
        if not kwargs and len(args) == len(names):
            return list(args)
        if len(args) > len(names):
            raise TypeError(f"forward() takes {len(names)} inputs ({', '.join(names)}), got {len(args)}")
        given = dict(zip(names, args, strict=False))
        unknown = [k for k in kwargs if k not in names or k in given]
        if unknown:
            raise TypeError(
                f"forward() has no input named {unknown[0]!r}, or it is given twice; its inputs are {', '.join(names)}"
            )
        given |= kwargs
        missing = [n for n in names if n not in given and n not in self.defaults]
        if missing:
            raise TypeError(f"forward() needs input {missing[0]!r}; its inputs are {', '.join(names)}")
        return [given.get(n, self.defaults.get(n)) for n in names]


def bind_inputs(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The value of each input of ``gm`` for one call, see :class:`Signature`."""
    return Signature.of(gm).bind(args, kwargs)
