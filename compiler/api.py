"""The public functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, overload

import torch
from torch import nn

from ..backends.base import Backend, Target
from ..backends.reference import ReferenceBackend
from ..backends.x86 import X86Backend
from ..backends.x86.executors import EXECUTORS
from .batches import sampled
from .capture import Leaf, check_model
from .config import DYNAMIC_FORMS, QuantConfig
from .convert_trained import convert_trained
from .dynamic import quantize_dynamic
from .dynamic_report import dynamic_report
from .errors import ConfigError, StateError, nearest
from .evaluation import Evaluate
from .forms import Forms
from .module import Compiled, Prepared, QuantizedModule
from .pipeline import CALIBRATION_BATCHES, start
from .qat import prepare_training
from .qat_module import QATModule
from .search import find_mix
from .work import Options

P = ParamSpec("P")
R = TypeVar("R")

SCHEMES = ("static", "dynamic", "qat")


def _x86(target: Target | None, executor: str) -> Backend:
    return X86Backend(target, executor)


def _reference(target: Target | None, executor: str) -> Backend:
    x86 = X86Backend(target)
    return ReferenceBackend(x86.table, x86.target)


BACKENDS: dict[str, Callable[[Target | None, str], Backend]] = {"x86": _x86, "reference": _reference}


def _in_fp32(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, whose arithmetic an ``autocast`` around its call does not change."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return run


def compile(
    model: nn.Module,
    scheme: str = "static",
    *,
    calibration: Iterable[Any] | None = None,
    config: QuantConfig | None = None,
    backend: str = "x86",
    target: Target | None = None,
    executor: str = "auto",
    dtype: torch.dtype = torch.int8,
    leaf_modules: Sequence[Leaf] = (),
    calibration_batches: int = CALIBRATION_BATCHES,
    train: Callable[[QATModule], object] | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    strict: bool = False,
    snapshots: bool = False,
) -> QuantizedModule:
    """Compile a float model to int8, or to fp16 weights. The model itself is not changed.

    Args:
        model: a trained ``nn.Module`` on the CPU, in fp32.
        scheme: ``"static"``: int8 weights and activations, ranges from calibration. ``"dynamic"``: layers with weights
            take and give fp32, and their inputs are quantized as they come: needs no data, and any forward will do.
            ``"qat"``: as static, but trained through the roundings first.
        calibration: an iterable of batches: tensors, tuples (positional), dicts (by name), or a DataLoader whose
            ``(input, target)`` pairs are told by the forward's arity. None: the result calibrates on its first
            calls, until its ``freeze()``; not with ``"qat"``.
        config: how to quantize, and what to leave in fp32.
        backend: ``"x86"``, or ``"reference"`` (slow, plain torch ops).
        target: the kind of CPU that weights are quantized for; None is this one. Kernels are timed on this one.
        dtype: of the weights with ``scheme="dynamic"``: ``torch.int8``, or ``torch.float16`` (inputs are not rounded).
        executor: how the lowered graph runs: ``"eager"`` (straight-line Python), ``"torchscript"`` (traced and
            frozen, less overhead per op), or ``"auto"``: whichever is measured to be faster; with
            ``scheme="dynamic"`` TorchScript, if the first call shows that it gives the same.
        leaf_modules: paths or classes of modules that are not traced. They stay whole and in fp32, but that
            ``scheme="dynamic"`` swaps layers inside of them.
        calibration_batches: at most this many batches are read.
        train: for ``scheme="qat"``: a function that is given the :class:`~fxquant.QATModule` and trains it, in place,
            or returns the one to take.
        evaluate, max_drop, strict: with ``scheme="static"``: find the fastest mix of int8 and fp32 ops for which
            ``evaluate``, a function of a module whose result is to be large, gives at most ``max_drop`` less than for
            the float model. See :func:`fxquant.search`, which has more options and tells more.
        snapshots: keep the graph after every step in ``result.snapshots``.

    Returns:
        The compiled module; print it for the report.

    Raises:
        ConfigError, ModelError, CaptureError, CalibrationError, TrainingError, SearchError: see
            :mod:`fxquant.compiler.errors`.
    """
    _check_scheme(scheme)
    _check_train(train, scheme)
    _check_search(evaluate, max_drop, strict, scheme, calibration)
    if scheme == "dynamic":
        if calibration is not None:
            raise ConfigError("scheme 'dynamic' reads no calibration data: leave calibration out, or use 'static'.")
        check_model(model)
        options = _options(config, backend, target, executor, leaf_modules, snapshots)
        return _compile_dynamic(model, dtype, executor, options)
    if dtype is not torch.int8:
        raise ConfigError(f"dtype={dtype} is for scheme 'dynamic'; scheme {scheme!r} gives int8.")
    if evaluate is not None and max_drop is not None and calibration is not None:
        check_model(model)
        options = _options(config, backend, target, executor, leaf_modules, snapshots)
        return find_mix(model, calibration, evaluate, max_drop, options, calibration_batches, strict=strict).best
    prepared = prepare(
        model, scheme, calibration=calibration, config=config, backend=backend, target=target, executor=executor,
        leaf_modules=leaf_modules, calibration_batches=calibration_batches, snapshots=snapshots,
    )  # fmt: skip
    if isinstance(prepared, QATModule):
        assert train is not None
        return convert(_trained(prepared, train))
    return QuantizedModule(prepared) if calibration is None else convert(prepared)


@overload
def prepare(model: nn.Module, scheme: Literal["qat"], **options: Any) -> QATModule: ...


@overload
def prepare(model: nn.Module, scheme: Literal["static"] = "static", **options: Any) -> Prepared: ...


@overload
def prepare(model: nn.Module, scheme: str, **options: Any) -> Prepared | QATModule: ...


@_in_fp32  # type: ignore[misc]  # the overloads leave the options to this signature
def prepare(
    model: nn.Module,
    scheme: str = "static",
    *,
    calibration: Iterable[Any] | None = None,
    config: QuantConfig | None = None,
    backend: str = "x86",
    target: Target | None = None,
    executor: str = "auto",
    leaf_modules: Sequence[Leaf] = (),
    calibration_batches: int = CALIBRATION_BATCHES,
    snapshots: bool = False,
) -> Prepared | QATModule:
    """The first half of :func:`compile`: a runnable fp32 module that observes what passes through it.

    Observers are placed at its first call, when the shapes are known, or on ``calibration``. With ``scheme="qat"``,
    which needs ``calibration``, a module to train. Arguments and errors as of :func:`compile`.
    """
    if scheme == "dynamic":
        raise ConfigError("scheme 'dynamic' has nothing to observe: call fxquant.compile(model, scheme='dynamic').")
    _check_scheme(scheme)
    if not isinstance(calibration_batches, int) or calibration_batches < 1:
        raise ConfigError(f"calibration_batches is {calibration_batches!r}; it must be a positive int.")
    check_model(model)
    options = _options(config, backend, target, executor, leaf_modules, snapshots)
    if scheme == "qat":
        if calibration is None:
            raise ConfigError("scheme 'qat' needs calibration=, batches that give the ranges training begins with.")
        return QATModule(prepare_training(model, options, calibration, calibration_batches))
    prepared = Prepared(start(model, options))
    if calibration is not None:
        sample, batches = sampled(calibration, prepared.graph_module, calibration_batches)
        prepared.begin(sample)
        for batch in batches:
            prepared.observe(batch)
    return prepared


def _check_train(train: object, scheme: str) -> None:
    if (train is not None) != (scheme == "qat"):
        wants = "needs" if scheme == "qat" else "takes no"
        raise ConfigError(f"scheme {scheme!r} {wants} train=, a function that trains the prepared module.")
    if train is not None and not callable(train):
        raise ConfigError(f"train must be a function that is given the QATModule, got {type(train).__name__}.")


def _check_search(evaluate: object, max_drop: object, strict: bool, scheme: str, calibration: object) -> None:
    if evaluate is None:
        for name, given in (("max_drop", max_drop is not None), ("strict", strict)):
            if given:
                raise ConfigError(f"{name}= goes with evaluate=, a function that gives a module's accuracy.")
        return
    if max_drop is None:
        raise ConfigError("evaluate= needs max_drop=, how much less than for the float model it may give.")
    if scheme != "static":
        raise ConfigError(f"evaluate= goes with scheme 'static', not {scheme!r}.")
    if calibration is None:
        raise ConfigError("evaluate= needs calibration=: a mix is searched for after calibration.")


def _trained(prepared: QATModule, train: Callable[[QATModule], object]) -> QATModule:
    """What ``train`` returns, or ``prepared`` itself, which it has trained in place."""
    trained = train(prepared)
    if trained is not None and not isinstance(trained, QATModule):
        raise ConfigError(f"train= must return None or the QATModule to take, not {type(trained).__name__}.")
    return prepared if trained is None else trained


def _check_scheme(scheme: str) -> None:
    if scheme not in SCHEMES:
        raise ConfigError(f"scheme is {scheme!r}. {nearest(scheme, SCHEMES)}")


def _options(
    config: QuantConfig | None,
    backend: str,
    target: Target | None,
    executor: str,
    leaf_modules: Sequence[Leaf],
    snapshots: bool,
) -> Options:
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}. {nearest(backend, BACKENDS)}")
    if executor not in EXECUTORS:
        raise ConfigError(f"executor is {executor!r}. {nearest(executor, EXECUTORS)}")
    chosen = QuantConfig() if config is None else config
    return Options(BACKENDS[backend](target, executor), chosen, leaf_modules, snapshots)


@_in_fp32
def _compile_dynamic(model: nn.Module, dtype: torch.dtype, executor: str, options: Options) -> QuantizedModule:
    if dtype not in DYNAMIC_FORMS.values():
        raise ConfigError(f"dtype is {dtype!r}. Valid: {', '.join(map(str, DYNAMIC_FORMS.values()))}.")
    done = quantize_dynamic(model, options, dtype)
    report = dynamic_report(done, model, options.backend.table)
    if done.work is None:
        if executor == "torchscript":
            raise ConfigError(f"executor='torchscript' needs a graph, and there is none: {done.untraced}. Use 'auto'.")
        return QuantizedModule(Compiled(done.tree, report, None, done.tree, {}))
    run = Forms(done.tree, options.backend.graph_forms(done.work.gm), done.rounds_alike)
    return QuantizedModule(Compiled(run, report, done.work.gm, done.tree, done.work.snapshots))


@_in_fp32
def convert(prepared: Prepared | QATModule) -> QuantizedModule:
    """The second half of :func:`compile`: lower a prepared and calibrated module to int8.

    A :class:`~fxquant.QATModule` is left as it is: it can be trained on, and converted again. A
    :class:`~fxquant.Prepared` is used up.

    Raises:
        StateError: it was not made by :func:`prepare`, or has seen no data.
        ModelError: training has left NaN or inf in it.
    """
    if isinstance(prepared, QATModule):
        return QuantizedModule(convert_trained(prepared))
    if not isinstance(prepared, Prepared):
        inside = isinstance(getattr(prepared, "module", None), Prepared | QATModule)
        hint = " Pass its .module." if inside else ""
        raise StateError(f"convert takes what prepare gives, got {type(prepared).__name__}.{hint}")
    return QuantizedModule(prepared).freeze()
