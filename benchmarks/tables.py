"""The tables that a benchmark prints, and writes for `docs/benchmarks.md`."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from .peers import cpu_info

Table = tuple[Sequence[Sequence[str]], Sequence[str]]  # rows and their columns


def add_markdown(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")


def show(tables: Sequence[Table], markdown: Path | None) -> None:
    """Print the machine and `tables`, and write them to the file `markdown`, if any."""
    cpu = cpu_info("model name") or platform.processor()
    machine = f"{cpu}, torch {torch.__version__}, {torch.get_num_threads()} threads"

    def text(style: str) -> list[str]:
        return [tabulate(rows, columns, style, disable_numparse=True) for rows, columns in tables]

    print(f"\n{machine}", *text("simple"), sep="\n\n")
    if markdown:
        markdown.write_text("\n\n".join((f"- {machine}", *text("github"))) + "\n")
