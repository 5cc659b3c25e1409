"""Proof of a lowered module before it is handed out."""

from __future__ import annotations

import math

import torch
from torch import fx

from ..backends.base import Lowered
from ..backends.dynamic import DynamicLayer, Layer, probe
from ..compiler.errors import VerificationError, where
from ..compiler.lockstep import sqnr
from ..compiler.qdq import dequantize, quantize
from ..compiler.values import tensors_of
from .assign_precision import Assignment

LEAST_SQNR = 25  # dB; a tensor of normal numbers in 8 bits has about 40


def verify(lowered: Lowered, assignment: Assignment) -> None:
    """Check the frozen graph and run the lowered form on the example.

    Every dequantize has the parameters of its quantize; no value is quantized again with the parameters that it
    has; every int8 op has a kernel; every fp32 op has a reason; the lowered form runs, and gives finite values of
    the shapes and dtypes that the frozen graph gives.

    Raises:
        VerificationError: one of these does not hold.
    """
    gm = lowered.frozen.module
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target is dequantize:
            _check_pair(node)
    for unit in assignment.matched.units:
        if assignment.is_int8(unit) and unit.root not in lowered.kernels and unit.root in set(gm.graph.nodes):
            raise VerificationError(f"int8 op {where(unit.root)} got no kernel.")
        if not assignment.is_int8(unit) and not assignment.reasons[unit.root]:
            raise VerificationError(f"fp32 op {where(unit.root)} has no reason.")
    _check_run(lowered)


@torch.no_grad()
def layer_sqnr(layer: Layer, made: DynamicLayer) -> float:
    """SQNR [dB] of a layer against the float layer on the same rounded weights, on random numbers; NaN is all noise."""
    given = probe(layer.module)
    # Against the signal before a ReLU, which may pass next to nothing.
    parts = zip(
        *(tensors_of(o) for o in (layer.without_relu.rounded(*given), layer.rounded(*given), made(*given))), strict=True
    )
    worst = min(sqnr([signal], [signal + (exact - ours)]) for signal, exact, ours in parts)
    return -math.inf if math.isnan(worst) else worst


def _check_pair(node: fx.Node) -> None:
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.target is not quantize:
        raise VerificationError(f"{where(node)} dequantizes what nothing quantized.")
    if tuple(source.args[1:3]) != tuple(node.args[1:3]):
        raise VerificationError(f"{where(node)} reads integers with other parameters than they have.")
    for reader in node.users:
        if reader.target is quantize and tuple(reader.args[1:]) == tuple(source.args[1:]):
            raise VerificationError(f"{where(reader)} quantizes again what is quantized already.")


def _check_run(lowered: Lowered) -> None:
    example = lowered.frozen.example_args, dict(lowered.frozen.example_kwargs)
    with torch.no_grad():
        expected = tensors_of(lowered.frozen.module(*example[0], **example[1]))
        try:
            actual = tensors_of(lowered.run(*example[0], **example[1]))
        except Exception as error:
            raise VerificationError(f"The lowered module does not run on the calibration example: {error}") from error
    if len(expected) != len(actual):
        raise VerificationError(f"The lowered module gives {len(actual)} tensors, expected {len(expected)}.")
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.is_quantized or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            got, wanted = (f"{t.dtype} {tuple(t.shape)}" for t in (ours, theirs))
            raise VerificationError(f"The lowered module gives {got}, expected {wanted}.")
        if ours.is_floating_point() and not torch.isfinite(ours).all():
            raise VerificationError("The lowered module gives NaN or inf on the calibration example.")
