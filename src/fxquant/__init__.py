"""fxquant: an FX graph-mode auto-quantization compiler for PyTorch on x86 CPUs."""

from .backends.base import Target
from .compiler import debug
from .compiler.api import compile, convert, prepare
from .compiler.config import QuantConfig
from .compiler.errors import (
    BudgetWarning,
    CalibrationError,
    CallError,
    CaptureError,
    ConfigError,
    FxquantError,
    ModelError,
    SearchError,
    StateError,
    TrainingError,
    VerificationError,
)
from .compiler.module import Prepared, QuantizedModule
from .compiler.qat_module import QATModule
from .compiler.report import Report, Row
from .compiler.search import search
from .compiler.search_result import SearchResult
from .compiler.sensitivity import Sensitivity, UnitSensitivity, sensitivity

__version__ = "0.1.0"

__all__ = [
    "BudgetWarning",
    "CalibrationError",
    "CallError",
    "CaptureError",
    "ConfigError",
    "FxquantError",
    "ModelError",
    "Prepared",
    "QATModule",
    "QuantConfig",
    "QuantizedModule",
    "Report",
    "Row",
    "SearchError",
    "SearchResult",
    "Sensitivity",
    "StateError",
    "Target",
    "TrainingError",
    "UnitSensitivity",
    "VerificationError",
    "compile",
    "convert",
    "debug",
    "prepare",
    "search",
    "sensitivity",
]
