"""The user's accuracy function, called so that two calls on one model return the same."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from ..capture.copies import copy_model
from ..core.errors import ConfigError, SearchError
from ..core.interrupts import interruptible
from ..execution.rng import restored_rng

Evaluate = Callable[[nn.Module], float]
NO_PARAMETERS = "A compiled module has no parameters(): its device is the CPU, its dtype fp32."


class Evaluation:
    """Calls ``function`` with the same random numbers each time, and turns its faults into errors of ours.

    Args:
        function: takes a module and returns a number; more is better.
        seed: of the generators of Python, NumPy and torch in each call; after it they are as before.

    Raises:
        ConfigError: ``function`` or ``seed`` is not valid.
    """

    def __init__(self, function: Evaluate, seed: int) -> None:
        if not callable(function):
            raise ConfigError(f"evaluate must be a function of a module, got {type(function).__name__}.")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ConfigError(f"seed is {seed!r}; it must be an int of 0 to 2**32 - 1.")
        self.function, self.seed = function, seed

    def __call__(self, module: nn.Module, name: str) -> float:
        """What the function returns for ``module``, also if it is NaN or inf; errors call the module ``name``.

        Raises:
            SearchError: it raises, or returns no number.
        """
        with torch.no_grad(), _seeded(self.seed):
            try:
                value = interruptible(self.function, module)
            except Exception as error:
                hint = NO_PARAMETERS if isinstance(error, StopIteration) else ""
                raise SearchError(f"evaluate fails on {name}: {type(error).__name__}: {error}{hint}") from error
        try:
            if isinstance(value, str | bytes):
                raise TypeError("text")
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise SearchError(f"evaluate returned {_shown(value)} for {name}; it must return a number.") from error

    def twice(self, model: nn.Module) -> float:
        """What the function returns for the fp32 model, confirmed by a second call.

        Each call gets a copy of the model, as the function may change it.

        Raises:
            SearchError: it returns NaN or inf, or two different numbers.
        """
        first, second = (self(copy_model(model).eval(), "the fp32 model") for _ in range(2))
        for value in (first, second):
            if not math.isfinite(value):
                raise SearchError(
                    f"evaluate returned {value} for the fp32 model. It must be a finite number to compare with."
                )
        if not same(first, second):
            raise SearchError(
                f"evaluate returned {first!r} and then {second!r} for the same fp32 model, so a budget has no meaning. "
                "Use all of the data, in a fixed order, without augmentation."
            )
        return first


def same(a: float, b: float) -> bool:
    """Whether two evaluations are equal up to fp32 rounding."""
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)


def reaches(value: float, floor: float) -> bool:
    """Whether an evaluation is at least ``floor``, up to fp32 rounding."""
    return value >= floor or same(value, floor)


def _shown(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {tuple(shape)}" if shape is not None else repr(value)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with restored_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
