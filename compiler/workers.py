"""Evaluating mixes in other processes: each makes the calibrated model once, and then any mix that it is sent."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..backends.x86 import X86Backend
from .batches import Sample
from .errors import ConfigError, SearchError
from .evaluation import Evaluation
from .observers import Observer, observer_of
from .pipeline import prepare, start
from .search_space import compile_mix
from .work import Options, Work


@dataclass(frozen=True)
class _Parcel:
    """What a worker makes the calibrated model of: the statistics are in the observers, so a sample is enough."""

    model: nn.Module
    options: dict[str, Any]
    sample: Sample
    observers: Mapping[str, Observer]
    evaluation: Evaluation


_made: dict[str, tuple[Work, Evaluation]] = {}
_making = threading.Lock()


class Workers:
    """Evaluates mixes through an executor.

    Args:
        executor: any :class:`concurrent.futures.Executor` whose workers can import the model's class, as for
            example ``ProcessPoolExecutor`` or, for several machines, ``dask.distributed.Client.get_executor()``.
        model: the float model.
        work: that model, calibrated.
        evaluation: what to call.

    Raises:
        ConfigError: it is no executor, or the model or the function cannot be pickled.
    """

    def __init__(self, executor: Executor, model: nn.Module, work: Work, evaluation: Evaluation) -> None:
        if not isinstance(executor, Executor):
            got = executor.__name__ if isinstance(executor, type) else type(executor).__name__
            raise ConfigError(f"executor must be an instance of concurrent.futures.Executor, got {got}.")
        context = getattr(executor, "_mp_context", None)
        if context is not None and context.get_start_method() == "fork":
            raise ConfigError(
                "The executor's processes are forked, in which torch's threads hang. Give it "
                "mp_context=multiprocessing.get_context('spawn')."
            )
        self._executor = executor
        options = {
            "config": work.options.config,
            "target": work.options.backend.target,
            "leaf_modules": tuple(work.options.leaf_modules),
        }
        observers = {o.label: o for m in work.gm.modules() if (o := observer_of(m)) is not None}
        self._packed = _pickled(_Parcel(model, options, work.sample, observers, evaluation))
        self._key = hashlib.sha256(self._packed).hexdigest()

    def values(self, mixes: Sequence[Mapping[str, str]]) -> Iterator[float]:
        """What evaluate gives for each mix, told by its ops in fp32 with their reasons, as soon as it is known.

        Raises:
            SearchError: evaluate fails, or a worker is lost.
        """
        futures: list[Future[float]] = []
        try:
            for mix in mixes:
                futures.append(self._executor.submit(_evaluate, self._key, self._packed, dict(mix)))
            for future in futures:
                yield future.result()
        except SearchError:
            raise
        except Exception as error:
            raise SearchError(f"The executor failed: {type(error).__name__}: {error}") from error
        finally:
            for future in futures:
                future.cancel()


def _pickled(parcel: _Parcel) -> bytes:
    try:
        import cloudpickle as pickler  # also takes what is defined in a notebook or script
    except ImportError:
        pickler = pickle
    try:
        packed: bytes = pickler.dumps(parcel)
    except Exception as error:
        raise ConfigError(
            f"The model and evaluate cannot be sent to the executor's workers ({error}). Define them at the top level "
            "of a module that the workers can import, or install cloudpickle."
        ) from error
    return packed


def _evaluate(key: str, packed: bytes, fp32: Mapping[str, str]) -> float:
    """Runs in a worker; threads of one process take turns, as they share its random numbers."""
    with _making, torch.autocast("cpu", enabled=False):
        if key not in _made:
            _made.clear()  # the models of searches that are over
            _made[key] = _unpacked(packed)
        work, evaluation = _made[key]
        return evaluation(compile_mix(work, fp32), f"a mix with {len(fp32)} ops in fp32")


def _unpacked(packed: bytes) -> tuple[Work, Evaluation]:
    parcel: _Parcel = pickle.loads(packed)
    options = parcel.options
    work = start(parcel.model, Options(X86Backend(options["target"]), options["config"], options["leaf_modules"]))
    prepare(work, parcel.sample)
    observers = [o for m in work.gm.modules() if (o := observer_of(m)) is not None]
    if {o.label for o in observers} != parcel.observers.keys():
        raise SearchError("This worker would quantize other ops: its torch has other kernels than that of the search.")
    for observer in observers:
        observer.__dict__.update(parcel.observers[observer.label].__dict__)
    return work, parcel.evaluation
