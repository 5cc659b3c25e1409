"""Int8 kernels for x86: the only place that knows torch's quantized dtypes and ops."""

from __future__ import annotations

from ..base.backend import Backend, Target
from .backend import X86Backend, detect_target

__all__ = ["X86Backend", "create", "detect_target"]


def create(target: Target | None, executor: str) -> Backend:
    """The backend. Arguments and errors as of :class:`X86Backend`."""
    return X86Backend(target, executor)
