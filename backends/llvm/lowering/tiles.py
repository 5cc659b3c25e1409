"""Choosing the tile of a kernel by a cost model: cycles of its loops, from what limits them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from ..codegen.isa import Isa
from ..kernels.axes import count
from ..kernels.blocks import Block, blocks_of
from ..kernels.depthwise import Depthwise
from ..kernels.gemm import Gemm

LATENCY = 5  # cycles from one product to the next of the same sum
EPILOGUE = 6  # cycles for a register of outputs
PLACE = 30  # cycles to find where a tile is
RESIDENT = 192 * 1024  # bytes of weights that stay in the cache while tiles go by
WIDTHS = (1, 2, 3, 4, 6, 8)  # registers of channels in a block that are tried
TEAM = 2  # threads that work should at least divide evenly for


@cache
def choose_tile(gemm: Gemm, vectors: int | None = None) -> Gemm:
    """``gemm`` with the tile and the order of work of least cost.

    Args:
        vectors: registers of channels in a block, if they are given.
    """
    found = [_ordered(tiled) for tiled in _tilings(gemm) if vectors in (None, tiled.vectors)]
    return min(found, key=_cycles)


def panel_blocks(channels: int, isa: Isa) -> tuple[Block, ...]:
    """Blocks of channels of a matrix that is computed, whatever it is multiplied with."""
    vectors = min(4 if isa.registers > 16 else 2, -(-channels // isa.lanes))
    return tuple(blocks_of(channels, vectors, isa.lanes))


def _tilings(gemm: Gemm) -> list[Gemm]:
    isa = gemm.isa
    needed = -(-gemm.channels // isa.lanes)
    found = []
    for vectors in WIDTHS:
        if vectors > needed and vectors > 1:
            continue
        most = (isa.registers - 1 - vectors) // vectors
        for columns in range(1, min(gemm.width.size, most) + 1):
            for rows in range(1, min(gemm.height.size, most // columns) + 1):
                if rows > 1 and columns < gemm.width.size and columns * 2 <= most:
                    continue  # a longer row comes first
                height, width = replace(gemm.height, tile=rows), replace(gemm.width, tile=columns)
                found.append(replace(gemm, height=height, width=width, vectors=vectors))
    return found


def _ordered(gemm: Gemm) -> Gemm:
    heavy = gemm.padded_channels * gemm.depth * gemm.weight_bytes > RESIDENT
    few = count(gemm.axes) < 2 * TEAM
    return replace(gemm, blocks_first=len(gemm.blocks) > 1 and (heavy or few))


def _cycles(gemm: Gemm) -> float:
    pixels = gemm.height.tile * gemm.width.tile
    total = 0.0
    for block in gemm.blocks:
        products = pixels * block.vectors
        step = max(products, pixels + block.vectors, LATENCY)
        total += gemm.depth * step + EPILOGUE * products
    total += PLACE * (len(gemm.blocks) if gemm.blocks_first else 1)
    items = gemm.items
    return total * count(gemm.axes) * math.ceil(items / TEAM) * TEAM / items


def depthwise_tile(kernel: Depthwise, dilation: int) -> Depthwise:
    """``kernel`` with a tile whose sums fit the registers, and whose rows and bundles are shared most."""
    best, least = kernel, math.inf
    vectors = kernel.blocks[0].vectors
    for rows in (1, 2) if dilation == 1 else (1,):
        for columns in (1, 2, 4):
            if rows > kernel.height.size or columns > kernel.width.size or rows * columns * vectors > 16:
                continue
            tiled = replace(kernel, height=replace(kernel.height, tile=rows), width=replace(kernel.width, tile=columns))
            cycles = _depthwise_cycles(tiled) * tiled.height.tiles * tiled.width.tiles
            if cycles < least:
                best, least = tiled, cycles
    return best


def _depthwise_cycles(kernel: Depthwise) -> float:
    lines = (kernel.height.tile - 1) * kernel.row_stride + kernel.window[0]
    loads = kernel.used_columns * lines
    unpacking = 2 * kernel.bundle * kernel.bundles * lines
    products = 4 * len(list(kernel.uses())) * kernel.window[0] * kernel.height.tile
    outputs = 4 * kernel.height.tile * kernel.width.tile
    return products + max(loads, unpacking) + EPILOGUE * outputs
