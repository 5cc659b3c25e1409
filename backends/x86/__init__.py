"""Int8 kernels for x86: the only place that knows torch's quantized dtypes and ops."""

from .backend import X86Backend, detect_target

__all__ = ["X86Backend", "detect_target"]
