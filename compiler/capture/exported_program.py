"""A ``torch.export.ExportedProgram`` as the model: its graph over its own parameters, in the spelling of users."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..core.errors import ModelError
from .export import Converter


def opened(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """A module that computes what ``program`` computes, with copies of its parameters.

    It holds for the sizes that the program was exported for.

    Raises:
        ModelError: the program changes a buffer or an input, or has no example inputs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own code
        plain: Any = program.run_decompositions({})
    changed = [spec.target for spec in plain.graph_signature.output_specs if "MUTATION" in spec.kind.name]
    if changed:
        raise ModelError(f"The exported program changes '{changed[0]}'. Export a model that keeps no state.")
    if plain.example_inputs is None:
        raise ModelError("The exported program has no example inputs. Compile the model that it was exported from.")
    gm = Converter(plain, _owner(plain), _inputs(plain)).converted()
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    output.args = (pytree.tree_unflatten(list(output.args[0]), plain.call_spec.out_spec),)
    gm.recompile()
    return gm.eval()


def _inputs(program: Any) -> dict[str, Any]:
    """The example inputs by name."""
    args, kwargs = program.example_inputs
    names, found = iter(program.graph_signature.user_inputs), dict[str, Any]()
    for i, value in enumerate(args):
        first, *_ = [next(names) for _ in pytree.tree_leaves(value)] or [""]
        found[first if isinstance(value, Tensor) else f"args_{i}"] = value
    return found | kwargs


def _owner(program: Any) -> nn.Module:
    """A module with the parameters and buffers of ``program`` at their paths."""
    root = nn.Module()
    for path, value in program.state_dict.items():
        owner, _, name = path.rpartition(".")
        place: Any = root
        for part in filter(None, owner.split(".")):
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place._modules[part]
        if isinstance(value, nn.Parameter):
            place.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
        else:
            place.register_buffer(name, value.clone())
    return root
