"""Parts of error messages: the user's line of code, the nearest valid name, checks of numbers."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

from torch import fx

from .errors import ConfigError

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>\S+)\n\s*(?P<code>.*)')

# Frames of these rooms are not the user's. (The demo is: its network is traced like any other.)
_COMPILER = Path(__file__).parents[1]
_TORCH = str(Path(fx.__file__).parents[1])
_PACKAGE = tuple(str(_COMPILER.parent / room) for room in ("compiler/", "passes/", "backends/"))
_OWN = tuple(str(_COMPILER / room) for room in ("capture/", "workflows/", "runtime/", "api.py"))


def check_positive(name: str, value: object) -> None:
    """Refuse an argument that is not a positive int.

    Raises:
        ConfigError: names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {shown(value)}; it must be a positive int.")


def check_choice(name: str, value: object, valid: Iterable[object]) -> None:
    """Refuse an argument that is none of ``valid``.

    Raises:
        ConfigError: names the argument, and the nearest valid value.
    """
    choices = list(valid)
    if not any(value is v or (isinstance(v, str) and value == v) for v in choices):
        raise ConfigError(f"{name} is {shown(value)}. {nearest(value, map(str, choices))}")


def shown(value: object) -> str:
    """A value in a message: its type if it is long, as a tensor is."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"an object of type {type(value).__name__}"


def user_line(stack_trace: str | None) -> str | None:
    """The innermost frame of ``stack_trace`` that is neither torch's nor ours, as ``file:line (code)``."""
    frames = [
        f for f in _FRAME.finditer(stack_trace or "") if not f["file"].startswith(_OWN) and "/torch/" not in f["file"]
    ]
    if not frames:
        return None
    last = frames[-1]
    return f"{last['file']}:{last['line']} ({last['code'].strip()})"


def warn(warning: Warning) -> None:
    """Issue a warning at the user's line: the first one around that is neither ours nor torch's."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_code.co_filename.startswith((*_PACKAGE, _TORCH)):
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    warnings.warn(warning, stacklevel=level if frame is not None else 2)


def where(node: fx.Node) -> str:
    """The name of ``node`` and the user's line that made it."""
    line = user_line(node.stack_trace)
    return f"'{node.name}'" + (f", from {line}" if line else "")


def nearest(name: object, valid: Iterable[str]) -> str:
    """The valid names, with a guess at the one that was meant."""
    names = list(valid)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(repr(n) for n in names)}."
