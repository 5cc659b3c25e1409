"""Capture: symbolic tracing with ``torch.fx`` of a copy of the model, and checks that it can be quantized."""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import rnn

from .errors import CaptureError, ConfigError, ModelError, nearest, user_line

Leaf = str | type[nn.Module]

# Where classes of quantized models come from; torch's are not imported.
QUANTIZED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "fxquant.compiler.module",
    "fxquant.compiler.observers",
)

# Kept as calls: they look at lengths, and their results are no tensors.
SEQUENCES = (rnn.pack_padded_sequence, rnn.pad_packed_sequence, rnn.pack_sequence, rnn.pad_sequence)


def check_model(model: object) -> None:
    """Refuse what cannot be quantized before anything is copied.

    Raises:
        ModelError: not an ``nn.Module``, or TorchScript; already quantized; not on the CPU; not fp32; NaN or inf.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"Expected an nn.Module, got {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "The model is TorchScript, which cannot be changed. Compile the nn.Module that it was made of."
        )
    for path, module in model.named_modules():
        origin, functional = type(module).__module__, "FloatFunctional" in type(module).__name__
        if origin == "fxquant.compiler.qat_module":
            raise ModelError("The model is in quantization-aware training already: fxquant.convert makes it int8.")
        if origin.startswith(QUANTIZED) and not functional:
            name = f"'{path}' ({type(module).__name__})" if path else type(module).__name__
            raise ModelError(f"The model is already quantized: {name}. Compile the float model.")
    check_tensors(model)


def check_tensors(model: nn.Module) -> None:
    """Refuse parameters and buffers that kernels cannot be made of.

    Raises:
        ModelError: not on the CPU; not fp32; NaN or inf.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _check_tensor(name, tensor)
    # Other buffers may hold inf on purpose: a causal mask does.
    statistics = ((n, t) for n, t in model.named_buffers() if n.endswith(("running_mean", "running_var")))
    for name, tensor in (*model.named_parameters(), *statistics):
        _check_finite(name, tensor)


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        raise ModelError(f"'{name}' is not initialized yet; call the model once, so that it gets its shape.")
    if tensor.device.type != "cpu":
        raise ModelError(f"'{name}' is on device '{tensor.device}'; move the model to the CPU first: model.cpu().")
    if tensor.dtype.is_floating_point and tensor.dtype != torch.float32:
        raise ModelError(f"'{name}' is {tensor.dtype}; convert the model to fp32 first: model.float().")


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    if not torch.isfinite(tensor).all():
        owner, _, leaf = name.rpartition(".")
        raise ModelError(f"The {leaf} of layer '{owner or leaf}' holds NaN or inf; it cannot be quantized.")


class _Proxy(fx.Proxy):
    """Records ``x += y`` as such: ``fx.Proxy`` takes it for ``x = x + y``, which other names of ``x`` do not see."""

    def _in_place(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)


class _Tracer(fx.Tracer):
    """Records lines of user code and where tracing stood when it failed."""

    record_stack_traces = True

    def __init__(self, leaves: tuple[type[nn.Module], ...], paths: frozenset[str]) -> None:
        super().__init__(autowrap_functions=SEQUENCES)
        # Also where they are called as nn.utils.rnn.pack_padded_sequence(...).
        self._autowrap_search.append(rnn)
        self._leaves, self._paths = leaves, paths
        self.path = ""
        # Paths of modules whose calls gave back their input, and of those with calls that did not.
        self.gave_back: set[str] = set()
        self.computed: set[str] = set()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._paths or isinstance(m, self._leaves):
            return True
        # torch.ao is never imported; its QuantStub and DeQuantStub are known by where they come from.
        if type(m).__module__.startswith("torch.ao."):
            return True
        return bool(super().is_leaf_module(m, module_qualified_name))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        outer, self.path = self.path, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.path = outer  # not in a finally: after a failure it names the place
        gives_back = bool(args) and result is args[0]
        (self.gave_back if gives_back else self.computed).add(self.path_of_module(m))
        return result


