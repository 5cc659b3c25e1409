"""The process-wide quantized engine of torch, set for a while and put back."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

FBGEMM, ONEDNN = "fbgemm", "onednn"

_lock = threading.RLock()
_users: dict[str, int] = {}
_outer = ""


def available() -> tuple[str, ...]:
    """The engines of this build of torch that we have kernels for, fbgemm first."""
    supported = torch.backends.quantized.supported_engines
    return tuple(e for e in (FBGEMM, ONEDNN) if e in supported)


@contextmanager
def packing_engine(name: str) -> Iterator[None]:
    """Pack weights for engine ``name``. Other threads wait; the user's setting is back afterwards."""
    with _lock:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = name
        try:
            yield
        finally:
            torch.backends.quantized.engine = before


@contextmanager
def running_engine(name: str) -> Iterator[None]:
    """Run kernels that check the engine. Concurrent callers share it; the last to leave puts the user's back."""
    global _outer
    with _lock:
        if not _users.get(name):
            _outer = torch.backends.quantized.engine
            torch.backends.quantized.engine = name
        _users[name] = _users.get(name, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _users[name] -= 1
            if not _users[name]:
                torch.backends.quantized.engine = _outer


def take_deprecation_warning() -> None:
    """Let torch's once-per-process warning about quantized dtypes (pytorch#184982) be raised where none sees it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
