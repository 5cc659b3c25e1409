"""What :func:`fxquant.compile` returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..backends.base import Lowered
from .batches import run_batch
from .errors import StateError
from .pipeline import Work, convert, example_of, prepare
from .report import Report


class Prepared(nn.Module):
    """A model with observers in place: runs in fp32 and records activation ranges on every call.

    Print it to see the graph. :func:`fxquant.convert` makes it int8.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.graph_module = work.gm
        object.__setattr__(self, "_work", work)
        self._example: Any = None

    @property
    def work(self) -> Work:
        """The state of the pipeline."""
        return self._work  # type: ignore[no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's forward takes and gives, in fp32; the values on the way are observed.

        Raises:
            CalibrationError: the call does not fit, or gives NaN or inf.
        """
        batch = (args, kwargs)
        if self.work.assignment is None:
            self._example = example_of(batch)
            prepare(self.work, self._example)
        elif self._example is None:
            self._example = example_of(batch)
        return run_batch(self.graph_module, batch, 0)

    @property
    def example(self) -> Any:
        """The first batch seen, as ``(args, kwargs)``; None before."""
        return self._example

    def extra_repr(self) -> str:
        return str(self.work.gm.graph)


class QuantizedModule(nn.Module):
    """A compiled model: call it like the float one. ``print`` shows the report.

    Made without calibration data it runs in fp32 and calibrates on its calls, until :meth:`freeze`.
    It takes any batch size that the model takes, and gives no gradients.
    """

    def __init__(self, prepared: Prepared) -> None:
        super().__init__()
        object.__setattr__(self, "_prepared", prepared)
        self._lowered: Lowered | None = None
        self._report: Report | None = None

    def freeze(self) -> QuantizedModule:
        """End calibration and lower to int8. Returns self.

        Raises:
            StateError: it is frozen already, or has seen no data yet.
        """
        if self._lowered is not None:
            raise StateError("The module is frozen already.")
        prepared: Prepared = self._prepared  # type: ignore[assignment]
        if prepared.example is None:
            raise StateError("The module has seen no data: call it on calibration batches before freeze().")
        self._lowered, self._report = convert(prepared.work, prepared.example)
        return self

    @property
    def frozen(self) -> bool:
        """Whether it runs in int8."""
        return self._lowered is not None

    @property
    def report(self) -> Report:
        """One row per op, and totals.

        Raises:
            StateError: the module still calibrates.
        """
        if self._report is None:
            raise StateError("There is no report while the module calibrates; call freeze() first.")
        return self._report

    @property
    def graph(self) -> torch.fx.GraphModule:
        """The graph as it stands: with observers while calibrating, the frozen one afterwards."""
        return self._prepared.work.gm  # type: ignore[no-any-return,union-attr]

    @property
    def snapshots(self) -> dict[str, str]:
        """The graph after each step of the pipeline, if compiled with ``snapshots=True``."""
        return self._prepared.work.snapshots  # type: ignore[no-any-return,union-attr]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the float model's forward takes and gives."""
        if self._lowered is None:
            return self._prepared(*args, **kwargs)  # type: ignore[operator]
        with torch.no_grad():
            return self._lowered.run(*args, **kwargs)

    def __repr__(self) -> str:
        return str(self._report) if self._report else f"QuantizedModule(calibrating)\n{self._prepared}"

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedModule:
        """A frozen module holds constants only, which copies share."""
        if self._lowered is None:
            raise StateError("A module that still calibrates cannot be copied; call freeze() first.")
        twin = QuantizedModule(self._prepared)  # type: ignore[arg-type]
        twin._lowered, twin._report = self._lowered, self._report
        memo[id(self)] = twin
        return twin

    def __reduce__(self) -> Any:
        raise StateError(
            "A compiled module cannot be pickled: it holds kernels packed for this CPU. Keep the float model, and "
            "compile it where it runs."
        )
