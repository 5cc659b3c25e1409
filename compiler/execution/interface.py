"""What forward() takes and returns, beyond the names of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import torch
from torch import Tensor
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

Sizes = dict[Any, int]  # by symbol

ANY_SIZE = 2**62  # larger than any tensor


@dataclass(frozen=True)
class Leaf:
    """A tensor or plain value among the inputs of forward().

    Attributes:
        name: the input that it is, or is part of.
        path: where it is in that input.
        sizes: of a tensor, by axis: an int, a symbol for what may vary, or a sympy expression over symbols.
        value: of what is no tensor: the graph holds for this value only.
    """

    name: str
    path: tuple[Any, ...]
    sizes: tuple[Any, ...] | None
    value: Any = None

    @property
    def label(self) -> str:
        """As the user would write it: ``input_ids``, ``images[0]``."""
        return self.name + str(pytree.keystr(self.path))

    def violation(self, given: Any, known: Sizes) -> str | None:
        """What is wrong with the input ``given``; None if nothing is. Adds sizes to ``known``."""
        try:
            value = pytree.key_get(given, self.path) if self.path else given
        except (KeyError, IndexError, TypeError, AttributeError):
            return f"Input '{self.label}' is missing; forward() was traced with it."
        if self.sizes is None:
            same = type(value) is type(self.value) and bool(value == self.value)
            known_value = f"forward() was traced for {_shown(self.value)}"
            return None if same else f"Input '{self.label}' is {_shown(value)}; {known_value}."
        if not isinstance(value, Tensor):
            return f"Input '{self.label}' is {_shown(value)}; forward() was traced for a tensor."
        if value.dim() != len(self.sizes):
            return f"Input '{self.label}' has {value.dim()} axes; forward() was traced for {len(self.sizes)}."
        for axis, (size, wanted) in enumerate(zip(value.shape, self.sizes, strict=True)):
            if not isinstance(wanted, int):
                wanted = known.setdefault(wanted, size) if wanted.is_Symbol else int(wanted.subs(known))
            if size != wanted:
                return f"Input '{self.label}' has size {size} on axis {axis}; forward() was traced for {wanted}."
        return None


@dataclass(frozen=True)
class Interface:
    """The calls that a graph holds for, and the structure of its results.

    Attributes:
        leaves: all tensors and values among the inputs.
        ranges: the least and the largest size for each symbol.
        structure: of the outputs, whose leaves the graph returns as a tuple; None: as the graph returns them.
        kinds: what each input is, by its name, as :func:`kind_of` tells; those that are missing may be anything.
    """

    leaves: tuple[Leaf, ...] = ()
    ranges: Mapping[Any, tuple[int, int]] = field(default_factory=dict)
    structure: pytree.TreeSpec | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)

    def violation(self, names: Sequence[str], inputs: Sequence[Any]) -> str | None:
        """What of a call is not as the graph needs it: one sentence; None if all is."""
        given, known = dict(zip(names, inputs, strict=True)), Sizes()
        for name, kind in self.kinds.items():
            now = kind_of(given[name])
            if now != kind:
                return f"Input '{name}' is {now}; forward() was traced for {kind}."
        for leaf in self.leaves:
            wrong = leaf.violation(given[leaf.name], known)
            if wrong:
                return wrong
        for symbol, (least, largest) in self.ranges.items():
            size = known.get(symbol, least)
            if not least <= size <= largest:
                leaf = next(leaf for leaf in self.leaves if symbol in (leaf.sizes or ()))
                axis = (leaf.sizes or ()).index(symbol)
                wanted = f"{least} or more" if largest == ANY_SIZE else f"{least} to {largest}"
                return f"Input '{leaf.label}' has size {size} on axis {axis}; forward() was traced for {wanted}."
        return None

    def rebuilt(self, outputs: Any) -> Any:
        """``outputs`` of the graph in the structure that forward() returns."""
        return _mutable(outputs) if self.structure is None else pytree.tree_unflatten(list(outputs), self.structure)


ANY_CALL = Interface()  # of a graph that holds for every call


def kind_of(value: Any) -> str:
    """What an input is, but for its sizes and values: "a float tensor", "None", "[a number, None]"."""
    if isinstance(value, Tensor):
        floats = value.is_floating_point() or value.is_complex()
        return "a float tensor" if floats else "a bool tensor" if value.dtype == torch.bool else "an integer tensor"
    if value is None or isinstance(value, bool):
        return "None" if value is None else "a bool"
    if isinstance(value, Number):
        return "a number"
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=repr)
        return f"{{{', '.join(f'{key!r}: {kind_of(each)}' for key, each in items)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(kind_of, value))}]"
    return type(value).__name__


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | None) else kind_of(value)


def _mutable(outputs: Any) -> Any:
    """``outputs`` with plain lists and dicts for those of ``torch.fx``, which refuse to change."""
    if isinstance(outputs, immutable_list):
        return list(map(_mutable, outputs))
    if isinstance(outputs, immutable_dict):
        return {key: _mutable(value) for key, value in outputs.items()}
    return tuple(map(_mutable, outputs)) if type(outputs) is tuple else outputs
