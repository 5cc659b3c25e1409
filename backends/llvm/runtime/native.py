"""Running a table of kernels: an arena for each concurrent caller, and one native call."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ....compiler.core.errors import CallError
from .cpu import host
from .driver import CONTEXT, DRIVER, ENTRY, STEP
from .jit import Library, compile_ir
from .openmp import openmp

Space = Literal["arena", "constant", "given", "fixed"]
SLACK = 256  # bytes before and after, as kernels may read past the end of a tensor
ALIGNMENT = 64
HUGE_PAGE = 2 * 2**20
SHARED = 16 * 2**20  # bytes of an arena: larger ones are not kept for other programs


@dataclass(frozen=True)
class Address:
    """A place in the arena, in the constants, in a tensor that is given with a call, or at a fixed address.

    Attributes:
        index: the number of the given tensor.
        offset: bytes.
        drift: bytes that it moves on in each round of a loop.
    """

    space: Space
    offset: int
    index: int = 0
    drift: int = 0


@dataclass(frozen=True)
class NativeStep:
    """A call of a kernel.

    Attributes:
        kernel: its name.
        numbers: what it reads at run time.
        wait: all threads must have done the steps before.
    """

    kernel: str
    arguments: tuple[Address, ...]
    numbers: tuple[int, ...]
    items: int
    wait: bool


def aligned_bytes(size: int) -> Tensor:
    """uint8 [size], aligned, with slack before and after it. Large ones lie in huge pages, if the system has them."""
    alignment = HUGE_PAGE if size >= HUGE_PAGE // 2 else ALIGNMENT
    with torch.inference_mode(False):  # tensors of that mode could not be written outside of it
        memory = torch.empty(size + 2 * SLACK + 2 * alignment, dtype=torch.uint8, device="cpu")
    start = -(memory.data_ptr() + SLACK) % alignment + SLACK
    if alignment == HUGE_PAGE:
        _use_huge_pages(memory.data_ptr() + start, -(-size // HUGE_PAGE) * HUGE_PAGE)
    return memory[start : start + size]


def _use_huge_pages(address: int, size: int) -> None:
    """Advice that a system may ignore: weights of megabytes would miss the page table's cache in every call."""
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is not None and hasattr(mmap, "MADV_HUGEPAGE"):
        madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)


@cache
def _driver() -> tuple[Library, ctypes._FuncPointer]:
    library = Library({ENTRY: compile_ir(DRIVER, host()[0])})
    return library, ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(library.address[ENTRY])


class NativeProgram:
    """Steps, with the memory that they need.

    Args:
        steps: in order.
        library: the kernels.
        arena_bytes: size of an arena.
        constants: weights and parameters, uint8.
    """

    def __init__(self, steps: Sequence[NativeStep], library: Library, arena_bytes: int, constants: Tensor) -> None:
        self.steps, self.library, self.arena_bytes, self.constants = steps, library, arena_bytes, constants
        self._idle: list[Arena] = []
        places: dict[tuple[int, ...], int] = {}
        for step in steps:
            places.setdefault(step.numbers, sum(map(len, places)))
        self._numbers = np.array([n for numbers in places for n in numbers] or [0], dtype=np.int64)
        self.numbers_at = {numbers: self._numbers.ctypes.data + 8 * place for numbers, place in places.items()}
        _driver()

    @contextmanager
    def arena(self) -> Iterator[Arena]:
        """An arena that no other call uses meanwhile."""
        try:
            arena = self._idle.pop()  # one operation, which no other thread interrupts
        except IndexError:
            arena = Arena(self)
        try:
            with _block(self.arena_bytes, arena.own) as memory:
                arena.place(memory)
                yield arena
        finally:
            self._idle.append(arena)


_BLOCKS: dict[int, list[Tensor]] = {}  # that no call uses, by size


