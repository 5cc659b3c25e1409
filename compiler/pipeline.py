"""From a float module to a lowered one: the steps in order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from torch import fx, nn

from ..backends.base import Frozen, Lowered, OpTable
from ..passes.absorb_bias import AbsorbBias
from ..passes.assign_precision import Assignment, assign_precision
from ..passes.base import PassResult
from ..passes.choice import Choice, only_with_one_scale
from ..passes.choose_ranges import choose_ranges
from ..passes.correct_bias import correct_bias
from ..passes.dynamic import LayerPlan, Swap, Wish, absorb_relus, refuse_vain
from ..passes.eliminate_noops import EliminateNoops
from ..passes.equalize import Equalize, nothing_against
from ..passes.fold_batchnorm import FoldBatchNorm
from ..passes.freeze import freeze
from ..passes.keep_fp32 import LEAST_SQNR, keep_fp32, nearness
from ..passes.learn_rounding import LearnRounding
from ..passes.place import place
from ..passes.relu6_as_relu import Relu6AsRelu
from ..passes.smooth import Smooth
from ..passes.verify import verify
from .attention import take_attention_apart
from .batches import Batch, Sample, copied, run_batch, sampled
from .capture import capture
from .errors import ModelError, where
from .lockstep import Twin, twin
from .mixes import mix
from .normalize import normalize
from .overrides import ResolvedConfig, node_subject, resolve
from .report import Report, parameter_bytes
from .static_report import static_report
from .values import run_values
from .work import Options, Work

CALIBRATION_BATCHES = 32
LOCKSTEP_BYTES = 512 * 2**20


def start(model: nn.Module, options: Options) -> Work:
    """Everything that needs no data: capture, one spelling, folding."""
    work = Work(capture(model, options.leaf_modules), options, model_bytes(model))
    simplify(work, FoldBatchNorm(), EliminateNoops())
    return work


def calibrated(
    model: nn.Module, calibration: object, options: Options, limit: int, kept: list[Batch] | None = None
) -> Work:
    """A model ready to be frozen, calibrated on at most ``limit`` batches, copies of which are added to ``kept``.

    Raises:
        CaptureError, ModelError, CalibrationError, ConfigError: see :func:`fxquant.compile`.
    """
    work = start(model, options)
    sample, stream = sampled(calibration, work.gm, limit)
    prepare(work, sample)
    for number, batch in enumerate(stream):
        if kept is not None:
            kept.append(copied(batch))
        run_batch(work.gm, batch, number)
    return work


def model_bytes(model: nn.Module) -> int:
    """Bytes of its parameters and buffers."""
    return parameter_bytes((*model.parameters(), *model.buffers()))


def simplify(work: Work, fold_batchnorm: FoldBatchNorm, eliminate_noops: EliminateNoops) -> None:
    """One spelling per op, and rewrites that need no data."""
    normalize(work.gm, work.options.backend.table)
    work.snapshot("capture")
    work.apply(fold_batchnorm)
    work.folded_linears = fold_batchnorm.linears
    work.apply(eliminate_noops)
    if work.options.config.relu6_as_relu:
        work.apply(Relu6AsRelu())


def prepare(work: Work, sample: Sample) -> Work:
    """Decide the precision of every op, even out channels, place observers and stubs. ``work.gm`` stays fp32.

    ``sample``: the first batches of the calibration data, at least one.

    Raises:
        CalibrationError: the forward fails on the example.
        ModelError: there is nothing to quantize, or a batch normalisation was folded along another axis than its own.
        ConfigError: an override matches nothing.
    """
    gm, table = work.gm, work.options.backend.table
    # First of all: an example that does not fit must change nothing.
    values = run_batch(lambda *args, **kwargs: run_values(gm, args, kwargs), sample[0], 0)
    for node in work.folded_linears:
        if node in values and len(values[node].shape) != 2:
            raise ModelError(
                f"Behind {where(node)} an nn.BatchNorm1d normalises axis 1 of {values[node].shape}, not the "
                "features. Put it into a module of your own, and name that in leaf_modules."
            )
    modules: Mapping[str, nn.Module] = dict(gm.named_modules())
    subjects = {
        node: node_subject(node, rule.name if (rule := table.of(node, modules)) else "")
        for node in gm.graph.nodes
        if node.op in ("call_module", "call_function", "call_method")
    }
    config = resolve(work.options.config, subjects)
    work.layers = _layers_by_name(gm, config, table)
    refuse_vain(work.options.config, config, work.layers)
    work.assignment = assign_precision(gm, table, config, values, work.layers.reasons)
    if not work.assignment.int8_units and not work.layers.wishes:
        raise ModelError(_nothing_to_quantize(work.assignment))
    work.note(PassResult(0, work.assignment.matched.refusals))
    work.sample = sample
    even_out(work)
    place(gm, work.assignment)
    work.snapshot("place")
    return work


def _layers_by_name(gm: fx.GraphModule, config: ResolvedConfig, table: OpTable) -> LayerPlan:
    """The plan for layers, and layers in modules that were not traced, whose override names a type of weights."""
    plan = LayerPlan()
    for node in gm.graph.nodes:
        dtype, chosen = config.dynamic(node), config.of(node)
        if node.op != "call_module" or dtype is None or chosen is None:
            continue
        whole = gm.get_submodule(str(node.target))
        if table.find(type(whole)) is None:
            around = f"{node.target}."
            _, left = take_attention_apart(gm, lambda path, around=around: f"{path}.".startswith(around))  # type: ignore[misc]
            plan.reasons |= left
            whole = gm.get_submodule(str(node.target))
        for path, layer in whole.named_modules(prefix=str(node.target)):
            plan.ask(path, layer, Wish(dtype, chosen, overridden=True), table, node)
    return plan


def even_out(work: Work) -> None:
    """Scale and shift channels across layers, as far as the configuration wants it. Exact."""
    assignment, backend, sample = work.assignment, work.options.backend, work.sample
    assert assignment is not None
    one_scale = only_with_one_scale(assignment)
    equalize = Choice(assignment, "equalize", one_scale)
    if equalize.leaves_any:
        work.apply(Equalize(sample[0], equalize))
    smooth = Choice(assignment, "smooth", nothing_against)
    if smooth.leaves_any:
        work.apply(Smooth(assignment, backend, sample, smooth), refused=smooth.decided)
    absorb = Choice(assignment, "absorb_bias", one_scale)
    if absorb.leaves_any:
        work.apply(AbsorbBias(sample, absorb, absorb.decided))


def quantize(work: Work) -> Twin:
    """From a calibrated graph to the frozen one that is lowered. Returns the graph in fp32."""
    exact = round_off(work)
    compensate(work, exact)
    return exact


def round_off(work: Work) -> Twin:
    """From a calibrated graph to a frozen one. Returns the graph in fp32."""
    assert work.assignment is not None
    choose_ranges(work.gm, work.assignment, _side_by_side(work))
    exact = twin(work.gm)
    freeze(work.gm, work.assignment, work.options.backend)
    work.snapshot("freeze")
    return exact


def compensate(work: Work, exact: Twin) -> None:
    """Adjust the weights and biases of a frozen graph to the error that rounding makes."""
    assert work.assignment is not None
    learn = LearnRounding(exact, work.assignment, _side_by_side(work))
    work.note(learn(work.gm))
    work.snapshot(learn.name)
    correct(work, exact)


def correct(work: Work, exact: Twin) -> None:
    """Adjust the biases of a frozen graph."""
    assert work.assignment is not None
    work.note(correct_bias(work.gm, exact, work.assignment, _side_by_side(work)))
    work.snapshot("correct_bias")


def _side_by_side(work: Work) -> Sequence[Batch]:
    """The batches that may run at once: their largest values, a few of which live at a time, are bounded."""
    assert work.assignment is not None
    sizes = [math.prod(v.shape) * v.dtype.itemsize for v in work.assignment.values.values()]
    return work.sample[: max(1, LOCKSTEP_BYTES // max(*sizes, 1))]


def convert(work: Work) -> Work:
    """From a calibrated graph to the frozen one that is lowered, without the ops that :mod:`.keep_fp32` leaves out."""
    if not work.options.config.mixed_precision:
        quantize(work)
        return work

    def frozen(fp32: Mapping[str, str]) -> tuple[Work, Twin]:
        chosen = mix(work, fp32)
        return chosen, round_off(chosen)

    @cache
    def trial(fp32: frozenset[str]) -> float:
        chosen, exact = frozen(dict.fromkeys(fp32, "tried"))
        correct(chosen, exact)
        return nearness(chosen.gm, exact, work.sample)

    chosen, exact = frozen({})
    assert chosen.assignment is not None
    kept = keep_fp32(chosen.gm, exact, chosen.assignment, work.options.backend, work.sample, trial)
    if kept.reasons:
        chosen, exact = frozen(kept.reasons)
    compensate(chosen, exact)
    if kept.is_ruined and (left := nearness(chosen.gm, exact, work.sample)) < LEAST_SQNR:
        chosen.remark = f"int8 ruins the output: {left:.1f} dB on the first batch"
    return chosen


def lower(work: Work, trained: bool = False) -> tuple[Lowered, Report]:
    """From a frozen graph to a verified, lowered one. ``trained``: with its roundings, so that none may be left out."""
    assert work.assignment is not None
    if work.layers.wishes:
        absorb_relus(work.gm, work.layers, work.options.backend.table)
        Swap(work.options.backend)(work.gm, work.layers)
        work.gm.recompile()
    frozen = Frozen(work.gm, *work.sample[0], frozenset(work.assignment.reasons), trained)
    lowered = work.options.backend.lower(frozen)
    work.snapshot("lower")
    verify(lowered, work.assignment)
    table = work.options.backend.table
    report = static_report(work.gm, table, work.assignment, work.layers, lowered, work.notes, work.fp32_bytes)
    return lowered, replace(report, remark=work.remark)


def _nothing_to_quantize(assignment: Assignment) -> str:
    reasons = [f"  {n.name}: {r}" for n, r in assignment.reasons.items()][:10]
    listed = "\n" + "\n".join(reasons) if reasons else " It has no op that fxquant knows."
    return f"The model has nothing to quantize.{listed}"
