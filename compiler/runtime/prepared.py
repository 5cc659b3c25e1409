"""A module that observes its activations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from ..core.entry_point import entry_point
from ..core.errors import CaptureError, StateError
from ..core.markers import Quantized
from ..execution.batches import check_batch
from ..execution.inputs import Signature
from ..execution.sample import Batch, Sample
from ..workflows.capture_model import capture_model, captured_on
from ..workflows.mixed_precision import freeze_with_mixed_precision
from ..workflows.options import Options
from ..workflows.stages import CapturedModel, PreparedModel, UntracedModel
from ..workflows.static import calibrated, lower, observe, prepare
from .compiled import Compiled
from .float_model import FloatModel
from .islands import IslandModel


class Prepared(nn.Module, Quantized):
    """A model with observers in place: it runs in fp32 and records activation ranges on every call.

    Print it to see the graph. :func:`fxquant.convert` makes it int8.

    Args:
        captured: the model.
        fallback: runs calls that the compiled model does not take.
    """

    def __init__(self, captured: CapturedModel | UntracedModel, fallback: FloatModel | None = None) -> None:
        super().__init__()
        self._stage: UntracedModel | CapturedModel | PreparedModel | IslandModel = captured
        if isinstance(captured, CapturedModel):
            self.graph_module = captured.gm
        self._fallback = fallback
        self._calls = 0
        self._converted = False

    @entry_point
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and results as the model's forward(), in fp32.

        Raises:
            CalibrationError: the call does not fit, or gives NaN or inf.
            StateError: it was converted.
        """
        self._check_not_converted()
        batch: Batch = (args, kwargs)
        check_batch(batch, self._calls, self.signature)
        if not self.observed:
            sample = Sample()
            sample.fill(iter([batch]))
            self._prepare(sample)
            return self._observe(batch)
        result = self._observe(batch)
        if isinstance(self._stage, PreparedModel):
            self._stage.sample.keep(batch)
        return result

    def calibrate(self, sample: Sample, batches: Iterable[Batch]) -> None:
        """Place observers and run ``batches`` through them; ``sample`` is what passes may look at.

        Raises:
            CalibrationError: forward() fails on a batch, or gives NaN or inf.
        """
        self._prepare(sample)
        for batch in batches:
            self._observe(batch)

    def _prepare(self, sample: Sample) -> None:
        stage = self._stage
        assert isinstance(stage, CapturedModel | UntracedModel)
        try:
            self._stage = prepare(captured_on(stage, sample[0]), sample)
            self.graph_module = self._stage.gm
        except CaptureError as error:
            self._stage = IslandModel(stage, error, sample[0], _observing)

    def _observe(self, batch: Batch) -> Any:
        if isinstance(self._stage, IslandModel):
            result = self._stage.observe(batch, self._calls)
        else:
            assert isinstance(self._stage, PreparedModel)
            result = observe(self._stage, batch, self._calls)
        self._calls += 1
        return result

    @property
    def observed(self) -> bool:
        """Whether it has seen data."""
        return isinstance(self._stage, PreparedModel | IslandModel)

    def takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the graph holds for a call with ``args`` and ``kwargs``, as far as it is known."""
        if not isinstance(self._stage, PreparedModel):
            return True
        signature = self.signature
        try:
            return self._stage.interface.violation(signature.names, signature.bind(args, kwargs)) is None
        except TypeError:
            return False

    @property
    def island(self) -> str:
        """Why the model itself has to stay Python; "" if it does not, or if that is not known yet."""
        return self._stage.islands.get("", "") if isinstance(self._stage, IslandModel) else ""

    def convert(self) -> Compiled:
        """Lower to int8. The module is used up.

        Raises:
            StateError: it has seen no data, or was converted.
        """
        if not isinstance(self._stage, PreparedModel | IslandModel):
            raise StateError("The module has seen no data: call it on calibration batches first.")
        self._check_not_converted()
        if isinstance(self._stage, IslandModel):
            compiled = self._stage.compiled(self._fallback)
        else:
            compiled = Compiled.of(lower(freeze_with_mixed_precision(calibrated(self._stage))), self._fallback)
        self._converted = True
        return compiled

    def _check_not_converted(self) -> None:
        if self._converted:
            raise StateError("This module was converted; its graph belongs to the result. Prepare the model again.")

    @property
    def signature(self) -> Signature:
        """The inputs of forward()."""
        stage = self._stage
        return Signature.of(stage.gm) if isinstance(stage, PreparedModel) else stage.signature

    @property
    def graph(self) -> fx.GraphModule:
        """The graph as it is now.

        Raises:
            StateError: there is none before the first batch, as torch.fx cannot trace the model; or a part of the
                model stays Python.
        """
        return self._traced().gm

    def _traced(self) -> CapturedModel | PreparedModel:
        if isinstance(self._stage, UntracedModel):
            raise StateError(f"There is no graph before the first batch of data: {self._stage.error}")
        if isinstance(self._stage, IslandModel):
            raise StateError(f"There is no graph of the whole model: {next(iter(self._stage.islands.values()))}")
        return self._stage

    @property
    def notes(self) -> dict[fx.Node, str]:
        """What passes did or could not do so far, by node."""
        return self._traced().runner.notes

    @property
    def snapshots(self) -> dict[str, str]:
        """The graph after each step, if asked for."""
        return self._traced().runner.snapshots

    def extra_repr(self) -> str:
        if isinstance(self._stage, IslandModel):
            return str(self._stage.tree)
        return "" if isinstance(self._stage, UntracedModel) else str(self._stage.gm.graph)


def _observing(module: nn.Module, options: Options) -> Prepared:
    return Prepared(capture_model(module, options))
