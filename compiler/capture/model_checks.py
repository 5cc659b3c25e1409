"""Checks of a model before anything is done with it."""

from __future__ import annotations

import torch
from torch import fx, nn

from ..core.errors import ModelError
from ..core.markers import InTraining, Quantized
from .exported_program import opened

# By where their classes come from: torch.ao is never imported.
TORCH_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def checked_model(model: object) -> nn.Module:
    """``model``, or the module of an exported program, if it can be quantized.

    Raises:
        ModelError: not an ``nn.Module``, or TorchScript; already quantized; not on the CPU; not fp32; NaN or inf.
    """
    if isinstance(model, torch.export.ExportedProgram):
        model = opened(model)
    if isinstance(model, fx.GraphModule) and "_guards_fn" in model._modules:
        raise ModelError("The module of an ExportedProgram cannot be changed. Compile the ExportedProgram itself.")
    if not isinstance(model, nn.Module):
        raise ModelError(f"Expected an nn.Module, got {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "The model is TorchScript, which cannot be changed. Compile the nn.Module that it was made from."
        )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"'{path}' is TorchScript, which cannot be changed. Use the nn.Module it was made from.")
        if isinstance(module, InTraining):
            raise ModelError("The model is in quantization-aware training already: fxquant.convert makes it int8.")
        if isinstance(module, Quantized) or _is_quantized_by_torch(module):
            name = f"'{path}' ({type(module).__name__})" if path else type(module).__name__
            raise ModelError(f"The model is already quantized: {name}. Compile the float model.")
    check_tensors(model)
    return model


def _is_quantized_by_torch(module: nn.Module) -> bool:
    functional = "FloatFunctional" in type(module).__name__  # a float module, in spite of where it comes from
    return type(module).__module__.startswith(TORCH_QUANTIZED) and not functional


def check_tensors(model: nn.Module) -> None:
    """Refuse parameters and buffers that cannot be quantized.

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
        raise ModelError(f"'{name}' is not initialized yet; call the model once, so that it gets a shape.")
    if tensor.device.type != "cpu":
        raise ModelError(f"'{name}' is on device '{tensor.device}'; move the model to the CPU first: model.cpu().")
    if tensor.dtype.is_floating_point and tensor.dtype != torch.float32:
        raise ModelError(f"'{name}' is {tensor.dtype}; convert the model to fp32 first: model.float().")


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    if not torch.isfinite(tensor).all():
        owner, _, leaf = name.rpartition(".")
        raise ModelError(f"The {leaf} of layer '{owner or leaf}' holds NaN or inf; it cannot be quantized.")
