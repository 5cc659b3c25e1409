"""A plan: the steps of a program for inputs of given shapes, ready to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ....compiler.core.errors import CallError
from ..codegen.isa import Isa
from ..kernels.operands import BYTES
from ..runtime.jit import Library
from ..runtime.kernels import Kernel, kernel_name, object_code
from ..runtime.native import Arena, NativeProgram
from ..runtime.tables import Address, NativeStep, Stretch
from .costs import cycles_of
from .loops import by_round, stretches
from .memory import Constants, Memory, with_fills
from .steps import AnyStep, Argument, FillStep, Step, TorchStep
from .storage import Storage
from .values import Value
from .waits import Waits
from .weights import Packed, WeightStore

TEAM, WAIT = 15e3, 600.0  # cycles that it takes to start a team of threads, and until all of them have met
DTYPES = {"u8": torch.uint8, "s16": torch.int16, "f32": torch.float32, "i64": torch.int64}


@dataclass(eq=False)
class Segment:
    """Native steps with the rounds of their loops, or one step of torch.

    Attributes:
        first, last: the runs of the steps, among those of all segments.
        small: one thread is faster than several.
    """

    first: int
    last: int
    torch_step: TorchStep | None = None
    stretches: list[tuple[list[Step | FillStep], int]] = field(default_factory=list)
    small: bool = False

    def add(self, steps: list[Step | FillStep], rounds: int) -> None:
        """Append steps that run so many times."""
        self.stretches.append((steps, rounds))
        self.last += rounds * len(steps)

    def cycles(self, isa: Isa) -> float:
        """Cycles of one core."""
        return sum(
            rounds * sum(cycles_of(step, isa) for step in body if isinstance(step, Step))
            for body, rounds in self.stretches
        )


Native = Callable[[Arena, Segment], None]


def _run_native(arena: Arena, segment: Segment) -> None:
    arena.run(segment.first, segment.last, alone=segment.small)


class Plan:
    """A program for inputs of given shapes.

    Args:
        steps: in order.
        inputs: the placeholders whose tensors kernels read, in the order of their index.
        outputs: the tensors that kernels write results to.
        result: what forward() returns, with nodes in it.
        returned: the number of the output that holds a node; others are results of torch.
        store: holds the parameters of kernels.

    Attributes:
        native: the native steps, once each.
        made: the kernel of each native step.
        packed: the bytes of the weights and parameters that it reads, and keeps alive.
    """

    def __init__(
        self, steps: Sequence[AnyStep], inputs: Sequence[fx.Node], outputs: Sequence[Storage], result: Any,
        returned: Mapping[fx.Node, int], isa: Isa, store: WeightStore,
    ) -> None:  # fmt: skip
        self.steps = with_fills(steps)
        self.inputs, self.outputs, self.result, self.returned = list(inputs), list(outputs), result, dict(returned)
        self.memory = Memory.of(self.steps)
        self.constants, self._store = Constants(), store
        self.packed: dict[Packed, int] = {}
        self._layouts: dict[Value, tuple[tuple[int, ...], list[int], int]] = {}
        self.native: list[Step | FillStep] = []
        self.segments: list[Segment] = []
        for body, rounds in stretches(self.steps):
            last = self.segments[-1].last if self.segments else 0
            if isinstance(body[0], TorchStep):
                self.segments.append(Segment(last, last, body[0]))
                continue
            if not self.segments or self.segments[-1].torch_step is not None:
                self.segments.append(Segment(last, last))
            native = [s for s in body if not isinstance(s, TorchStep)]
            self.segments[-1].add(native, rounds)
            self.native += native
        self.made = {s: s.made if isinstance(s, FillStep) else s.make(isa) for s in self.native}
        self.program = self._program(isa)

    def _program(self, isa: Isa) -> NativeProgram:
        kernels: list[Kernel] = list(dict.fromkeys(m.kernel for m in self.made.values()))
        library = Library(object_code(kernels, isa.cpu))
        names = {kernel: kernel_name(kernel) for kernel in kernels}

        def native(step: Step | FillStep) -> NativeStep:
            made = self.made[step]
            arguments = tuple(map(self._address, made.arguments))
            return NativeStep(names[made.kernel], arguments, made.kernel.numbers, made.kernel.items)

        waits, found, needed = Waits(self.memory), list[Stretch](), list[bool]()
        for segment in self.segments:
            found += [Stretch(tuple(map(native, body)), rounds) for body, rounds in segment.stretches]
            own = waits.segment(segment.stretches)
            segment.small = segment.cycles(isa) / 2 < TEAM + WAIT * sum(own)
            needed += own
        return NativeProgram(found, needed, library, self.memory.arena_bytes, self.constants.joined())

    def _address(self, argument: Argument) -> Address:
        if isinstance(argument, Tensor):
            argument = self._store.parameters(argument)
        if isinstance(argument, Packed):
            self.packed[argument] = argument.memory.numel()
            return Address("fixed", argument.memory.data_ptr())
        if isinstance(argument, Storage):
            return Address("arena", self.memory.offsets[argument.root])
        root = argument.storage.root
        if root.place == "constant":
            content = root.content
            assert content is not None
            if not root.shared:
                return Address("constant", self.constants.add(content) + argument.offset)
            place = self._address(self._store.packed(content, "constant", lambda: content))
            return replace(place, offset=place.offset + argument.offset)
        if root.place == "arena":
            return Address("arena", self.memory.offsets[root] + argument.offset, drift=argument.drift)
        index = root.index + (len(self.inputs) if root.place == "output" else 0)
        return Address("given", argument.offset, index, argument.drift)

    def view(self, arena: Arena, value: Value, given: Mapping[fx.Node, Any]) -> Tensor:
        """A tensor of the plan, as it lies in the arena, an input or the constants: integers, or fp32."""
        root = value.storage.root
        if root.place == "input":
            memory = given[self.inputs[root.index]]
        elif root.place == "constant":
            assert root.content is not None
            memory = root.content.view(-1)
        else:
            start = self.memory.offsets[root]
            memory = arena.memory[start : start + root.bytes].view(DTYPES[value.element])
        if value not in self._layouts:
            item = BYTES[value.element]
            self._layouts[value] = value.shape, [s // item for s in value.strides], value.offset // item
        shape, strides, offset = self._layouts[value]
        return memory.as_strided(shape, strides, memory.storage_offset() + offset)

    def run(
        self,
        given: Mapping[fx.Node, Any],
        after: Callable[[int, Arena], None] | None = None,
        native: Native = _run_native,
    ) -> Any:
        """Run on the values of the placeholders.

        Args:
            after: called after each step of each round, which then runs alone, with its index among them and the
                arena, which it may change.
            native: runs the native steps of a segment.
        """
        results = [_empty(s) for s in self.outputs]
        env: dict[fx.Node, Any] = dict(given)
        with self.program.arena() as arena:
            arena.give([*(given[n] for n in self.inputs), *results])
            for index, segment in enumerate(self.segments if after is None else self._single_steps()):
                if segment.torch_step is None:
                    native(arena, segment)
                else:
                    self._run_torch(segment.torch_step, arena, env)
                if after is not None:
                    after(index, arena)
        return map_arg(self.result, lambda n: results[self.returned[n]] if n in self.returned else env[n])

    def _single_steps(self) -> Iterator[Segment]:
        place = 0
        for step, _ in by_round(self.steps):
            if isinstance(step, TorchStep):
                yield Segment(place, place, step)
                continue
            yield Segment(place, place + 1)
            place += 1

    def step_seconds(self, given: Mapping[fx.Node, Any], rounds: int) -> list[float]:
        """Seconds of each native step within whole runs, all rounds of a loop together: the median of ``rounds``."""
        last = self.segments[-1].last if self.segments else 0
        found = np.zeros((rounds, last))
        for row in found:

            def timed(arena: Arena, segment: Segment, row: Any = row) -> None:
                clocks = np.zeros(segment.last - segment.first + 1, dtype=np.int64)
                start = time.perf_counter()
                arena.run(segment.first, segment.last, clocks)
                seconds = time.perf_counter() - start
                ticks = np.diff(clocks)
                row[segment.first : segment.last] = ticks * (seconds / max(int(ticks.sum()), 1))

            self.run(given, native=timed)
        seconds: list[float] = []
        times = np.median(found, axis=0)
        for body, each in (stretch for segment in self.segments for stretch in segment.stretches):
            own, times = np.split(times, [each * len(body)])
            seconds += own.reshape(each, -1).sum(0).tolist()
        return seconds

    def _run_torch(self, step: TorchStep, arena: Arena, env: dict[fx.Node, Any]) -> None:
        def value_of(node: fx.Node) -> Any:
            held = step.reads_by_node.get(node)
            if held is None:
                return env[node]
            # Of its own, as the arena goes on to change, and as it would lie in the float model.
            return self.view(arena, held, env).clone(memory_format=torch.contiguous_format)

        result = step.run(value_of)
        if step.node is not None:
            env[step.node] = result
        if step.target is not None:
            target = self.view(arena, step.target, env)
            if result.shape != target.shape:
                sizes = f"{tuple(result.shape)} where {tuple(target.shape)} was planned"
                raise CallError(f"A result has the shape {sizes}: it depends on values.")
            target.copy_(result)


def _empty(storage: Storage) -> Tensor:
    """A tensor for an output."""
    order = storage.order
    empty = torch.empty([storage.shape[a] for a in order], dtype=DTYPES[storage.element], device="cpu")
    return empty.permute([order.index(a) for a in range(len(order))])
