"""What :func:`fxquant.compile` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from ...backends.base.program import FrozenProgram
from ..core.entry_point import entry_point
from ..core.errors import StateError
from ..core.markers import Quantized
from ..report.report import Report
from .call_errors import call_error, is_of_a_kernel
from .compiled import Compiled
from .prepared import Prepared

KEEP_FLOAT = (
    "It holds kernels packed for this CPU. Save the state_dict() of the float model, load it into that, and compile it "
    "where it runs."
)


class QuantizedModule(nn.Module, Quantized):
    """A compiled model: call it like the float model. Print it for the report.

    Without calibration data it runs in fp32 and calibrates on its calls, until :meth:`freeze`. It takes any batch size
    that the model takes, and gives no gradients.
    """

    def __init__(self, source: Prepared | Compiled) -> None:
        super().__init__()
        # In a list: not a submodule, so that its observers and fp32 weights are not in the state of this module.
        self._prepared = [source] if isinstance(source, Prepared) else []
        self._compiled = source if isinstance(source, Compiled) else None

    @entry_point
    def freeze(self) -> QuantizedModule:
        """End calibration and compile to int8, as :func:`fxquant.convert` does. Returns self.

        Raises:
            StateError: it is frozen already, or has seen no data.
        """
        if self._compiled is not None:
            raise StateError("The module is compiled already; freeze() is for a module without calibration data.")
        (prepared,) = self._prepared
        self._compiled = prepared.convert()
        self._prepared = []  # with its observers and the float weights
        return self

    @property
    def frozen(self) -> bool:
        """Whether it is compiled, and no longer calibrates."""
        return self._compiled is not None

    @property
    def report(self) -> Report:
        """One row per op, and totals.

        Raises:
            StateError: the module still calibrates.
        """
        return self._result("report").report

    @property
    def program(self) -> FrozenProgram:
        """The frozen program: float ops between quantize and dequantize, integer weights; it depends on no backend.

        Do not change it: its tensors may be those that run.

        Raises:
            StateError: the module still calibrates, or the model was not traced.
        """
        program = self._result("program").program
        if program is None:
            raise StateError("There is no program, because the model was not traced. Use .module.")
        return program

    def _result(self, what: str) -> Compiled:
        if self._compiled is None:
            raise StateError(f"There is no {what} while the module calibrates; call freeze() first.")
        return self._compiled

    @property
    def graph(self) -> fx.GraphModule:
        """The graph: with observers while calibrating, then as executed.

        Unlike :attr:`program`, it shows the roundings that fused kernels leave out.

        Raises:
            StateError: the model was not traced; see :attr:`module`.
        """
        graph = self._prepared[0].graph if self._compiled is None else self._compiled.graph
        if graph is None:
            raise StateError("There is no graph, because the model was not traced. Use .module.")
        return graph

    @property
    def module(self) -> nn.Module:
        """With ``scheme="dynamic"``, a copy of the model with its layers replaced; it has all methods of the model.

        Otherwise the same as :attr:`graph`.
        """
        return self._prepared[0].graph if self._compiled is None else self._compiled.module

    @property
    def snapshots(self) -> Mapping[str, str]:
        """The graph after each step, if compiled with ``snapshots=True``."""
        return self._prepared[0].snapshots if self._compiled is None else self._compiled.snapshots

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and results as the model's forward().

        Raises:
            CallError: an input is not like those of calibration, or a layer does not take what it is given.
            StateError: torch.jit.trace calls it.
        """
        if self._compiled is None:
            return self._prepared[0](*args, **kwargs)
        if torch._C._get_tracing_state() is not None:
            raise StateError(f"A compiled module cannot be traced: torch does not see its kernels. {KEEP_FLOAT}")
        grad, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        # Not the context managers of torch: an interrupt in their __exit__ would leave the modes changed.
        try:
            torch._C._set_grad_enabled(False)
            if autocast:
                torch.set_autocast_enabled("cpu", False)
            return self._compiled.run(*args, **kwargs)
        except Exception as error:
            explained = None
            if is_of_a_kernel(error):
                explained = call_error(self._compiled.module, args, kwargs, error)
            if explained is None:
                raise
            raise explained from error
        finally:
            torch._C._set_grad_enabled(grad)
            torch.set_autocast_enabled("cpu", autocast)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused.

        Raises:
            StateError: always: int8 kernels hold the weights in a form for this CPU.
        """
        raise StateError(f"A compiled module has no state_dict(). {KEEP_FLOAT}")

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused.

        Raises:
            StateError: always.
        """
        raise StateError(f"A compiled module cannot load a state_dict. {KEEP_FLOAT}")

    def __repr__(self) -> str:
        return str(self._compiled.report) if self._compiled else f"QuantizedModule(calibrating)\n{self._prepared[0]}"

    def with_report(self, report: Report) -> QuantizedModule:
        """The same module with another report."""
        return QuantizedModule(replace(self._result("report"), report=report)).eval()

    def running_float(self, module: nn.Module) -> QuantizedModule:
        """A module that runs the float ``module`` instead, with a report that says so."""
        compiled = self._result("report")
        report = compiled.report.in_fp32("the float model itself runs, which is faster")
        return QuantizedModule(replace(compiled, run=module, module=module, report=report)).eval()

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedModule:
        """Called by ``to``, ``half``, ``cuda`` and the like.

        Raises:
            StateError: it is compiled, and is asked for another dtype or device.
        """
        if self._compiled is not None:
            changed = fn(torch.zeros(1))
            if changed.dtype == torch.float32 and changed.device.type == "cpu":
                return self
            raise StateError(
                "A compiled module cannot change its dtype or device: its kernels are packed for this CPU and take "
                "fp32. Compile the float model again for another."
            )
        super()._apply(fn, recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedModule:
        """A copy; it shares the constants, which never change, and no state that a forward() keeps."""
        if self._compiled is None:
            raise StateError("A module that still calibrates cannot be copied; call freeze() first.")
        copied = QuantizedModule(self._compiled.copied(memo))
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> Any:
        raise StateError(f"A compiled module cannot be pickled. {KEEP_FLOAT}")
