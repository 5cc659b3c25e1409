"""fxquant: an FX graph-mode auto-quantization compiler for PyTorch on x86 CPUs."""

from .backends.base.backend import Target
from .backends.base.program import FrozenProgram
from .compiler.api import compile, convert, prepare
from .compiler.core.config import QuantConfig
from .compiler.core.errors import (
    AccuracyWarning,
    BudgetWarning,
    CalibrationError,
    CallError,
    CaptureError,
    ConfigError,
    ContractError,
    FallbackWarning,
    FxquantError,
    ModelError,
    SearchError,
    StateError,
    TimingWarning,
    TrainingError,
    VerificationError,
)
from .compiler.diagnosis import debug
from .compiler.diagnosis.sensitivity import Sensitivity, UnitSensitivity, sensitivity
from .compiler.report.report import Report, Row
from .compiler.runtime.prepared import Prepared
from .compiler.runtime.qat_module import QATModule
from .compiler.runtime.quantized_module import QuantizedModule
from .compiler.search.result import SearchResult
from .compiler.search.search import search

__version__ = "0.1.0"

__all__ = [
    "AccuracyWarning",
    "BudgetWarning",
    "CalibrationError",
    "CallError",
    "CaptureError",
    "ConfigError",
    "ContractError",
    "FallbackWarning",
    "FrozenProgram",
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
    "TimingWarning",
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
