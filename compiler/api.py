"""The public functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, overload

import torch
from torch import nn

from ..backends.base.backend import Target
from ..backends.registry import DEFAULT, BackendName, Executor
from .capture.capture import Leaf
from .capture.model_checks import checked_model
from .core.config import QuantConfig
from .core.entry_point import entry_point
from .core.errors import ConfigError, StateError
from .core.interrupts import interruptible
from .core.messages import check_choice, check_positive
from .core.progress import verbosity
from .execution.batches import as_batches, sampled
from .execution.inputs import Signature
from .execution.sample import Batch
from .runtime.compile_dynamic import compile_dynamic
from .runtime.convert_trained import convert_trained
from .runtime.float_model import FloatModel, ViewedModel
from .runtime.prepared import Prepared
from .runtime.qat_module import QATModule
from .runtime.quantized_module import QuantizedModule
from .search.evaluation import Evaluate
from .search.search import find_mix
from .workflows.capture_model import capture_model
from .workflows.options import CALIBRATION_BATCHES, Options
from .workflows.qat import prepare_training

Scheme = Literal["static", "dynamic", "qat"]


@entry_point
def compile(
    model: nn.Module,
    scheme: Scheme = "static",
    *,
    calibration: Iterable[Any] | None = None,
    config: QuantConfig | None = None,
    backend: BackendName = DEFAULT,
    target: Target | None = None,
    executor: Executor = "auto",
    dtype: torch.dtype = torch.int8,
    leaf_modules: Sequence[Leaf] = (),
    calibration_batches: int = CALIBRATION_BATCHES,
    example: Any = None,
    train: Callable[[QATModule], object] | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    strict: bool = False,
    snapshots: bool = False,
    verbose: bool | None = None,
    debug: bool = False,
) -> QuantizedModule:
    """Compile a float model to int8, or to fp16 weights. The model itself is not changed.

    Args:
        model: a trained ``nn.Module`` on the CPU, in fp32, or a ``torch.export.ExportedProgram``.
        scheme: ``"static"``: int8 weights and activations, ranges from calibration. ``"dynamic"``: int8 or fp16
            weights; layers quantize their inputs at run time and return fp32; needs no data, and takes any forward().
            ``"qat"``: as static, but trained with simulated rounding first.
        calibration: an iterable of batches: tensors, tuples (positional), dicts (by name), or a DataLoader. Of an
            ``(input, target)`` pair the target is dropped, and of a dict the items ``label(s)`` and ``target(s)`` if
            forward() does not need them. None: the result calibrates on its first calls, until its
            ``freeze()``; not with ``"qat"``.
        config: how to quantize, and what to leave in fp32.
        backend: ``"llvm"``: native code, generated for the model and its shapes. ``"x86"``: the int8 kernels of torch.
            ``"reference"``: plain torch ops, slow. ``"auto"``: llvm, or x86 where ``llvmlite`` is missing or an
            ``executor`` is asked for.
        target: the CPU that weights are quantized for; None is this one. Kernels are timed on this one. It makes no
            difference to llvm, whose products do not saturate.
        executor: how x86 runs the lowered graph: ``"eager"`` (straight-line Python), ``"torchscript"`` (traced and
            frozen, with less overhead per op), or ``"auto"``: the one that is measured to be faster. With
            ``scheme="dynamic"``, ``"auto"`` is TorchScript for kinds of calls on which it returned the same.
        dtype: of the weights, with ``scheme="dynamic"``: ``torch.int8`` or ``torch.float16``.
        leaf_modules: paths or classes of modules that are not traced. They stay in fp32; ``scheme="dynamic"``
            replaces the layers in them.
        calibration_batches: read at most this many batches; the rest of ``calibration`` is ignored.
        example: for ``scheme="dynamic"``: a batch, as ``calibration`` has them, of a forward() that branches on which
            inputs it is given, as those of language models do. It is then captured for calls of that kind, and runs as
            one function; other calls run forward() itself, layer by layer. Its values do not matter.
        train: for ``scheme="qat"``: a function that trains the :class:`~fxquant.QATModule` that it is given, in place,
            or returns another one.
        evaluate, max_drop, strict: with ``scheme="static"``: find the fastest int8/fp32 mix for which ``evaluate``, a
            function of a module that returns a number (more is better), falls by at most ``max_drop`` from the float
            model. :func:`fxquant.search` has more options, and returns more.
        snapshots: keep the graph after every step in ``result.snapshots``.
        verbose: True shows progress bars and decisions, False shows nothing, None shows bars on a terminal. Decisions
            also go to the logger ``fxquant`` at INFO.
        debug: check the contract of every pass while it runs (slow).

    Returns:
        The compiled module; print it for the report.

    Raises:
        ConfigError, ModelError, CaptureError, CalibrationError, TrainingError, SearchError, StateError: the arguments,
            the model or the data are at fault.
        VerificationError, ContractError: a bug of fxquant; please report it.

    Warns:
        BudgetWarning: as of :func:`fxquant.search`.
    """
    check_choice("scheme", scheme, get_args(Scheme))
    if example is not None and scheme != "dynamic":
        raise ConfigError(f"example is for scheme 'dynamic'; scheme {scheme!r} captures with its calibration data.")
    _check_train(train, scheme)
    _check_search(evaluate, max_drop, strict, scheme, calibration)
    if scheme != "dynamic" and dtype is not torch.int8:
        raise ConfigError(
            f"dtype={dtype} is for scheme 'dynamic'; scheme {scheme!r} gives int8. Leave it out, or change the scheme."
        )
    with verbosity(verbose):
        if scheme == "dynamic" or evaluate is not None:
            model = checked_model(model)
            options = Options.of(
                config, backend, target, executor, leaf_modules=leaf_modules, snapshots=snapshots, debug=debug
            )
            if scheme == "dynamic":
                if calibration is not None:
                    raise ConfigError("scheme 'dynamic' reads no calibration data: leave it out, or use 'static'.")
                return compile_dynamic(model, replace(options, example=_example(model, example)), dtype, executor)
            assert evaluate is not None and max_drop is not None and calibration is not None
            return find_mix(model, calibration, evaluate, max_drop, options, calibration_batches, strict=strict).best
        prepared = prepare(
            model, scheme, calibration=calibration, config=config, backend=backend, target=target, executor=executor,
            leaf_modules=leaf_modules, calibration_batches=calibration_batches, snapshots=snapshots, debug=debug,
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
def prepare(model: nn.Module, scheme: Scheme, **options: Any) -> Prepared | QATModule: ...


@entry_point  # type: ignore[misc]  # the overloads leave the options to this signature
def prepare(
    model: nn.Module,
    scheme: Scheme = "static",
    *,
    calibration: Iterable[Any] | None = None,
    config: QuantConfig | None = None,
    backend: BackendName = DEFAULT,
    target: Target | None = None,
    executor: Executor = "auto",
    leaf_modules: Sequence[Leaf] = (),
    calibration_batches: int = CALIBRATION_BATCHES,
    snapshots: bool = False,
    verbose: bool | None = None,
    debug: bool = False,
) -> Prepared | QATModule:
    """The first half of :func:`compile`: a runnable fp32 module that observes the values that pass through it.

    Observers are placed in its first call, when the shapes are known, or on ``calibration``. With ``scheme="qat"``,
    which needs ``calibration``, a module to train. Arguments and errors as of :func:`compile`.
    """
    if scheme == "dynamic":
        raise ConfigError("scheme 'dynamic' has nothing to observe: call fxquant.compile(model, scheme='dynamic').")
    check_choice("scheme", scheme, get_args(Scheme))
    check_positive("calibration_batches", calibration_batches)
    model = checked_model(model)
    options = Options.of(config, backend, target, executor, leaf_modules=leaf_modules, snapshots=snapshots, debug=debug)
    with verbosity(verbose):
        if scheme == "qat":
            if calibration is None:
                raise ConfigError("scheme 'qat' needs calibration=, batches for the ranges at the start of training.")
            return QATModule(prepare_training(model, options, calibration, calibration_batches))
        prepared = Prepared(capture_model(model, options), FloatModel(ViewedModel(model), "The model"))
        if calibration is not None:
            prepared.calibrate(*sampled(calibration, prepared.signature, calibration_batches))
        return prepared


def _example(model: nn.Module, example: Any) -> Batch | None:
    """The arguments of forward() in a batch."""
    if example is None:
        return None
    (batch,) = as_batches([example], Signature.of_forward(model), 1)
    return batch


def _check_train(train: object, scheme: str) -> None:
    if (train is not None) != (scheme == "qat"):
        wants = "needs" if scheme == "qat" else "takes no"
        raise ConfigError(f"scheme {scheme!r} {wants} train=, a function that trains the prepared module.")
    if train is not None and not callable(train):
        raise ConfigError(f"train must be a function of the QATModule, got {type(train).__name__}.")


def _check_search(evaluate: object, max_drop: object, strict: bool, scheme: str, calibration: object) -> None:
    if evaluate is None:
        for name, given in (("max_drop", max_drop is not None), ("strict", strict)):
            if given:
                raise ConfigError(f"{name}= goes with evaluate=, a function that returns the accuracy of a module.")
        return
    if max_drop is None:
        raise ConfigError("evaluate= needs max_drop=, how far its result may fall from that of the float model.")
    if scheme != "static":
        raise ConfigError(f"evaluate= goes with scheme 'static', not {scheme!r}.")
    if calibration is None:
        raise ConfigError("evaluate= needs calibration=: the search begins with a calibrated model.")


def _trained(prepared: QATModule, train: Callable[[QATModule], object]) -> QATModule:
    """The module that ``train`` returns, or ``prepared``, which it has trained in place."""
    trained = interruptible(train, prepared)
    if trained is not None and not isinstance(trained, QATModule):
        raise ConfigError(f"train= must return None or a QATModule, not {type(trained).__name__}.")
    return prepared if trained is None else trained


@entry_point
def convert(prepared: Prepared | QATModule) -> QuantizedModule:
    """The second half of :func:`compile`: lower a prepared and calibrated module to int8.

    A :class:`~fxquant.QATModule` is not changed: it can be trained further, and converted again. A
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
        raise StateError(f"convert takes a module that prepare returned, got {type(prepared).__name__}.{hint}")
    return QuantizedModule(prepared).freeze()
