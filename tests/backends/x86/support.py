"""What the tests of the x86 backend share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant.compiler.numerics.quantize import dequantize, quantize
from fxquant.compiler.runtime.quantized_module import QuantizedModule


def seeded(build: Any, seed: int = 0) -> Any:
    """`build()` under a seed; the global RNG is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def compiled(model: nn.Module, calibration: list[tuple[Tensor, ...]], **options: Any) -> QuantizedModule:
    """The compiled model, of which the types are known."""
    options.setdefault("executor", "eager")
    q = fxquant.compile(model.eval(), calibration=calibration, **options)
    assert isinstance(q, QuantizedModule)
    return q


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a nested result."""
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors(v)]


def oracle(q: QuantizedModule, *args: Tensor) -> Any:
    """The frozen graph in plain torch ops."""
    with torch.no_grad():
        return q.graph(*args)


def sqnr(expected: Tensor, actual: Tensor) -> float:
    """Signal to noise in dB; infinite where both are equal."""
    noise = (expected.double() - actual.double()).square().mean()
    return float("inf") if noise == 0 else float(10 * torch.log10(expected.double().square().mean() / noise))


def output_step(q: QuantizedModule) -> float | None:
    """The scale of the quantize that the output comes from; None where the output is computed in fp32."""
    node: Any = next(n for n in q.graph.graph.nodes if n.op == "output").args[0]
    if isinstance(node, fx.Node) and node.target is dequantize:
        node = node.args[0]
        assert isinstance(node, fx.Node) and node.target is quantize
        return float(node.args[1])  # type: ignore[arg-type]
    return None
