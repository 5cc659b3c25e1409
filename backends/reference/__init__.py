"""The reference backend: plain torch ops on any CPU."""

from __future__ import annotations

from ..base.backend import Backend, Target
from .backend import ReferenceBackend

__all__ = ["ReferenceBackend", "create"]


def create(target: Target | None, executor: str) -> Backend:
    """The backend; it has one executor only."""
    return ReferenceBackend(target)
