"""Errors of fxquant. Each says what was wrong, where, and what to do about it."""

from __future__ import annotations


class FxquantError(Exception):
    """Base of every error that fxquant raises on purpose."""


class ConfigError(FxquantError, ValueError):
    """An argument or a configuration entry is not valid."""


class CaptureError(FxquantError):
    """The model's forward() cannot be captured as a graph.

    Attributes:
        path: of the module that cannot; "" is the model itself, or some module of it.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ModelError(FxquantError, ValueError):
    """The model cannot be quantized as it is: wrong device or dtype, NaN weights, or nothing to quantize."""


class CalibrationError(FxquantError, ValueError):
    """The calibration data is missing, does not fit forward(), or gives NaN or inf."""


class StateError(FxquantError, RuntimeError):
    """The call is not possible in the present state: for example, ``freeze()`` of a compiled module."""


class TrainingError(FxquantError, RuntimeError):
    """Quantization-aware training diverged: a value is NaN or inf, or a learned scale is out of bounds."""


class SearchError(FxquantError, RuntimeError):
    """``evaluate`` failed or returned no usable number; or, with ``strict=True``, no int8 mix is within the budget."""


class BudgetWarning(UserWarning):
    """A search found no int8 mix that is within the budget, or none that is faster than fp32."""


class TimingWarning(UserWarning):
    """Measured times leave most layers in fp32, which may be due to other work on the machine."""


class AccuracyWarning(UserWarning):
    """A change of the float model that was asked for makes a large difference to its output."""


class FallbackWarning(UserWarning):
    """A call that is not like those of calibration runs in fp32."""


class CallError(FxquantError, RuntimeError):
    """A compiled module was called with a value that one of its layers does not take."""


class VerificationError(FxquantError, RuntimeError):
    """The lowered module failed its own checks. This is a bug of fxquant: please report it."""


class ContractError(FxquantError, RuntimeError):
    """A pass broke its contract (found with ``debug=True``). This is a bug of the pass: please report it."""
