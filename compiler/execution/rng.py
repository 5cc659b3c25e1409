"""torch's random number generator, touched only where a graph draws from it, and put back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from .user_code import runs_user_code


@contextlib.contextmanager
def restored_rng() -> Iterator[None]:
    """Put the state of torch's CPU generator back at the end.

    ``torch.random.fork_rng`` also looks at other devices, which takes longer than most ops.
    """
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


_DRAW = (
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli",
    "multinomial", "poisson", "uniform_", "normal_", "random_", "bernoulli_", "exponential_", "geometric_", "cauchy_",
    "log_normal_", "trunc_normal_", "binomial", "fractional_max_pool2d", "fractional_max_pool3d", "svd_lowrank",
    "pca_lowrank", "rrelu", "rrelu_", "gumbel_softmax", "multi_head_attention_forward",
)  # fmt: skip


class SeededNodes:
    """Runs nodes of a graph so that those that draw random numbers draw the same for the same seed.

    Only nodes that may draw touch the generator, which all threads share.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        modules = dict(gm.named_modules())
        self._draw = {node for node in gm.graph.nodes if may_draw(node, modules)}

    def run(self, node: fx.Node, run: Callable[[fx.Node], Any], seed: int) -> Any:
        """The value of ``node`` that ``run`` computes."""
        if node not in self._draw:
            return run(node)
        with restored_rng():
            torch.default_generator.manual_seed(seed)
            return run(node)


def may_draw(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node may draw random numbers; ``modules`` are those of the graph by path."""
    return runs_user_code(node, modules) or draws(node, modules)


def draws(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node calls what draws random numbers, as far as its name tells."""
    if node.op == "call_module":
        return any(map(_module_draws, modules[str(node.target)].modules()))
    if node.op not in ("call_function", "call_method"):
        return False
    name = str(getattr(node.target, "__name__", node.target))
    if name == "scaled_dot_product_attention":
        return bool(node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0))
    return name in _DRAW or "dropout" in name


def _module_draws(module: nn.Module) -> bool:
    kind = type(module).__name__
    return "FractionalMaxPool" in kind or (module.training and ("Dropout" in kind or "RReLU" in kind))
