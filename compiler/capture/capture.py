"""Capture: symbolic tracing of a copy of the model."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx, nn

from ..core.errors import CaptureError, ConfigError
from ..core.messages import nearest, user_line
from ..execution.graphs import ModelGraph
from .copies import copy_for_inference, modes_kept
from .tracer import SEQUENCES, Tracer

Leaf = str | type[nn.Module]


def capture(model: nn.Module, leaf_modules: Sequence[Leaf] = (), share_parameters: bool = False) -> fx.GraphModule:
    """Trace a copy of ``model`` in eval mode. The parameters of the copy have the names of the model's.

    Args:
        model: the float model; it is not changed.
        leaf_modules: paths or classes of modules that are kept whole, in fp32.
        share_parameters: let the graph have the parameters of ``model`` itself.

    Raises:
        CaptureError: forward() cannot be traced; names the module and the line.
        ModelError: the model cannot be copied.
        ConfigError: an entry of ``leaf_modules`` matches nothing.
    """
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise CaptureError(f"forward(*{parameter.name}) takes any number of inputs: give them names.")
        if parameter.kind is parameter.VAR_KEYWORD:
            raise CaptureError(f"forward(**{parameter.name}) takes inputs of any name, which torch.fx cannot trace.")
    work = copy_for_inference(model, share_parameters)
    tracer, graph = _trace(work, *leaves(work, leaf_modules))
    return ModelGraph(tracer.root, graph, type(model).__name__)


@dataclass(frozen=True)
class BothModes:
    """forward() traced in both modes.

    Attributes:
        module: the graph in eval mode, on the layers of the model itself.
        training: the graph in training mode.
        identities: paths of modules that return their input in eval mode; both graphs call them.
    """

    module: fx.GraphModule
    training: fx.Graph
    identities: frozenset[str]


def capture_modes(model: nn.Module, leaf_modules: Sequence[Leaf] = ()) -> BothModes:
    """Trace ``model`` itself, not a copy, in both modes. Its modules are in the same modes as before at the end.

    Arguments and errors as of :func:`capture`.
    """
    paths, classes = leaves(model, leaf_modules)
    with modes_kept(model):
        # A module that does nothing in eval mode (stochastic depth) is kept whole.
        first, _ = _trace(model.eval(), paths, classes)
        identities = frozenset(first.returned_input - first.computed)
        tracer, evaluating = _trace(model, paths | identities, classes)
        _, training = _trace(model.train(), paths | identities, classes)
    return BothModes(ModelGraph(tracer.root, evaluating, type(model).__name__), training, identities)


def _trace(model: nn.Module, paths: frozenset[str], classes: tuple[type[nn.Module], ...]) -> tuple[Tracer, fx.Graph]:
    tracer = Tracer(classes, paths)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise _untraceable(model, tracer.path, error) from error
    for node in graph.nodes:
        # Else the generated code would make fx wrap them in every later trace, under a name that it cannot find.
        if node.target in SEQUENCES:
            node.meta.pop("is_wrapped", None)
    return tracer, graph


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
    fixed = "wrap the model in a module whose forward() passes fixed values for the arguments that it branches on"
    branches = "forward() must not branch on input values. " if isinstance(error, fx.proxy.TraceError) else ""
    return CaptureError(
        f"Cannot trace module '{path or '(root)'}' ({type(owner).__name__}) at {line}: {error}\n"
        f"{branches}Rewrite the line, or {whole if path else fixed}.",
        path,
    )
