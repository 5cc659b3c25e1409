"""Blocks of channels: what a kernel computes at once, in whole registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..codegen.code import Code, Value, i64


@dataclass(frozen=True)
class Block:
    """Channels that are computed at once: ``vectors`` registers, of which ``valid`` lanes are channels."""

    vectors: int
    valid: int


def blocks_of(channels: int, vectors: int, lanes: int) -> list[Block]:
    """Blocks of ``vectors`` registers; the last one has as many as it needs."""
    whole, rest = divmod(channels, vectors * lanes)
    tail = [Block(-(-rest // lanes), rest)] if rest else []
    return [Block(vectors, vectors * lanes)] * whole + tail


def choose_block(c: Code, index: Value, blocks: Sequence[Block], emit: Callable[[Value, Block], None]) -> None:
    """Emit the block ``index``: code for whole blocks, and for the last one if it has fewer channels."""
    whole, last = blocks[0], blocks[-1]
    if whole == last:
        emit(index, whole)
        return
    with c.b.if_else(c.b.icmp_signed("<", index, i64(len(blocks) - 1))) as (then, otherwise):
        with then:
            emit(index, whole)
        with otherwise:
            emit(i64(len(blocks) - 1), last)


def each_block(c: Code, blocks: Sequence[Block], emit: Callable[[Value, Block], None]) -> None:
    """Emit all blocks, one after the other."""
    whole = sum(b == blocks[0] for b in blocks)
    if whole == 1:
        emit(i64(0), blocks[0])
    else:
        with c.loop(0, whole) as index:
            emit(index, blocks[0])
    if whole < len(blocks):
        emit(i64(whole), blocks[-1])
