"""Checks that a pass keeps its contract, on a batch of data."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx

from ..compiler.core.errors import ContractError
from ..compiler.core.tensors import tensors_of
from ..compiler.execution.batches import run_batch
from ..compiler.execution.replay import Replay
from ..compiler.execution.sample import Batch
from ..compiler.numerics.metrics import sqnr
from ..compiler.numerics.observer import observers_paused
from .base import Pass, PassResult

EXACT = 80.0  # dB: fp32 rounding of a deep network leaves more


class ContractCheck:
    """What a graph is and computes before a pass; call :meth:`verify` after it.

    Args:
        step: the pass.
        gm: the graph.
        example: a batch. Without it only the form of the graph is checked, and a copy of it is kept for
            :meth:`verify_outputs`.
    """

    def __init__(self, step: Pass, gm: fx.GraphModule, example: Batch | None) -> None:
        self.step, self.gm, self.example = step, gm, example
        self.original = copy.deepcopy(gm).eval() if example is None else None
        self._before = None if example is None else _replay(gm, example)
        self._modes = {module: module.training for module in gm.modules()}
        self._random = torch.get_rng_state()

    def verify(self, result: PassResult) -> None:
        """Check the graph after the pass, and run the pass once more.

        Raises:
            ContractError: names the pass and what it broke.
        """
        self._check_result(result)
        self._check_state()
        self._check_form()
        if self._before is not None and self.example is not None:
            after = self._run(self.gm, self.example)
            self._check_shapes(self._before, after)
            self._check_outputs(self._before.output, after.output)
        code = self.gm.code
        again = self.step(self.gm).rewrites
        if again:
            raise self._broken(f"rewrites {again} more places in a second run")
        if self.gm.graph.python_code("self").src != code:
            raise self._broken("changes the graph in a second run")

    def verify_outputs(self, example: Batch, after: fx.GraphModule) -> None:
        """Check the outputs of a pass that ran before there was an example; ``after`` is the graph after it.

        Raises:
            CalibrationError: the graph before the pass fails on the example.
            ContractError: names the pass and what it broke.
        """
        original = self.original
        assert original is not None
        before = run_batch(lambda *args, **kwargs: _replay(original, (args, kwargs)), example)
        self._check_outputs(before.output, self._run(after, example).output)

    def _run(self, gm: fx.GraphModule, example: Batch) -> Replay:
        try:
            return _replay(gm, example)
        except Exception as error:
            raise self._broken(f"leaves a graph that does not run: {error}") from error

    def _check_result(self, result: PassResult) -> None:
        if not isinstance(result, PassResult):
            raise self._broken(f"returns {type(result).__name__}, not a PassResult")
        if not isinstance(result.rewrites, int) or result.rewrites < 0:
            raise self._broken(f"reports {result.rewrites!r} rewrites")
        if not all(isinstance(node, fx.Node) for node in (*result.refusals, *result.remarks)):
            raise self._broken("has remarks or refusals whose keys are no nodes")

    def _check_state(self) -> None:
        if not torch.equal(torch.get_rng_state(), self._random):
            raise self._broken("changes the state of torch's random number generator")
        if any(module.training != mode for module, mode in self._modes.items()):
            raise self._broken("changes the training mode of a module")

    def _check_form(self) -> None:
        try:
            self.gm.graph.lint()
        except Exception as error:
            raise self._broken(f"leaves a graph that does not lint: {error}") from error
        if self.gm.graph.python_code("self").src != self.gm.code:
            raise self._broken("leaves code that does not match the graph: it must call recompile()")

    def _check_outputs(self, before: Any, after: Any) -> None:
        was, now = ([(t.dtype, tuple(t.shape)) for t in tensors_of(output)] for output in (before, after))
        if was != now:
            raise self._broken(f"changes the outputs from {was} to {now}")
        if not self.step.exact:
            return
        pairs = zip(tensors_of(before), tensors_of(after), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs if not a.is_floating_point()):
            raise self._broken("claims to be exact, but changes an integer output")
        left = sqnr([before], [after])
        if left < EXACT:
            raise self._broken(f"claims to be exact, but changes the output: {left:.1f} dB are left")

    def _check_shapes(self, before: Replay, after: Replay) -> None:
        for node in self.gm.graph.nodes:
            was, now = before.values.get(node), after.values.get(node)
            if isinstance(was, Tensor) and isinstance(now, Tensor) and was.shape != now.shape:
                raise self._broken(f"changes the shape of '{node.name}' from {tuple(was.shape)} to {tuple(now.shape)}")

    def _broken(self, what: str) -> ContractError:
        return ContractError(f"Pass '{self.step.name}' {what}.")


def _replay(gm: fx.GraphModule, example: Batch) -> Replay:
    with observers_paused(gm):
        return Replay(gm, example)
