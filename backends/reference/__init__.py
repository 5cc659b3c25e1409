"""The reference backend: plain torch ops on any CPU."""

from __future__ import annotations

from ...compiler.core.errors import ConfigError
from ..base.backend import Backend, Target
from .backend import ReferenceBackend

__all__ = ["ReferenceBackend", "create"]


def create(target: Target | None, executor: str) -> Backend:
    """The backend.

    Raises:
        ConfigError: an executor is asked for; it has one only.
    """
    if executor != "auto":
        raise ConfigError(f"executor={executor!r} is for backend 'x86'; the reference backend runs in one way only.")
    return ReferenceBackend(target)
