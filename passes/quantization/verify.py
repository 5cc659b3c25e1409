"""Checks of a lowered model before it is returned."""

from __future__ import annotations

import math

import torch
from torch import fx

from ...backends.base.backend import Lowered
from ...backends.base.frozen_nodes import is_dequantize, is_quantize
from ...compiler.core.errors import VerificationError
from ...compiler.core.messages import where
from ...compiler.core.tensors import tensors_of
from ...compiler.numerics.metrics import worst_sqnr
from ..analysis.assignment import Assignment

LEAST_SQNR = 10  # dB, of outputs: roundings of ties add up, but far less than a wrong kernel
STEPS = 2  # a tie may be rounded to either side, once in the kernel and once in an op that is part of it


def verify(lowered: Lowered, assignment: Assignment) -> None:
    """Check the executed program, and run the lowered form on the example.

    Every dequantize has the parameters of its quantize. No value is quantized again with the parameters that it has.
    Every int8 op has a kernel, every fp32 op a reason. The lowered form runs, and returns finite values of the shapes
    and dtypes that the program returns, within :data:`LEAST_SQNR`. Every kernel gives the integers of the program, up
    to :data:`STEPS`.

    Raises:
        VerificationError: one of these does not hold.
    """
    graph = lowered.executed.module.graph
    for node in filter(is_dequantize, graph.nodes):
        _check_pair(node)
    nodes = set(graph.nodes)
    for unit in assignment.matched.units:
        root = lowered.of.get(unit.root)
        if assignment.is_int8(unit) and root in nodes and root not in lowered.choices:
            raise VerificationError(f"int8 op {where(unit.root)} got no kernel.")
        if not assignment.is_int8(unit) and not assignment.reasons[unit.root]:
            raise VerificationError(f"fp32 op {where(unit.root)} has no reason.")
    _check_run(lowered)
    _check_kernels(lowered)


def _check_kernels(lowered: Lowered) -> None:
    if lowered.kernel_errors is None:
        return
    args, kwargs = lowered.executed.example
    for node, steps in lowered.kernel_errors(*args, **kwargs).items():
        if steps > STEPS:
            made: fx.Node = node.args[0]  # type: ignore[assignment]
            choice = lowered.choices.get(made)
            raise VerificationError(
                f"The kernel of {where(made)} ({choice.kernel if choice else 'fused'}) is wrong by {steps} steps. "
                "Leave the op in fp32: QuantConfig(overrides={...: None})."
            )


def _check_pair(node: fx.Node) -> None:
    source = node.args[0]
    if not isinstance(source, fx.Node) or not is_quantize(source):
        raise VerificationError(f"{where(node)} dequantizes a value that nothing quantized.")
    if tuple(source.args[1:3]) != tuple(node.args[1:3]):
        raise VerificationError(f"{where(node)} dequantizes with other parameters than the value was quantized with.")
    for reader in filter(is_quantize, node.users):
        if tuple(reader.args[1:]) == tuple(source.args[1:]):
            raise VerificationError(f"{where(reader)} quantizes a value again that is quantized already.")


def _check_run(lowered: Lowered) -> None:
    args, kwargs = lowered.executed.example
    with torch.no_grad():
        expected = tensors_of(lowered.executed(*args, **kwargs))
        try:
            actual = tensors_of(lowered.run(*args, **kwargs))
        except Exception as error:
            raise VerificationError(f"The lowered module does not run on the calibration example: {error}") from error
    if len(expected) != len(actual):
        raise VerificationError(f"The lowered module returns {len(actual)} tensors, expected {len(expected)}.")
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.is_quantized or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            got, wanted = (f"{t.dtype} {tuple(t.shape)}" for t in (ours, theirs))
            raise VerificationError(f"The lowered module returns {got}, expected {wanted}.")
        if ours.is_floating_point() and not torch.isfinite(ours).all():
            raise VerificationError("The lowered module returns NaN or inf on the calibration example.")
    # What a comparison gives is whole: one rounding of a tie may change all of it.
    judged = [(e, a) for e, a in zip(expected, actual, strict=True) if e.is_floating_point() and (e != e.round()).any()]
    decibels = min((worst_sqnr(*pair) for pair in judged), default=math.inf)
    if decibels < LEAST_SQNR:
        raise VerificationError(
            f"The lowered module is wrong: it agrees with the quantized program within {decibels:.1f} dB only. Try "
            "another backend, and report this as a bug of fxquant."
        )
