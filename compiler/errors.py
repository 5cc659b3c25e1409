"""Errors of fxquant. Each names what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>\S+)\n\s*(?P<code>.*)')

OWN = ("compiler/capture.py", "compiler/pipeline.py", "compiler/api.py")


class FxquantError(Exception):
    """Base of every error that fxquant raises on purpose."""


class ConfigError(FxquantError, ValueError):
    """An argument or a configuration entry is not valid."""


class CaptureError(FxquantError):
    """The model's forward could not be traced into a graph."""


class ModelError(FxquantError, ValueError):
    """The model cannot be quantized as it stands (device, dtype, NaN weights, nothing to quantize, ...)."""


class CalibrationError(FxquantError, ValueError):
    """The calibration data is missing, does not fit the forward, or gives NaN or inf."""


class StateError(FxquantError, RuntimeError):
    """A call that is not possible in the present state (for example pickling, or freezing twice)."""


class TrainingError(FxquantError, RuntimeError):
    """Quantization-aware training has diverged: a value is NaN or inf, or a learned scale has left all bounds."""


class SearchError(FxquantError, RuntimeError):
    """``evaluate`` fails or gives no usable number; or, with ``strict=True``, no int8 mix is within the budget."""


class BudgetWarning(UserWarning):
    """A search found no int8 mix that is within the budget, or none that is faster than fp32; says what it returns."""


class CallError(FxquantError, RuntimeError):
    """A compiled module was called with what one of its layers does not take."""


class VerificationError(FxquantError, RuntimeError):
    """The lowered module failed its own proof. A bug of fxquant: please report it."""


def check_positive(name: str, value: object) -> None:
    """Refuse an argument that is no positive int.

    Raises:
        ConfigError: names it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a positive int.")


def user_line(stack_trace: str | None) -> str | None:
    """The innermost frame of ``stack_trace`` outside of torch and of our tracer, as ``file:line (code)``."""
    frames = [
        f for f in _FRAME.finditer(stack_trace or "") if not f["file"].endswith(OWN) and "/torch/" not in f["file"]
    ]
    if not frames:
        return None
    last = frames[-1]
    return f"{last['file']}:{last['line']} ({last['code'].strip()})"


def where(node: fx.Node) -> str:
    """``node`` and the line of user code that made it, for an error message."""
    line = user_line(node.stack_trace)
    return f"'{node.name}'" + (f", from {line}" if line else "")


def nearest(name: object, valid: Iterable[str]) -> str:
    """What is valid in place of ``name``, the nearest first in mind: the tail of an error message."""
    names = list(valid)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(repr(n) for n in names)}."
