"""Public functions leave the process as they found it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from .interrupts import held, put_back_after

P = ParamSpec("P")
R = TypeVar("R")


def entry_point(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, with signals held back, without autocast; at its end torch's modes are as before.

    A context manager of torch is left half done if an exception comes at its very end, from another thread for example.
    So the modes are put back here once more, whatever happens inside.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        grad, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

        def put_back() -> None:
            torch.set_autocast_enabled("cpu", autocast)
            torch._C._set_grad_enabled(grad)

        def work() -> R:
            torch.set_autocast_enabled("cpu", False)
            return function(*args, **kwargs)

        return put_back_after(work, put_back)

    return held(run)
