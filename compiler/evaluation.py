"""The user's measure of a model, called so that two calls on one model give the same."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from .capture import copied
from .errors import ConfigError, SearchError
from .lockstep import restored_rng

Evaluate = Callable[[nn.Module], float]

NO_PARAMETERS = "A compiled module has no parameters() to tell the device or dtype by: they are the CPU and fp32."


class Evaluation:
    """``function`` with the same random numbers in every call, and its faults told as errors of ours.

    Args:
        function: takes a module and gives a number; more is better.
        seed: of Python's, NumPy's and torch's generators in each call; behind it they are as before.
    """

    def __init__(self, function: Evaluate, seed: int) -> None:
        if not callable(function):
            raise ConfigError(f"evaluate must be a function of a module, got {type(function).__name__}.")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ConfigError(f"seed is {seed!r}; it must be an int of 0 to 2**32 - 1.")
        self.function, self.seed = function, seed

    def __call__(self, module: nn.Module, name: str) -> float:
        """What the function gives for ``module``, which is called ``name`` in errors; NaN and inf are returned.

        Raises:
            SearchError: it raises, or gives no number.
        """
        with torch.no_grad(), _seeded(self.seed):
            try:
                value = self.function(module)
            except Exception as error:
                hint = NO_PARAMETERS if isinstance(error, StopIteration) else ""
                raise SearchError(f"evaluate fails on {name}: {type(error).__name__}: {error}{hint}") from error
        try:
            if isinstance(value, str | bytes):
                raise TypeError("text")
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise SearchError(f"evaluate gave {_shown(value)} for {name}; it must return a number.") from error

    def twice(self, model: nn.Module) -> float:
        """What the function gives for the fp32 model, after a second call has confirmed it.

        Each call is given a copy: what the function does to it must not reach what is measured or returned.

        Raises:
            SearchError: it is NaN or inf, or not the same twice.
        """
        first, second = (self(copied(model).eval(), "the fp32 model") for _ in range(2))
        for value in (first, second):
            if not math.isfinite(value):
                raise SearchError(
                    f"evaluate gave {value} for the fp32 model. It must be a finite number to compare with."
                )
        if not same(first, second):
            raise SearchError(
                f"evaluate gave {first!r} and then {second!r} for the same fp32 model: no budget can be told from "
                "that. Use all of the data, in a fixed order, without augmentation."
            )
        return first


def same(a: float, b: float) -> bool:
    """Whether two evaluations are the same but for fp32 rounding."""
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)


def reaches(value: float, floor: float) -> bool:
    """Whether an evaluation is no less than ``floor``, but for fp32 rounding."""
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
