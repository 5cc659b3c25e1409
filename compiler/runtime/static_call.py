"""How users call a compiled static model: with checks of inputs, and with fp32's memory layout of outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import CallError
from ..core.tensors import check_dense, is_mask
from ..execution.inputs import Signature
from ..execution.interface import Interface
from ..execution.layouts import OutputLayouts
from .call_errors import described, is_of_a_kernel, reason_of
from .float_model import FloatModel


@dataclass(frozen=True)
class StaticCall:
    """Same arguments and results as forward().

    Attributes:
        run: the lowered graph.
        signature: of forward().
        example: the inputs of a calibration batch.
        layouts: of the outputs in fp32; None: as they are.
        interface: the calls that the graph holds for, and the structure of its results.
        fallback: runs other calls; None: they are refused.
    """

    run: Callable[..., Any]
    signature: Signature
    example: tuple[Any, ...]
    layouts: OutputLayouts | None
    interface: Interface
    fallback: FloatModel | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            inputs = self.signature.bind(args, kwargs)
        except TypeError as error:
            return self._otherwise(error, args, kwargs)
        violation = self.interface.violation(self.signature.names, inputs)
        if violation:
            return self._otherwise(CallError(f"{violation} Compile the model for such calls, too."), args, kwargs)
        for name, value, seen in zip(self.signature.names, inputs, self.example, strict=True):
            if isinstance(value, Tensor):
                _check(name, value, seen)
        try:
            return self._result(inputs, args, kwargs)
        except CallError as error:
            return self._otherwise(error, args, kwargs)

    def _otherwise(self, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.fallback is None:
            raise error
        return self.fallback(error, args, kwargs)

    def _result(self, inputs: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            outputs = self.run(*args, **kwargs)
        except Exception as error:
            if not is_of_a_kernel(error):
                raise
            raise CallError(self._explained(inputs, error)) from error
        if self.layouts is not None:
            outputs = self.layouts.applied(outputs, inputs)
        return self.interface.rebuilt(outputs)

    def _explained(self, inputs: list[Any], error: Exception) -> str:
        for name, value, seen in zip(self.signature.names, inputs, self.example, strict=True):
            wrong = _differs(value, seen)
            if wrong:
                return f"Input '{name}' has {wrong}: got {described(value)}, calibrated with {described(seen)}."
        return f"The call failed: {reason_of(error)}"


def _check(name: str, value: Tensor, seen: Any) -> None:
    """Refuse what the kernels do not: tensors that are no plain tensors of the CPU, NaN and inf.

    An input that held -inf in calibration (``seen``) is not rounded, and may hold it.
    """
    check_dense(value, name)
    # A sum is an order of magnitude faster than isfinite(); large numbers can overflow it.
    if value.dtype != torch.float32 or math.isfinite(float(value.sum())) or torch.isfinite(value).all():
        return
    if not (isinstance(seen, Tensor) and is_mask(seen) and is_mask(value)):
        raise CallError(f"Input '{name}' holds NaN or inf, which int8 cannot hold. Remove them before the call.")


def _differs(value: Any, seen: Any) -> str:
    """What of an input is not as in calibration; "" if all that must be the same is."""
    if type(value) is not type(seen) and not (isinstance(value, Tensor) and isinstance(seen, Tensor)):
        return "another type"
    if not isinstance(value, Tensor):
        return ""
    if value.dtype != seen.dtype:
        return "another dtype"
    if value.dim() != seen.dim():
        return "another number of axes"
    fixed = value.shape[1:2] if value.dim() > 2 else value.shape[1:]
    if fixed == seen.shape[1 : 1 + len(fixed)]:
        return ""
    return "another number of channels" if value.dim() > 3 else "another size of axis 1"
