"""Two forms of one model run side by side over the same batches, op by op: in fp32 and quantized."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .batches import Batch
from .observers import Observer
from .values import bind_inputs, tensors_of


@dataclass(frozen=True)
class Twin:
    """A graph as it was before it was rewritten, and the nodes that it had then by those that remain."""

    module: fx.GraphModule
    of: Mapping[fx.Node, fx.Node]


def twin(gm: fx.GraphModule) -> Twin:
    """A copy of the graph that shares parameters; its observers, those of ``gm``, stop observing."""
    graph, of = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(gm.graph, of))
    for module in gm.modules():
        if isinstance(module, Observer):
            module.enabled = False
    return Twin(fx.GraphModule(gm, graph), of)


class Stepper:
    """A graph executed node by node, for all batches at once; values live until their last reader has run."""

    def __init__(self, gm: fx.GraphModule, sample: Sequence[Batch]) -> None:
        self._pending = deque(gm.graph.nodes)
        self._runs = [fx.Interpreter(gm) for _ in sample]
        for run, batch in zip(self._runs, sample, strict=True):
            run.args_iter = iter(bind_inputs(gm, *batch))
        self._constants: set[fx.Node] = set()
        self.outputs: list[Any] = []

    def through(self, node: fx.Node) -> list[Any]:
        """Run up to and including ``node``, which has not run yet. Returns its value for each batch."""
        while node in self._pending:
            self._step()
        return [run.env[node] for run in self._runs]

    def before(self, node: fx.Node) -> list[tuple[Any, ...]]:
        """Run up to ``node``, which has not run yet. Returns its positional arguments for each batch."""
        while self._pending[0] is not node:
            self._step()
        return [run.fetch_args_kwargs_from_env(node)[0] for run in self._runs]

    def finish(self) -> list[Any]:
        """Run to the end. Returns the outputs for each batch."""
        while self._pending:
            self._step()
        return self.outputs

    def change(self, node: fx.Node, how: Callable[[Any], Any]) -> None:
        """Replace the value of ``node``, which has just run."""
        for run in self._runs:
            run.env[node] = how(run.env[node])

    def _step(self) -> None:
        node = self._pending.popleft()
        # What depends on no input is the same for all batches.
        constant = node.op != "placeholder" and self._constants.issuperset(node.all_input_nodes)
        self._constants |= {node} if constant else set()
        with torch.no_grad(), restored_rng():
            for number, run in enumerate(self._runs):
                torch.default_generator.manual_seed(number)  # what draws at random must draw alike in both forms
                shared = constant and run is not self._runs[0]
                run.env[node] = self._runs[0].env[node] if shared else run.run_node(node)
                if node.op == "output":
                    self.outputs.append(run.env[node])
                for dead in run.user_to_last_uses.get(node, []):
                    del run.env[dead]


@contextlib.contextmanager
def restored_rng() -> Iterator[None]:
    """Behind it torch's generator is as before.

    Without what torch.random.fork_rng does for other devices: it would take longer than most ops.
    """
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def squares(exact: Any, other: Any) -> tuple[Tensor, Tensor]:
    """Sums of squares over all float tensors in two outputs alike: of ``exact``, and of the difference.

    One value per item of the first axis; in all where the outputs do not agree on it.
    """
    pairs = [
        (a.double(), (a - b).double())
        for a, b in zip(tensors_of(exact), tensors_of(other), strict=True)
        if a.is_floating_point()
    ]
    items = {a.shape[0] if a.dim() else 1 for a, _ in pairs}
    rows = items.pop() if len(items) == 1 else 1
    zero = torch.zeros(rows, dtype=torch.double)
    return (
        sum((a.reshape(rows, -1).square().sum(1) for a, _ in pairs), zero),
        sum((d.reshape(rows, -1).square().sum(1) for _, d in pairs), zero),
    )


def decibels(signal: float, noise: float) -> float:
    """Signal-to-quantization-noise ratio [dB] of two sums of squares; of noise that is NaN or inf, -inf."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def sqnr(exact: Sequence[Any], other: Sequence[Any]) -> float:
    """SQNR [dB] of ``other`` against ``exact``, over all batches of outputs."""
    signal, noise = (torch.cat(parts) for parts in zip(*map(squares, exact, other), strict=True))
    return decibels(float(signal.sum()), float(noise.sum()))


def surely_nearer(exact: Sequence[Any], before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether ``after`` is nearer to ``exact`` than ``before``, by more than a standard error over the items [dB]."""
    was, now = (torch.cat([squares(e, o)[1] for e, o in zip(exact, other, strict=True)]) for other in (before, after))
    gain = (was.clamp_min(1e-30) / now.clamp_min(1e-30)).log()
    error = gain.std() / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return bool(gain.mean() > error)
