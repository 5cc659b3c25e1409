"""Random networks with branches, whose channels are unevenly scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

C = 8
Run = Callable[[Any, Tensor, Tensor], Tensor]


def nothing() -> list[nn.Module]:
    return []


def swap_halves(m: Any, a: Tensor, b: Tensor) -> Tensor:
    first, second = a.chunk(2, 1)
    return torch.cat([second, m[0](first)], 1)


def shuffle(m: Any, a: Tensor, b: Tensor) -> Tensor:
    n, _, h, w = a.shape
    return a.view(n, 2, C // 2, h, w).transpose(1, 2).reshape(n, C, h, w)


STEPS: dict[str, tuple[Callable[[], list[nn.Module]], Run]] = {
    "conv": (lambda: [nn.Conv2d(C, C, 3, padding=1)], lambda m, a, b: m[0](a)),
    "conv+relu": (lambda: [nn.Conv2d(C, C, 1)], lambda m, a, b: m[0](a).relu()),
    "depthwise": (lambda: [nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False)], lambda m, a, b: m[0](a)),
    "grouped": (lambda: [nn.Conv2d(C, C, 1, groups=2)], lambda m, a, b: m[0](a)),
    "transposed": (lambda: [nn.ConvTranspose2d(C, C, 3, padding=1)], lambda m, a, b: m[0](a)),
    "transposed grouped": (lambda: [nn.ConvTranspose2d(C, C, 1, groups=4)], lambda m, a, b: m[0](a)),
    "cat": (lambda: [nn.Conv2d(2 * C, C, 1)], lambda m, a, b: m[0](torch.cat([a, b], 1))),
    "swap halves": (lambda: [nn.Conv2d(C // 2, C // 2, 1)], swap_halves),
    "gate": (lambda: [nn.Conv2d(C, C, 1)], lambda m, a, b: a * torch.sigmoid(m[0](F.adaptive_avg_pool2d(b, 1)))),
    "shuffle": (nothing, shuffle),
    "add": (nothing, lambda m, a, b: a + b),
    "mul": (nothing, lambda m, a, b: a * b),
    "relu": (nothing, lambda m, a, b: F.relu(a)),
    "leaky_relu": (nothing, lambda m, a, b: F.leaky_relu(a, 0.1)),
    "relu6": (nothing, lambda m, a, b: F.relu6(a)),
    "hardswish": (nothing, lambda m, a, b: F.hardswish(a)),
    "max_pool": (nothing, lambda m, a, b: F.max_pool2d(a, 3, 1, 1)),
    "avg_pool": (nothing, lambda m, a, b: F.avg_pool2d(a, 3, 1, 1, count_include_pad=False)),
}


# A step's name, and how far back each of its inputs is.
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from([0, 0, 0, 1, 2, 3]), st.integers(0, 5)),
    min_size=3, max_size=9,
)  # fmt: skip


class RandomGraph(nn.Module):
    """A step reads the last value if its second number is 0, and others by these numbers: [N,3,6,6] -> [N,5]."""

    def __init__(self, program: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.program = program
        self.stem = nn.Conv2d(3, C, 1)
        self.parts = nn.ModuleList(nn.ModuleList(STEPS[name][0]()) for name, _, _ in program)
        self.head = nn.Linear(C * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.stem(x)]
        for part, (name, back, other) in zip(self.parts, self.program, strict=True):
            a, b = (values[-1 - n % len(values)] for n in (back, other))
            values.append(STEPS[name][1](part, a, b))
        logits: Tensor = self.head(torch.flatten(F.max_pool2d(values[-1], 2), 1))
        return logits


def uneven(model: nn.Module, decades: float = 1.5) -> nn.Module:
    """Rescale the output channels of every layer."""
    with torch.no_grad():
        for m in model.modules():
            if isinstance(weight := getattr(m, "weight", None), Tensor) and weight.dim() > 1:
                axis = 1 if isinstance(m, nn.ConvTranspose2d) else 0
                along = [-1 if d == axis else 1 for d in range(weight.dim())]
                weight *= 10 ** ((torch.rand(weight.shape[axis]) * 2 - 1) * decades).reshape(along)
    return model.eval()
