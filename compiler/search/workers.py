"""Evaluates mixes in other processes: each makes the calibrated model once, and then any mix that it is sent."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from torch import nn

from ...backends.base.backend import Target
from ...backends.registry import create_backend
from ..capture.capture import Leaf
from ..core.config import QuantConfig
from ..core.entry_point import entry_point
from ..core.errors import ConfigError, SearchError
from ..core.interrupts import interruptible
from ..core.locks import process_lock
from ..execution.sample import Sample
from ..numerics.observer import Observer
from ..numerics.stubs import observers_of
from ..workflows.capture_model import capture_model, captured_on
from ..workflows.options import Options
from ..workflows.stages import CalibratedModel
from ..workflows.static import calibrated, prepare
from .evaluation import Evaluation
from .space import compile_mix


@dataclass(frozen=True)
class _Parcel:
    """What a worker makes the calibrated model from. The statistics are in the observers, so a sample is enough."""

    model: nn.Module
    backend: str
    target: Target
    config: QuantConfig
    leaf_modules: tuple[Leaf, ...]
    sample: Sample
    observers: Mapping[str, Observer]
    evaluation: Evaluation


_made: dict[str, tuple[CalibratedModel, Evaluation]] = {}
_making = process_lock()


class Workers:
    """Evaluates mixes through an executor.

    Args:
        executor: any :class:`concurrent.futures.Executor` whose workers can import the class of the model, for example
            ``ProcessPoolExecutor`` or, for several machines, ``dask.distributed.Client.get_executor()``.
        model: the float model.
        calibrated: that model, calibrated.
        evaluation: what to call.

    Raises:
        ConfigError: it is not an executor, or the model or the function cannot be pickled.
    """

    def __init__(
        self, executor: Executor, model: nn.Module, calibrated: CalibratedModel, evaluation: Evaluation
    ) -> None:
        if not isinstance(executor, Executor):
            got = executor.__name__ if isinstance(executor, type) else type(executor).__name__
            raise ConfigError(f"executor must be an instance of concurrent.futures.Executor, got {got}.")
        context = getattr(executor, "_mp_context", None)
        if context is not None and context.get_start_method() == "fork":
            raise ConfigError(
                "The processes of the executor are forked, and torch's threads hang in a forked process. Give it "
                "mp_context=multiprocessing.get_context('spawn')."
            )
        self._executor = executor
        options, observers = calibrated.options, observers_of(calibrated.gm)
        self._packed = _pickled(
            _Parcel(
                model, options.backend.name, options.backend.target, options.config, tuple(options.leaf_modules),
                calibrated.sample, observers, evaluation,
            )
        )  # fmt: skip
        self._key = hashlib.sha256(self._packed).hexdigest()

    def values(self, mixes: Sequence[Mapping[str, str]]) -> Iterator[float]:
        """What evaluate returns for each mix, as soon as it is known. A mix is its fp32 ops with their reasons.

        Raises:
            SearchError: evaluate fails, or a worker is lost.
        """
        futures: list[Future[float]] = []
        try:
            for mix in mixes:
                futures.append(self._executor.submit(_evaluate, self._key, self._packed, dict(mix)))
            for future in futures:
                yield interruptible(future.result)
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
            f"The model and evaluate cannot be sent to the workers ({error}). Define them at the top level of a module "
            "that the workers can import, or install cloudpickle."
        ) from error
    return packed


def _evaluate(key: str, packed: bytes, fp32: Mapping[str, str]) -> float:
    """Runs in a worker. Threads of one process take turns, as they share its random numbers."""
    with _making:
        return _evaluate_alone(key, packed, fp32)


@entry_point
def _evaluate_alone(key: str, packed: bytes, fp32: Mapping[str, str]) -> float:
    if key not in _made:
        _made.clear()  # the models of searches that are over
        _made[key] = _unpacked(packed)
    model, evaluation = _made[key]
    return evaluation(compile_mix(model, fp32), f"a mix with {len(fp32)} ops in fp32")


def _unpacked(packed: bytes) -> tuple[CalibratedModel, Evaluation]:
    parcel: _Parcel = pickle.loads(packed)
    options = Options(create_backend(parcel.backend, parcel.target), parcel.config, parcel.leaf_modules)
    captured = captured_on(capture_model(parcel.model, options), parcel.sample[0])
    model = calibrated(prepare(captured, parcel.sample))
    observers = observers_of(model.gm)
    if observers.keys() != parcel.observers.keys():
        raise SearchError(
            "A worker would quantize other ops than the search. Use the same CPU and torch on all workers."
        )
    for label, observer in observers.items():
        observer.__dict__.update(parcel.observers[label].__dict__)
    return model, parcel.evaluation
