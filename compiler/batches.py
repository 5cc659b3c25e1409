"""Calibration batches: what a user may pass, as arguments of the forward."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from tqdm import tqdm

from .errors import CalibrationError
from .values import bind_inputs

Result = TypeVar("Result")
Batch = tuple[tuple[Any, ...], dict[str, Any]]

# What is kept of the calibration data, for the passes that look at it more than once.
SAMPLE_BATCHES = 8
SAMPLE_BYTES = 16 * 2**20


def as_batches(calibration: object, gm: fx.GraphModule, limit: int) -> Iterator[Batch]:
    """At most ``limit`` batches of ``calibration``, one at a time, as ``(args, kwargs)`` of the forward.

    A batch is a tensor, a tuple or list (positional), or a dict (by name). An ``(input, target)`` pair, as a
    DataLoader gives, is told by the forward's arity: one item more than it takes, optional inputs counted, is the
    target, and is dropped.

    Raises:
        CalibrationError: not an iterable of batches; no batch; a batch that the forward does not take.
    """
    if isinstance(calibration, Tensor | Mapping | str) or not isinstance(calibration, Iterable):
        hint = " Wrap a single batch in a list: calibration=[batch]." if isinstance(calibration, Tensor) else ""
        raise CalibrationError(f"calibration must be an iterable of batches, got {type(calibration).__name__}.{hint}")
    arity = sum(n.op == "placeholder" for n in gm.graph.nodes)
    try:
        total = min(limit, len(calibration)) if isinstance(calibration, Sized) else None
    except TypeError:  # a DataLoader over a stream
        total = None
    number = -1
    progress = tqdm(
        itertools.islice(calibration, limit),
        "calibrate",
        total=total,
        unit="batch",
        disable=None,
        leave=False,
    )
    for number, batch in enumerate(progress):
        yield _arguments(batch, arity, number, gm)
    if number < 0:
        raise CalibrationError("calibration gave no batch; at least one is needed to find activation ranges.")


def sampled(calibration: object, gm: fx.GraphModule, limit: int) -> tuple[Sample, Iterator[Batch]]:
    """A sample of the first batches of ``calibration``, and all batches, those included. Arguments as there."""
    batches = as_batches(calibration, gm, limit)
    sample = Sample()
    sample.fill(batches)
    # Copies: a loader may refill one buffer.
    return sample, itertools.chain(list(sample), batches)


def _arguments(batch: object, arity: int, number: int, gm: fx.GraphModule) -> Batch:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(batch, Mapping):
        kwargs = dict(batch)
    elif isinstance(batch, list | tuple):
        args = tuple(batch[:-1]) if len(batch) == arity + 1 else tuple(batch)
    else:
        args = (batch,)
    check_finite((args, kwargs), number, gm)
    return args, kwargs


def check_finite(batch: Batch, number: int, gm: fx.GraphModule) -> None:
    """Refuse a batch that does not fit the forward of ``gm``, or holds NaN or inf.

    Raises:
        CalibrationError: either is so.
    """
    try:
        values = bind_inputs(gm, *batch)
    except TypeError as error:
        raise CalibrationError(f"Calibration batch {number} does not fit the forward: {error}.") from error
    for name, value in zip((n for n in gm.graph.nodes if n.op == "placeholder"), values, strict=True):
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise CalibrationError(f"Calibration batch {number} holds NaN or inf in input '{name}'.")


def run_batch(run: Callable[..., Result], batch: Batch, number: int) -> Result:
    """``run``, a forward, on ``batch``.

    Raises:
        CalibrationError: the forward fails on this batch.
    """
    try:
        with torch.no_grad():
            return run(*batch[0], **batch[1])
    except CalibrationError:
        raise
    except Exception as error:
        shapes = [tuple(v.shape) for v in _values(batch) if isinstance(v, Tensor)]
        raise CalibrationError(f"The forward fails on calibration batch {number} (shapes {shapes}): {error}") from error


class Sample(list[Batch]):
    """The first batches of the calibration data, detached from what the caller may change; bounded in size."""

    @property
    def full(self) -> bool:
        """Whether :meth:`keep` takes no more."""
        size = sum(v.numel() * v.element_size() for b in self for v in _values(b) if isinstance(v, Tensor))
        return len(self) >= SAMPLE_BATCHES or size >= SAMPLE_BYTES

    def fill(self, batches: Iterator[Batch]) -> None:
        """Keep batches until the sample is full or there are no more.

        Raises:
            CalibrationError: all of them are empty.
        """
        while not self.full and (batch := next(batches, None)) is not None:
            self.keep(batch)
        if not self:
            raise CalibrationError("All calibration batches are empty: there are no values to find ranges from.")

    def keep(self, batch: Batch) -> None:
        """Append a copy of ``batch`` unless the sample is full or a tensor in it is empty."""
        empty = any(isinstance(v, Tensor) and not v.numel() for v in _values(batch))
        if not self.full and not empty:
            self.append(copied(batch))


def copied(batch: Batch) -> Batch:
    """``batch`` with tensors of its own: a loader may refill one buffer."""
    return tuple(_copied(v) for v in batch[0]), {k: _copied(v) for k, v in batch[1].items()}


def _values(batch: Batch) -> list[Any]:
    return [*batch[0], *batch[1].values()]


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
