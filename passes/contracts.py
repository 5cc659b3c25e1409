"""Checks that a pass keeps its contract, on a batch of data."""

from __future__ import annotations

from torch import Tensor, fx

from ..compiler.core.errors import ContractError
from ..compiler.execution.replay import Replay
from ..compiler.execution.sample import Batch
from ..compiler.numerics.metrics import sqnr
from ..compiler.numerics.observer import observers_paused
from .base import Pass, PassResult

EXACT = 80.0  # dB: fp32 rounding of a deep network leaves more


class ContractCheck:
    """What a graph computes before a pass; call :meth:`verify` after it.

    Args:
        step: the pass.
        gm: the graph.
        example: a batch; without it only the form of the graph is checked.
    """

    def __init__(self, step: Pass, gm: fx.GraphModule, example: Batch | None) -> None:
        self.step, self.gm, self.example = step, gm, example
        self._before = self._run()

    def verify(self, result: PassResult) -> None:
        """Check the graph after the pass, and run the pass once more.

        Raises:
            ContractError: names the pass and what it broke.
        """
        self._check_form()
        after = self._run()
        if self._before is not None and after is not None:
            self._check_values(self._before, after)
        if result.rewrites < 0:
            raise self._broken(f"reports {result.rewrites} rewrites")
        again = self.step(self.gm)
        if again.rewrites:
            raise self._broken(f"rewrites {again.rewrites} more places in a second run")

    def _run(self) -> Replay | None:
        if self.example is None:
            return None
        with observers_paused(self.gm):
            return Replay(self.gm, self.example)

    def _check_form(self) -> None:
        try:
            self.gm.graph.lint()
        except Exception as error:
            raise self._broken(f"leaves a graph that does not lint: {error}") from error
        if self.gm.graph.python_code("self").src != self.gm.code:
            raise self._broken("leaves code that does not match the graph: it must call recompile()")

    def _check_values(self, before: Replay, after: Replay) -> None:
        for node in self.gm.graph.nodes:
            was, now = before.values.get(node), after.values.get(node)
            if isinstance(was, Tensor) and isinstance(now, Tensor) and was.shape != now.shape:
                raise self._broken(f"changes the shape of '{node.name}' from {tuple(was.shape)} to {tuple(now.shape)}")
        if self.step.exact:
            left = sqnr([before.output], [after.output])
            if left < EXACT:
                raise self._broken(f"claims to be exact, but changes the output: {left:.1f} dB are left")

    def _broken(self, what: str) -> ContractError:
        return ContractError(f"Pass '{self.step.name}' {what}.")
