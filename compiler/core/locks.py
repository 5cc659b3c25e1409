"""Locks that a forked child finds free: the thread that held one does not exist there."""

from __future__ import annotations

import os
import threading
from typing import Any


def process_lock() -> Any:
    """A re-entrant lock; keep it for the life of the process."""
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # type: ignore[attr-defined]  # as logging does
    return lock
