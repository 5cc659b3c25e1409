"""Which ops are int8, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from ...backends.base.backend import Backend, binding_of
from ...backends.base.binding import Binding
from ...backends.base.op import Output
from ...backends.ops.units import Matched, Unit
from ...compiler.core.config import QuantConfig
from ...compiler.core.overrides import ResolvedConfig
from ...compiler.execution.shapes import ValueInfo
from .precision_cut import OUTSIDE

BORDERS_COST_MORE = "the ops around it are fp32: the conversions would cost more than int8 saves"
INPUT_IS_FP32 = "it only moves values, and its input is fp32"


@dataclass(frozen=True)
class PassedValue:
    """A value, and the units that make and read it.

    Attributes:
        value: the node.
        maker: the root of the int8 unit that makes it; :data:`OUTSIDE` if it is made in fp32.
        readers: the roots of the int8 units that read it, and :data:`OUTSIDE` if an fp32 op does.
        free: its op can return fp32 as well as int8.
    """

    value: fx.Node
    maker: fx.Node | None
    readers: frozenset[fx.Node | None]
    free: bool


@dataclass(frozen=True)
class Assignment:
    """The precision of every op of a graph.

    Attributes:
        backend: what it was decided for.
        matched: all ops as units.
        reasons: why a unit is fp32, by its root.
        config: the configuration of each op.
        values: shape and dtype of each value.
        passed: the values between units, before anything is placed between them.
    """

    backend: Backend
    matched: Matched
    reasons: Mapping[fx.Node, str]
    config: ResolvedConfig
    values: Mapping[fx.Node, ValueInfo]
    passed: Sequence[PassedValue]

    def is_int8(self, unit: Unit) -> bool:
        return unit.root not in self.reasons

    def config_of(self, unit: Unit) -> QuantConfig:
        """How an int8 unit is quantized."""
        config = self.config.of(unit.root)
        assert config is not None
        return config

    def binding(self, unit: Unit) -> Binding:
        """What the backend can do with the op of ``unit``."""
        return binding_of(self.backend, unit.row)

    @property
    def int8_units(self) -> list[Unit]:
        return [u for u in self.matched.units if self.is_int8(u)]

    @property
    def int8_layers(self) -> list[Unit]:
        """The int8 units with weights, without those that look rows up."""
        return [u for u in self.int8_units if u.row.weighted and u.row.output is not Output.WEIGHT_ONLY]

    def with_fp32(self, reasons: Mapping[str, str]) -> Assignment:
        """The same with more units in fp32: their reasons by the names of their roots."""
        more = {u.root: reasons[u.root.name] for u in self.int8_units if u.root.name in reasons}
        return replace(self, reasons={**self.reasons, **more})


def tied(units: Mapping[fx.Node, Unit], passed: Sequence[PassedValue]) -> Iterator[tuple[Any, Any]]:
    """Pairs of units, by their roots, of which the first is int8 only if the second is.

    An op that passes integers on needs integers; and the parts of a tensor are picked all from integers or all from
    fp32. ``units`` are those that may be int8.
    """
    for value in passed:
        maker = value.maker if value.maker in units else OUTSIDE
        readers = [r if r in units else OUTSIDE for r in value.readers]
        yield from ((r, maker) for r in readers if r is not OUTSIDE and units[r].row.output is Output.SHARED)
        if maker is not OUTSIDE and units[maker].row.multiple:
            yield from ((maker, r) for r in readers)


def reads_size(user: fx.Node, owner: Mapping[fx.Node, Unit], values: Mapping[fx.Node, ValueInfo]) -> bool:
    """Whether ``user`` reads only the shape of its input: it is neither an int8 nor an fp32 reader."""
    return user not in owner and user not in values and user.op != "output"
