"""Layers with int8 or fp16 weights that take and return fp32: the base of what runs them, and the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...compiler.core.qparams import affine_qparams
from ...compiler.core.tensors import total_bytes
from ...compiler.numerics.quantize import round_trip, round_trip_rows
from .dynamic_spec import DynamicSpec
from .windows import is_pointwise


class DynamicLayer(nn.Module):
    """Takes the place of a float layer: the same forward(), on int8 or fp16 weights.

    It has the plain attributes of the float layer (``in_features``, ``hidden_size``, ...), which a forward() may read.

    Args:
        spec: what the layer is.
        kernel: the name of what runs it, for the report.
    """

    def __init__(self, spec: DynamicSpec, kernel: str) -> None:
        super().__init__()
        for name, value in vars(spec.layer).items():
            if not name.startswith("_") and isinstance(value, int | float | str | tuple | None):
                setattr(self, name, value)
        self.training = False
        # Empty, but many a forward() asks next(self.parameters()) for its dtype and device.
        self.like = nn.Parameter(torch.empty(0), requires_grad=False)
        self.kernel = kernel
        self.dtype, self.relu = spec.dtype, spec.relu
        self.is_half = spec.dtype == torch.float16  # TorchScript compares no dtypes
        self.weight_bytes = spec.bytes

    def extra_repr(self) -> str:
        return self.kernel

    def release(self) -> None:
        """Free what calls have built; the next call builds it again."""

    def unpacked(self, name: str) -> Tensor | None:
        """``weight`` or ``bias`` in fp32, as rounded.

        Raises:
            AttributeError: this kind of layer cannot unpack it.
        """
        raise AttributeError(f"'{type(self).__name__}' has no '{name}': its weights are packed")

    def __getattr__(self, name: str) -> Any:
        # Not a property: TorchScript would read it. Unpacked at each use, for a forward() that reads layer.weight.
        return self.unpacked(name) if name in ("weight", "bias") else super().__getattr__(name)


def spec_of(module: Any) -> DynamicSpec | None:
    """The specification of a dynamic layer; None: the module is none, or keeps only what it was packed to."""
    (spec,) = getattr(module, "spec", (None,)) if isinstance(module, DynamicLayer) else (None,)
    return spec


class ReferenceLayer(DynamicLayer):
    """A specification run in plain torch ops. This is how the frozen program holds a dynamic layer.

    Int8 weights: the input of a linear layer is rounded with a scale and a zero point for each row, that of a
    convolution for each pixel (windows of one pixel) or batch index, that of other layers with one for all. Kernels may
    round it otherwise: x86 takes one range for all rows, llvm takes one for each row of a recurrent layer and of its
    states.
    """

    def __init__(self, spec: DynamicSpec) -> None:
        super().__init__(spec, "plain torch ops")
        self.spec = [spec]  # in a list: the float layer in it is not a submodule

    def forward(self, input: Any, *rest: Any, **options: Any) -> Any:
        (spec,) = self.spec
        if isinstance(input, PackedSequence):
            input = input._replace(data=self._rounded(input.data))
        else:
            input = self._rounded(input)
        return spec.run(input, *rest, **options)

    def unpacked(self, name: str) -> Tensor | None:
        (spec,) = self.spec
        if name == "bias":
            return spec.vector("bias")
        weight = spec.weights["weight"]
        return weight.float() if isinstance(weight, Tensor) else weight.dequantized()

    def _rounded(self, x: Tensor) -> Tensor:
        if not x.is_floating_point() or self.dtype != torch.int8 or not x.numel():
            return x
        (spec,) = self.spec
        if spec.op == "linear":
            return round_trip_rows(x)
        if spec.op in ("conv1d", "conv2d", "conv3d"):
            axes = len(spec.layer.kernel_size)  # type: ignore[arg-type]
            if is_pointwise(spec.layer):
                return round_trip_rows(x.movedim(-1 - axes, -1)).movedim(-1, -1 - axes)
            return round_trip_rows(x.flatten(-1 - axes)).view(x.shape)
        return round_trip(x, affine_qparams(float(x.min()), float(x.max())))


def module_bytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of ``module``; of dynamic layers, in their compiled form."""
    modules = set(module.modules())
    layers = {m for m in modules if isinstance(m, DynamicLayer)}
    kept = {t for m in modules - layers for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))}
    return sum(m.weight_bytes for m in layers) + total_bytes(kept)
