"""The command line: ``python -m fxquant demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..core.errors import FxquantError
from . import demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Errors of fxquant are printed to stderr. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="fxquant", description="Quantize PyTorch models to int8 for x86 CPUs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="train, quantize and compare a small network on handwritten digits")
    parser.parse_args(arguments)
    try:
        demo.main()
    except FxquantError as error:
        print(f"fxquant: {error}", file=sys.stderr)
        return 1
    return 0
