"""What :func:`fxquant.compile` returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from .batches import Batch, Sample, check_finite, run_batch
from .errors import StateError
from .failing import call_error
from .pipeline import convert, lower, prepare
from .report import Report
from .work import Work


class Prepared(nn.Module):
    """A model with observers in place: runs in fp32 and records activation ranges on every call.

    Print it to see the graph. :func:`fxquant.convert` makes it int8.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.graph_module = work.gm
        self.work = work
        self._calls = 0
        self.converted = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's forward takes and gives, in fp32; the values on the way are observed.

        Raises:
            CalibrationError: the call does not fit, or gives NaN or inf.
        """
        if self.converted:
            raise StateError("This module was converted; its graph belongs to the result. Prepare the model again.")
        batch = (args, kwargs)
        check_finite(batch, self._calls, self.graph_module)
        first = not self.begun
        if first:
            sample = Sample()
            sample.fill(iter([batch]))
            self.begin(sample)
        result = self.observe(batch)
        if not first:
            self.work.sample.keep(batch)
        return result

    def observe(self, batch: Batch) -> Any:
        """The forward on a batch that was checked, after :meth:`begin`."""
        result = run_batch(self.graph_module, batch, self._calls)
        self._calls += 1
        return result

    def begin(self, sample: Sample) -> None:
        """Place observers, with all of ``sample`` known at once; without it the first call is all there is.

        Raises:
            CalibrationError: the forward fails on the sample.
        """
        prepare(self.work, sample)

    @property
    def begun(self) -> bool:
        """Whether the observers are in place."""
        return bool(self.work.sample)

    @property
    def example(self) -> Batch:
        """The first batch seen."""
        return self.work.sample[0]

    def extra_repr(self) -> str:
        return str(self.work.gm.graph)


@dataclass(frozen=True)
class Compiled:
    """What a workflow gives.

    Attributes:
        run: takes what the model's forward takes.
        report: what was done to every op.
        graph: the frozen graph, or that of dynamic layers; None where the model could not be traced.
        module: the graph, or a copy of the model whose layers are dynamic.
        snapshots: the graph after each step, if asked for.
    """

    run: Callable[..., Any]
    report: Report
    graph: fx.GraphModule | None
    module: nn.Module
    snapshots: Mapping[str, str]


def lowered_module(work: Work) -> Compiled:
    """A frozen graph, lowered and verified."""
    lowered, report = lower(work)
    return Compiled(lowered.run, report, work.gm, work.gm, work.snapshots)


class QuantizedModule(nn.Module):
    """A compiled model: call it like the float one. ``print`` shows the report.

    Made without calibration data it runs in fp32 and calibrates on its calls, until :meth:`freeze`.
    It takes any batch size that the model takes, and gives no gradients.
    """

    def __init__(self, source: Prepared | Compiled) -> None:
        super().__init__()
        # In a list: no submodule, so that its observers and fp32 weights are not part of this module's state.
        self._prepared = [source] if isinstance(source, Prepared) else []
        self._compiled = source if isinstance(source, Compiled) else None

    def freeze(self) -> QuantizedModule:
        """End calibration and lower to int8. Returns self.

        Raises:
            StateError: it is frozen already, or has seen no data yet.
        """
        if self._compiled is not None:
            raise StateError("The module is frozen already.")
        (prepared,) = self._prepared
        if not prepared.begun:
            raise StateError("The module has seen no data: call it on calibration batches before freeze().")
        if prepared.converted:
            raise StateError("The prepared module was converted already. Prepare the model again.")
        self._compiled = lowered_module(convert(prepared.work))
        prepared.converted = True
        return self

    @property
    def frozen(self) -> bool:
        """Whether it is compiled, and calibrates no longer."""
        return self._compiled is not None

    @property
    def report(self) -> Report:
        """One row per op, and totals.

        Raises:
            StateError: the module still calibrates.
        """
        if self._compiled is None:
            raise StateError("There is no report while the module calibrates; call freeze() first.")
        return self._compiled.report

    @property
    def graph(self) -> fx.GraphModule:
        """The graph as it stands: with observers while calibrating, the frozen one afterwards.

        Raises:
            StateError: the model was quantized dynamically without a graph; see :attr:`module`.
        """
        graph = self._prepared[0].work.gm if self._compiled is None else self._compiled.graph
        if graph is None:
            raise StateError("There is no graph: the model was not traced, and its layers were swapped; see .module.")
        return graph

    @property
    def module(self) -> nn.Module:
        """After dynamic quantization a copy of the model with its layers swapped, which has the model's own methods.

        Else :attr:`graph`.
        """
        return self._prepared[0].work.gm if self._compiled is None else self._compiled.module

    @property
    def snapshots(self) -> Mapping[str, str]:
        """The graph after each step of the pipeline, if compiled with ``snapshots=True``."""
        return self._prepared[0].work.snapshots if self._compiled is None else self._compiled.snapshots

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the float model's forward takes and gives.

        Raises:
            CallError: a layer with int8 or fp16 weights does not take what it is given.
        """
        if self._compiled is None:
            return self._prepared[0](*args, **kwargs)
        with torch.no_grad():
            try:
                return self._compiled.run(*args, **kwargs)
            except Exception as error:
                explained = call_error(self._compiled.module, args, kwargs, error)
                if explained is None:
                    raise
                raise explained from error

    def __repr__(self) -> str:
        return str(self._compiled.report) if self._compiled else f"QuantizedModule(calibrating)\n{self._prepared[0]}"

    def with_remark(self, remark: str) -> QuantizedModule:
        """The same module, whose report ends its first line with ``remark``."""
        return self.with_report(replace(self.report, remark=remark))

    def with_report(self, report: Report) -> QuantizedModule:
        """The same module with another ``report``."""
        assert self._compiled is not None
        return QuantizedModule(replace(self._compiled, report=report)).eval()

    def running(self, module: nn.Module) -> QuantizedModule:
        """The same account, of the float ``module``, which is run in its place."""
        assert self._compiled is not None
        report = self._compiled.report.in_fp32("the float model itself runs, which is faster")
        return QuantizedModule(replace(self._compiled, run=module, module=module, report=report)).eval()

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedModule:
        """What ``to``, ``half``, ``cuda`` and their like do.

        Raises:
            StateError: it is compiled.
        """
        if self._compiled is not None:
            raise StateError(
                "A compiled module cannot change its dtype or device: its kernels are packed for this CPU and take "
                "fp32. Compile the float model again for another."
            )
        super()._apply(fn, recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedModule:
        """A frozen module holds constants only, which copies share."""
        if self._compiled is None:
            raise StateError("A module that still calibrates cannot be copied; call freeze() first.")
        twin = QuantizedModule(self._compiled)
        memo[id(self)] = twin
        return twin

    def __reduce__(self) -> Any:
        raise StateError(
            "A compiled module cannot be pickled: it holds kernels packed for this CPU. Keep the float model, and "
            "compile it where it runs."
        )
