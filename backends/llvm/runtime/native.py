"""Running a table of kernels: an arena for each concurrent caller, and one native call."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ....compiler.core.errors import CallError
from .cpu import host
from .driver import CONTEXT, DRIVER, ENTRY, STEP
from .jit import Library, compile_ir
from .openmp import openmp
from .tables import Stretch, Tables

SLACK = 256  # bytes before and after, as kernels may read past the end of a tensor
ALIGNMENT = 64
HUGE_PAGE = 2 * 2**20
SHARED = 16 * 2**20  # bytes of an arena: larger ones are not kept for other programs


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
        stretches: the steps, in order.
        waits: before which runs of them all threads must have done the runs before.
        library: the kernels.
        arena_bytes: size of an arena.
        constants: weights and parameters, uint8.
    """

    def __init__(
        self, stretches: Sequence[Stretch], waits: Sequence[bool], library: Library, arena_bytes: int, constants: Tensor
    ) -> None:
        self.library, self.arena_bytes, self.constants = library, arena_bytes, constants
        self.tables = Tables(stretches, waits, library.address, constants.data_ptr())
        self._idle: list[Arena] = []
        _driver()

    @property
    def own_bytes(self) -> int:
        """Size of an arena that no other program uses; 0: it is shared."""
        return self.arena_bytes if self.arena_bytes > SHARED else 0

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
        self.own = _arena_bytes(program.arena_bytes) if program.own_bytes else None
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._base = 0
        self._program = program
        self._arrived = np.zeros(1, dtype=np.int64)
        tables = program.tables
        self._tables, self._arguments = tables, tables.arguments.copy()
        self._table = tables.table(self._arguments.ctypes.data)
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
            self._arguments[self._tables.inside] += base - self._base
            self._base = base

    def give(self, tensors: Sequence[Tensor]) -> None:
        """Set the tensors of the call."""
        tables = self._tables
        if len(tables.given):
            starts = np.array([t.data_ptr() for t in tensors], dtype=np.int64)
            self._arguments[tables.given] = tables.arguments[tables.given] + starts[tables.tensors]

    def run(self, first: int, last: int, clocks: np.ndarray | None = None, alone: bool = False) -> None:
        """Run the steps from ``first`` to ``last``.

        Args:
            alone: on this thread alone.
            clocks: int64 [last - first + 1], gets the time stamps between them, in cycles of the time stamp counter.
        """
        context = self._context
        context[0] = self._table.ctypes.data + 8 * len(STEP) * first
        context[1] = last - first
        context[7] = 0 if clocks is None else clocks.ctypes.data
        self._arrived.fill(0)
        self._run(self._at, torch.get_num_threads() if self._teams and not alone else 1)
