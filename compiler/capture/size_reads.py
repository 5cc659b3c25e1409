"""Sizes are read where that does not come between ops that belong together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from ...backends.ops.table import OPS


def delay_size_reads(gm: fx.GraphModule, modules: Mapping[str, nn.Module], numbers: set[fx.Node]) -> None:
    """Read sizes from the output of a normalization or clamp, in place of its input, which has the same sizes.

    Else ``assert x.ndim == 4`` between a convolution and its normalization would be a second reader of the output of
    the convolution, and nothing could be folded or fused.

    Args:
        modules: of the graph by path.
        numbers: nodes whose values are sizes or come from sizes alone.
    """
    place = {node: number for number, node in enumerate(gm.graph.nodes)}
    for node in list(gm.graph.nodes):
        reads = [user for user in node.users if user in numbers]
        others = [user for user in node.users if user not in numbers]
        if not reads or len(others) != 1 or not _keeps_shape(others[0], modules):
            continue
        after = others[0]
        early = _with_users_before(reads, place[after], place)
        if all(n in numbers or n.target is torch._assert for n in early):
            for read in reads:
                read.replace_input_with(node, after)
            for early_node in sorted(early, key=place.__getitem__, reverse=True):
                after.append(early_node)
            place = {node: number for number, node in enumerate(gm.graph.nodes)}


def _keeps_shape(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    row = OPS.of(node, modules)
    return row is not None and (row.batch_norm or row.clamp is not None or row.noop is not None)


def _with_users_before(reads: list[fx.Node], end: int, place: dict[fx.Node, int]) -> set[fx.Node]:
    """``reads`` and all that is computed from them, as far as it stands before ``end``."""
    found, front = set(reads), list(reads)
    while front:
        users = [user for user in front.pop().users if place[user] < end and user not in found]
        found.update(users)
        front += users
    return {n for n in found if place[n] < end}
