"""Calibration data as arguments of forward()."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..core.errors import CalibrationError
from ..core.interrupts import checkpoint, interruptible
from ..core.messages import user_line
from ..core.progress import progress
from ..core.tensors import is_mask
from .inputs import Signature
from .sample import Batch, Sample, batch_values

Result = TypeVar("Result")

TARGETS = ("label", "labels", "target", "targets")  # in a dict; dropped where forward() does not need them


def as_batches(calibration: object, signature: Signature, limit: int) -> Iterator[Batch]:
    """At most ``limit`` batches of ``calibration``, one at a time, as ``(args, kwargs)`` of forward().

    A batch is a tensor, a tuple or list (positional), or a dict (by name). A batch that has one item more than
    forward() takes, optional inputs counted, is an ``(input, target)`` pair of a DataLoader: its last item is dropped.

    Raises:
        CalibrationError: not an iterable of batches; no batch; a batch that forward() does not take.
    """
    if isinstance(calibration, Tensor | Mapping | str) or not isinstance(calibration, Iterable):
        hint = " Wrap a single batch in a list: calibration=[batch]." if isinstance(calibration, Tensor) else ""
        raise CalibrationError(f"calibration must be an iterable of batches, got {type(calibration).__name__}.{hint}")
    number = -1
    given = itertools.islice(_each(calibration), limit)
    shown = progress(given, "calibrate", "batch", _length(calibration, limit))
    for number, batch in enumerate(shown):
        yield _arguments(batch, number, signature)
    if number < 0:
        raise CalibrationError("calibration gave no batch; at least one is needed to find activation ranges.")


def _each(calibration: Iterable[Any]) -> Iterator[Any]:
    """The items of the user's iterable, whose code a signal may interrupt."""
    end, items = object(), interruptible(iter, calibration)
    while (item := interruptible(next, items, end)) is not end:
        yield item


def _length(calibration: object, limit: int) -> int | None:
    """How many batches there will be, if that is known."""
    try:
        return min(limit, len(calibration)) if isinstance(calibration, Sized) else None
    except TypeError:  # a DataLoader over a stream
        return None


def sampled(calibration: object, signature: Signature, limit: int) -> tuple[Sample, Iterator[Batch]]:
    """A sample of the first batches, and an iterator over all batches, those included.

    Arguments and errors as of :func:`as_batches`.
    """
    batches = as_batches(calibration, signature, limit)
    sample = Sample()
    sample.fill(batches)
    # The copies, not the batches: a loader may have filled its buffer again.
    return sample, itertools.chain(list(sample), batches)


def _arguments(batch: object, number: int, signature: Signature) -> Batch:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(batch, Mapping):
        required = [name for name in signature.names if name not in signature.defaults]
        kwargs = {k: v for k, v in batch.items() if k not in TARGETS or k in required}
    elif isinstance(batch, list | tuple):
        is_pair = len(batch) == len(signature.names) + 1 and not signature.more
        args = tuple(batch[:-1]) if is_pair else tuple(batch)
    else:
        args = (batch,)
    check_batch((args, kwargs), number, signature)
    return args, kwargs


def check_batch(batch: Batch, number: int, signature: Signature) -> None:
    """Refuse a batch that does not fit forward(), or holds NaN or inf.

    Raises:
        CalibrationError: names the batch and the input.
    """
    try:
        inputs = signature.named(*batch)
    except TypeError as error:
        raise CalibrationError(f"Calibration batch {number} does not fit forward(): {error}.") from error
    for name, value in inputs.items():
        is_number = isinstance(value, Tensor) and value.is_floating_point()
        if is_number and not torch.isfinite(value).all() and not is_mask(value):
            raise CalibrationError(f"Calibration batch {number} holds NaN or inf in input '{name}'.")


def run_batch(run: Callable[..., Result], batch: Batch, number: int = 0) -> Result:
    """``run`` on ``batch``, without gradients.

    Raises:
        CalibrationError: ``run`` fails; names the batch by its ``number``.
    """
    checkpoint()
    try:
        with torch.no_grad():
            return run(*batch[0], **batch[1])
    except CalibrationError:
        raise
    except Exception as error:
        for name, value in enumerate(batch_values(batch)):
            if type(value).__module__ == "numpy":
                raise CalibrationError(
                    f"Input {name} of calibration batch {number} is a numpy.{type(value).__name__}: convert it with "
                    "torch.from_numpy()."
                ) from error
        shapes = [tuple(v.shape) for v in batch_values(batch) if isinstance(v, Tensor)]
        text, line = str(error).partition("\n\nWhile executing")[0].strip(), user_line(str(error))
        place = f" at {line}" if line else ""
        raise CalibrationError(
            f"forward() fails on calibration batch {number} (shapes {shapes}){place}: {text}"
        ) from error


def run_batches(run: Callable[..., Result], batches: Iterable[Batch], stage: str) -> list[Result]:
    """``run`` on each batch, with a bar that names the stage. Errors as of :func:`run_batch`."""
    total = len(batches) if isinstance(batches, Sequence) else None
    shown = progress(batches, stage, "batch", total)
    return [run_batch(run, batch, number) for number, batch in enumerate(shown)]
