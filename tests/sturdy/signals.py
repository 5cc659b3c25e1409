"""Signals to the process of the tests."""

from __future__ import annotations

import os
import signal


def press() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