def capture(model: nn.Module, leaf_modules: Sequence[Leaf] = ()) -> fx.GraphModule:
    """Trace a copy of ``model`` in eval mode. The copy's parameter names are the model's.

    Args:
        leaf_modules: module paths or classes that are kept whole, in fp32.

    Raises:
        CaptureError: the forward cannot be traced; says at which module and line.
        ConfigError: an entry of ``leaf_modules`` matches nothing.
    """
    work = copied(model).eval()
    tracer, graph = _trace(work, *leaves(work, leaf_modules))
    return fx.GraphModule(tracer.root, graph, type(model).__name__)


@dataclass(frozen=True)
class Captured:
    """A forward in both modes.

    Attributes:
        module: its graph in eval mode, on the model's own layers.
        training: its graph in training mode.
        identities: paths of modules, calls in either graph, that give back their input in eval mode.
    """

    module: fx.GraphModule
    training: fx.Graph
    identities: frozenset[str]


def capture_modes(model: nn.Module, leaf_modules: Sequence[Leaf] = ()) -> Captured:
    """Trace ``model``, not a copy, in both modes; its modules are left in the modes they are in.

    Arguments and errors as of :func:`capture`.
    """
    paths, classes = leaves(model, leaf_modules)
    with modes_kept(model):
        # What does nothing in eval mode (stochastic depth) is kept whole, whatever it does in training.
        first, _ = _trace(model.eval(), paths, classes)
        identities = frozenset(first.gave_back - first.computed)
        tracer, evaluating = _trace(model, paths | identities, classes)
        _, training = _trace(model.train(), paths | identities, classes)
    return Captured(fx.GraphModule(tracer.root, evaluating, type(model).__name__), training, identities)


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Behind it every module of ``model`` is in the mode in which it was before."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _trace(model: nn.Module, paths: frozenset[str], classes: tuple[type[nn.Module], ...]) -> tuple[_Tracer, fx.Graph]:
    tracer = _Tracer(classes, paths)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise _untraceable(model, tracer.path, error) from error
    for node in graph.nodes:
        # Else the generated code would have fx wrap them for every trace to come, under a name that it cannot find.
        if node.target in SEQUENCES:
            node.meta.pop("is_wrapped", None)
    return tracer, graph


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of ``model``.

    Raises:
        ModelError: the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be deep-copied ({error}). fxquant works on a copy; make "
            "copy.deepcopy(model) work, for example by detaching tensors that the modules keep."
        ) from error


def leaves(model: nn.Module, entries: Sequence[Leaf]) -> tuple[frozenset[str], tuple[type[nn.Module], ...]]:
    """The paths and classes among ``entries``.

    Raises:
        ConfigError: one matches nothing.
    """
    if isinstance(entries, str | type) or not isinstance(entries, Iterable):
        raise ConfigError(f"leaf_modules must be a list of paths and classes, got {entries!r} alone.")
    modules = dict(model.named_modules())
    paths, classes = [], []
    for entry in entries:
        if isinstance(entry, str):
            if not entry or entry not in modules:  # the root cannot be a leaf of itself
                raise ConfigError(f"leaf_modules: no module '{entry}'. {nearest(entry, filter(None, modules))}")
            paths.append(entry)
        elif not isinstance(entry, type):
            raise ConfigError(f"leaf_modules: {entry!r} is neither a module's path nor a class.")
        elif not any(isinstance(m, entry) for m in modules.values()):
            raise ConfigError(f"leaf_modules: the model has no module of class {entry.__name__}.")
        else:
            classes.append(entry)
    return frozenset(paths), tuple(classes)


def _untraceable(model: nn.Module, path: str, error: Exception) -> CaptureError:
    line = user_line("".join(traceback.format_tb(error.__traceback__))) or inspect.getfile(type(model))
    owner = dict(model.named_modules()).get(path, model)
    whole = f"keep the module whole and in fp32: compile(..., leaf_modules=[{path!r}])"
    fixed = "give the model to a small module that fixes such arguments in its forward"
    return CaptureError(
        f"Cannot trace module '{path or '(root)'}' ({type(owner).__name__}) at {line}: {error}\n"
        "The forward must not depend on its inputs but by what it computes of tensors. Rewrite the line, or "
        f"{whole if path else fixed}."
    )
