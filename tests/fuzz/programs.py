"""Random programs over the op semantics, and what must hold for each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import fxquant
from fxquant.backends.base.backend import Lowered
from fxquant.backends.registry import BackendName, create_backend
from fxquant.compiler.core.tensors import tensors_of
from fxquant.compiler.numerics.metrics import sqnr
from fxquant.passes.analysis.ruinous_ops import LEAST_SQNR
from fxquant.passes.quantization.verify import STEPS as MOST_STEPS

from . import functions, layers  # noqa: F401  # they fill STEPS
from .step import STEPS, Run, Site, Step

LARGEST = 2**15  # values in one tensor
Line = tuple[str, int, int, int]  # a step, how far back its two values are, and its variant


class Program(nn.Module):
    """Steps one after the other; those that do not fit their values are left out. Returns the last two values.

    Args:
        lines: the program.
        example: the input that it is built for.
    """

    def __init__(self, lines: list[Line], example: Tensor) -> None:
        super().__init__()
        self.parts, self.runs, self.places = nn.ModuleList(), list[Run](), list[tuple[int, int]]()
        values = [example]
        with torch.no_grad():
            for name, back, other, n in lines:
                places = tuple(max(len(values) - 1 - i, 0) for i in (back, other))
                a, b = (values[i] for i in places)
                site = Site(a.shape, b.shape, n)
                if not STEPS[name].fits(site):
                    continue
                layers = nn.ModuleList(map(settled, STEPS[name].layers(site))).eval()
                run = STEPS[name].run(site)
                value = run(layers, a, b)
                if (
                    value.numel()
                    and value.numel() <= LARGEST
                    and torch.isfinite(value).all()
                    and value.abs().max() < 1e12
                ):
                    self.parts.append(layers)
                    self.runs.append(run)
                    self.places.append((places[0], places[1]))
                    values.append(value)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = [x]
        for part, run, (a, b) in zip(self.parts, self.runs, self.places, strict=True):
            values.append(run(part, values[a], values[b]))
        return values[-1], values[len(values) // 2]


def settled(layer: nn.Module) -> nn.Module:
    """A layer whose channels differ: one is zero, one is constant, one is large."""
    with torch.no_grad():
        for name, values in (*layer.named_parameters(), *layer.named_buffers()):
            if name == "running_var":
                values.uniform_(0.2, 3)
            elif name == "weight" and values.dim() > 1 and len(values) > 3:
                values[1] = 0
                values[2] *= 30
            elif values.dim() == 1 and values.is_floating_point():
                values.normal_(0.5, 0.5)
    return layer


KINDS = sorted(STEPS) + [name for name, step in sorted(STEPS.items()) if step.layers is not Step.layers] * 2
INPUTS = {"image": (3, 6, 9, 7), "small": (2, 4, 3, 3), "tokens": (2, 7, 8), "rows": (5, 10)}
PROGRAMS = st.tuples(
    st.sampled_from(sorted(INPUTS)),
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from([0, 0, 0, 1, 2]), st.integers(0, 4), st.integers(0, 12)),
        min_size=2, max_size=12,
    ),
    st.integers(0, 2**16),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of a program.

    Attributes:
        fault: what is wrong; "" if nothing is.
        int8: how many ops are int8.
    """

    fault: str
    int8: int = 0


def outcome(kind: str, lines: list[Line], seed: int, backend: BackendName) -> Outcome:
    """Compile a program; check every kernel, and the model, on other inputs and batch sizes."""
    torch.manual_seed(seed)
    shape = INPUTS[kind]
    data = [torch.randn(shape) for _ in range(2)]
    model = Program(lines, data[0]).eval()
    try:
        q = fxquant.compile(model, calibration=data, backend=backend)
    except fxquant.ModelError as error:
        return Outcome("" if "nothing to quantize" in str(error) else str(error))
    lowered = create_backend(backend, executor="eager" if backend == "x86" else "auto").lower(q.program, {})
    for x in (data[0], torch.randn(shape), torch.randn(1, *shape[1:]), torch.cat(data)):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error", fxquant.FallbackWarning)
            expected, given, program = (tensors_of(run(x.clone())) for run in (model, q, q.graph))
        fault = _form(expected, given) or _steps(lowered, x, sqnr(program, given))
        if x is data[0] and not fault and not q.report.remark and sqnr(expected, given) < LEAST_SQNR - 3:
            fault = f"{sqnr(expected, given):.1f} dB against fp32, without a remark"
        if fault:
            return Outcome(f"{fault} at {tuple(x.shape)}")
    return Outcome("", q.report.counts.get("int8", 0))


def _form(expected: list[Tensor], given: list[Tensor]) -> str:
    """What is wrong with shapes, dtypes and memory of the results."""
    for theirs, ours in zip(expected, given, strict=True):
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            return f"{ours.dtype} {tuple(ours.shape)}, not {theirs.dtype} {tuple(theirs.shape)}"
        if theirs.is_contiguous() and not ours.is_contiguous():
            return f"strides {ours.stride()}, not {theirs.stride()}"
        if not torch.isfinite(ours).all():
            return "NaN or inf"
    return ""


def _steps(lowered: Lowered, x: Tensor, near: float) -> str:
    """Which kernel does not give the integers of the program; or that the results differ (``near``, dB) without one."""
    assert lowered.kernel_errors is not None
    errors = {str(node.args[0]): steps for node, steps in lowered.kernel_errors(x).items()}
    wrong = {name: steps for name, steps in errors.items() if steps > MOST_STEPS}
    if wrong:
        return f"kernels are wrong by {wrong} steps"
    return f"exact kernels, but {near:.1f} dB" if not any(errors.values()) and near < 60 else ""
