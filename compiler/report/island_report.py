"""The report of a model of which a part stays Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from ..core.tensors import total_bytes
from .report import Report, Row

NOT_CALLED = "it was not called in calibration, or Python code of an island uses its weights"


def island_report(
    tree: nn.Module,
    around: Report | None,
    islands: Mapping[str, str],
    parts: Mapping[str, Report],
    floats: Mapping[str, str],
) -> Report:
    """The rows of the graph around the islands, and of the parts that are compiled on their own.

    Args:
        tree: the float model, which is kept.
        around: of the graph around the islands; None if the model itself is the island.
        islands: why each stays Python, by path.
        parts: of modules that are compiled on their own, by path.
        floats: why other modules that the islands call stay in fp32, by path.
    """
    rows: list[Row] = []
    if around is None:
        for path, part in parts.items():
            rows += _within(path, part)
        for path, reason in floats.items():
            module = tree.get_submodule(path)
            rows.append(_plain(path, module, reason, total_bytes(module.parameters())))
        known = tuple(f"{path}." for path in (*parts, *floats))
        rest = ((p, m) for p, m in tree.named_modules() if m._parameters and not f"{p}.".startswith(known))
        rows += [_plain(p, m, NOT_CALLED, total_bytes(m.parameters(recurse=False))) for p, m in rest]
    for row in around.rows if around is not None else ():
        if row.node in parts:
            rows += _within(row.node, parts[row.node])
        else:
            rows.append(replace(row, reason=floats.get(row.node, row.reason)))
    fp32 = total_bytes((*tree.parameters(), *tree.buffers()))
    kept = fp32 if around is None else around.compiled_bytes
    below = {_joined(path, p): reason for path, part in parts.items() for p, reason in part.islands.items()}
    remark = "; ".join(f"in {path}, {part.remark}" for path, part in parts.items() if part.remark)
    return Report(tuple(rows), fp32, kept + sum(p.compiled_bytes for p in parts.values()), remark, {**below, **islands})


def _plain(path: str, module: nn.Module, reason: str, size: int) -> Row:
    return Row(path, type(module).__name__, "fp32", "", None, reason, None, size, size)


def _within(path: str, report: Report) -> Iterator[Row]:
    for row in report.rows:
        yield replace(row, node=path if len(report.rows) == 1 else _joined(path, row.node))


def _joined(path: str, inner: str) -> str:
    return ".".join(filter(None, (path, inner)))
