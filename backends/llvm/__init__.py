"""The llvm backend: a whole model as native code, generated for its shapes."""

from __future__ import annotations

from ...compiler.core.errors import ConfigError
from ..base.backend import Backend, Target
from .backend import LLVMBackend

__all__ = ["LLVMBackend", "create"]


def create(target: Target | None, executor: str) -> Backend:
    """The backend.

    Raises:
        ConfigError: an executor is asked for; it has one only.
    """
    if executor != "auto":
        raise ConfigError(f"executor={executor!r} is for backend 'x86'; the llvm backend runs in one way only.")
    return LLVMBackend(target)
