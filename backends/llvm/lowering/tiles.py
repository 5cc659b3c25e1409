"""Choosing the tile of a kernel by a cost model: cycles of its loops, from what limits them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from ..codegen.isa import Isa
from ..kernels.axes import count
from ..kernels.columns import Columns
from ..kernels.depthwise import Depthwise
from ..kernels.gemm import Gemm

LATENCY = 5  # cycles from one product to the next of the same sum
EPILOGUE = 6  # cycles for a register of outputs
PLACE = 30  # cycles to find where a tile is
RESIDENT = 192 * 1024  # bytes of weights that stay in the cache while tiles go by
WIDTHS = (1, 2, 3, 4, 6, 8)  # registers of channels in a block that are tried
MOST_ROWS = 8  # of a product, each of which has an address in a register
COMMON = (1, 2, 3, 4, 6, 9, 14, 30)  # rows of a tile: 0.5 % slower than the best ones over 1 to 256 rows
TEAM = 2  # threads that work should at least divide evenly for


@cache
def choose_tile(gemm: Gemm, any_rows: bool = False) -> Gemm:
    """``gemm`` with the tile and the order of work of least cost.

    Args:
        any_rows: it will be called with other numbers of rows: take one of few tiles, so that their code is shared.
    """
    found = [_ordered(tiled) for tiled in _tilings(gemm) if not any_rows or _is_common(tiled)]
    return min(found, key=_cycles)


def _most_rows(vectors: int, isa: Isa, unpacked: bool = False) -> int:
    """Rows of a tile whose sums fit the registers, beside a row of weights and one input.

    Args:
        unpacked: weights are unpacked, which takes a mask and another row of registers.
    """
    taken = 1 + vectors + (vectors + 1 if unpacked else 0)
    return max(1, (isa.registers - taken) // vectors)


def _is_common(gemm: Gemm) -> bool:
    """Whether the tile has one of the two largest numbers of rows that fit, of a few."""
    most = min(_most_rows(gemm.vectors, gemm.isa, gemm.storage == "s4"), gemm.width.size)
    return gemm.width.tile in [rows for rows in COMMON if rows <= most][-2:]


def panel_columns(count: int, isa: Isa) -> Columns:
    """How the columns of a matrix that is computed lie in registers, whatever it is multiplied with."""
    return Columns.of(count, 4 if isa.registers > 16 else 2, isa.lanes)


def tile_of_rows(rows: int, vectors: int, isa: Isa) -> int:
    """How many rows of a product are computed at once: as many as the registers take; few are cut into like tiles."""
    most = min(_most_rows(vectors, isa), MOST_ROWS)
    return most if rows > 2 * most else -(-rows // -(-rows // most))


def _tilings(gemm: Gemm) -> list[Gemm]:
    isa = gemm.isa
    needed = -(-gemm.channels // isa.lanes)
    found = []
    for vectors in WIDTHS:
        if vectors > needed and vectors > 1:
            continue
        most = _most_rows(vectors, isa, gemm.storage == "s4")
        for columns in range(1, min(gemm.width.size, most) + 1):
            for rows in range(1, min(gemm.height.size, most // columns) + 1):
                if rows > 1 and columns < gemm.width.size and columns * 2 <= most:
                    continue  # a longer row comes first
                height, width = replace(gemm.height, tile=rows), replace(gemm.width, tile=columns)
                found.append(replace(gemm, height=height, width=width, vectors=vectors))
    return found


def _ordered(gemm: Gemm) -> Gemm:
    heavy = gemm.padded_channels * gemm.lane_bytes > RESIDENT
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