@contextmanager
def _block(size: int, own: Tensor | None) -> Iterator[Tensor]:
    """Memory of a call: ``own``, or a block that all programs share, as few of their plans run at one time."""
    if own is not None:
        yield own
        return
    rounded = 1 << max(size - 1, 4095).bit_length()
    idle = _BLOCKS.setdefault(rounded, [])
    try:
        memory = idle.pop()
    except IndexError:
        memory = _arena_bytes(rounded)
    try:
        yield memory
    finally:
        idle.append(memory)


def _arena_bytes(size: int) -> Tensor:
    try:
        return aligned_bytes(size)
    except RuntimeError as error:  # torch has no error of its own for that
        raise CallError(f"No memory for an arena of {size >> 20} MiB: call with smaller batches.") from error


class Arena:
    """The memory of one call at a time, and the table of steps with addresses in it.

    Attributes:
        own: memory that no other program uses, if much is needed.
        memory: of the call.

    Raises:
        CallError: there is not enough memory.
    """

    def __init__(self, program: NativeProgram) -> None:
        self.own = _arena_bytes(program.arena_bytes) if program.arena_bytes > SHARED else None
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._base = 0
        self._program = program
        self._arrived = np.zeros(1, dtype=np.int64)
        steps = program.steps
        starts = np.cumsum([1, *(len(s.arguments) + 1 for s in steps)])  # the word before is for the numbers
        self._arguments = np.zeros(max(int(starts[-1]), 1), dtype=np.int64)
        base = {"arena": 0, "constant": program.constants.data_ptr(), "fixed": 0}
        inside: list[int] = []  # the arguments that lie in the arena
        self._given: list[tuple[int, int, int]] = []  # place of the argument, number of the tensor, offset
        for start, step in zip(starts, steps, strict=False):
            self._arguments[start - 1] = program.numbers_at[step.numbers]
            for i, address in enumerate(step.arguments, int(start)):
                if address.space == "given":
                    self._given.append((i, address.index, address.offset))
                else:
                    self._arguments[i] = base[address.space] + address.offset
                    if address.space == "arena":
                        inside.append(i)
        self._inside = np.array(inside, dtype=np.int64)
        at = self._arguments.ctypes.data
        self._table = np.array(
            [[program.library.address[s.kernel], at + 8 * int(start), s.items, s.wait]
             for start, s in zip(starts, steps, strict=False)], dtype=np.int64,
        ).reshape(-1, len(STEP))  # fmt: skip
        self._context = np.zeros(len(CONTEXT), dtype=np.int64)
        threads = openmp()
        self._teams = threads is not None
        if threads is not None:
            words = ("thread_number", threads.thread_number), ("thread_count", threads.thread_count)
            for name, value in (*words, ("parallel", threads.parallel), ("yield", threads.sched_yield)):
                self._context[CONTEXT.index(name)] = value
        self._context[CONTEXT.index("arrived")] = self._arrived.ctypes.data
        self._at = self._context.ctypes.data
        self._run = _driver()[1]

    def place(self, memory: Tensor) -> None:
        """Lie in ``memory``."""
        self.memory, base = memory, memory.data_ptr()
        if base != self._base:
            self._arguments[self._inside] += base - self._base
            self._base = base

    def give(self, tensors: Sequence[Tensor]) -> None:
        """Set the tensors of the call."""
        for place, index, offset in self._given:
            self._arguments[place] = tensors[index].data_ptr() + offset

    def run(self, first: int, last: int, clocks: np.ndarray | None = None) -> None:
        """Run the steps from ``first`` to ``last``.

        Args:
            clocks: int64 [last - first + 1], gets the time stamps between them, in cycles of the time stamp counter.
        """
        context = self._context
        context[0] = self._table.ctypes.data + 8 * len(STEP) * first
        context[1] = last - first
        context[7] = 0 if clocks is None else clocks.ctypes.data
        self._arrived.fill(0)
        self._run(self._at, torch.get_num_threads() if self._teams else 1)
