r"""Fold batch normalization into the convolution or linear layer before it.

With :math:`y = \gamma (W x + b - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta` and
:math:`g = \gamma / \sqrt{\sigma^2 + \epsilon}`: :math:`W' = g W`, :math:`b' = g (b - \mu) + \beta`, with ``g``
along the output channels (Jacob et al. 2018, arXiv:1712.05877, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn

from ...backends.base.op import OpRow, Output
from ...backends.ops.table import OPS
from ...compiler.execution.user_code import is_hooked
from ..base import PassResult, finish
from ..layers.layer_weight import output_channels, rescale, shift
from ..layers.sharing import Sharing


class FoldBatchNorm:
    """Exact. Refuses if the output of the layer has other readers, or the layer is called more than once.

    Args:
        detached: for training, which needs the statistics of its batches: nothing is folded, the normalization leaves
            the graph, and is put here by the path of the layer. Then the pass is not exact.
        is_matrix: whether the output of a linear layer is (N, C), which only an example can show. Else the
            normalization is along another axis, and not folded.

    Attributes:
        linears: linear layers that were folded.
        left: linear layers that were not, because ``is_matrix`` says so.
    """

    name = "fold_batchnorm"

    def __init__(
        self, detached: dict[str, nn.Module] | None = None, is_matrix: Callable[[fx.Node], bool] = lambda node: True
    ) -> None:
        self.is_matrix = is_matrix
        self.detached, self.exact = detached, detached is None
        self.linears: list[fx.Node] = []
        self.left: list[fx.Node] = []

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        modules = dict(gm.named_modules())
        sharing = Sharing(gm)
        count, refusals = 0, {}
        for bn in list(gm.graph.nodes):
            row = OPS.of(bn, modules)
            if bn.op != "call_module" or row is None or not row.batch_norm:
                continue
            layer = bn.args[0]
            layer_row = OPS.of(layer, modules) if layer.op == "call_module" else None
            if layer_row is None or not layer_row.weighted or layer_row.output is Output.WEIGHT_ONLY:
                refusals[bn] = f"not folded: the op before it, '{layer.name}', is no convolution or linear layer"
                continue
            shared = sharing.reason(modules[str(layer.target)], str(layer.target))
            reason = self._refusal(layer, modules[str(layer.target)], modules[str(bn.target)], shared)
            if modules[str(bn.target)].num_features != output_channels(modules[str(layer.target)], layer_row):
                reason = f"not folded: it normalizes another axis than the channels of '{layer.name}'"
            if layer_row.channels_last and not self.is_matrix(layer):
                reason = f"not folded: '{layer.name}' gives no matrix, whose axis 1 it would normalize"
                self.left.append(layer)
            if self.detached is not None and str(layer.target) in self.detached:
                reason = f"not folded: '{layer.name}' has a normalization already"
            if reason:
                refusals[bn] = reason
                continue
            if self.detached is None:
                fold(modules[str(layer.target)], modules[str(bn.target)], layer_row)
            else:
                self.detached[str(layer.target)] = modules[str(bn.target)]
            self.linears += [layer] if layer_row.channels_last else []
            bn.replace_all_uses_with(layer)
            gm.graph.erase_node(bn)
            count += 1
        finish(gm)
        return PassResult(count, refusals)

    @staticmethod
    def _refusal(layer: fx.Node, module: nn.Module, bn: nn.Module, shared: str | None) -> str | None:
        if len(layer.users) > 1:
            return f"not folded: '{layer.name}' has {len(layer.users)} readers"
        if shared:
            return f"not folded: {shared}"
        if any(map(is_hooked, (module, bn))):
            return "not folded: it or the layer before it has forward hooks"
        if getattr(bn, "running_mean", None) is None:
            return "not folded: it keeps no running statistics"
        return None


@torch.no_grad()
def fold(layer: nn.Module, bn: nn.Module, row: OpRow) -> None:
    """Change ``layer`` so that it includes ``bn`` after it, with running statistics."""
    mean, var = bn.running_mean, bn.running_var
    assert isinstance(mean, torch.Tensor) and isinstance(var, torch.Tensor)
    # In double: with a tiny variance fp32 would lose digits.
    gain = torch.rsqrt(var.double() + float(bn.eps))  # type: ignore[arg-type]
    if isinstance(bn.weight, torch.Tensor):
        gain = gain * bn.weight.double()
    offset = -mean.double() * gain
    if isinstance(bn.bias, torch.Tensor):
        offset = offset + bn.bias.double()
    rescale(layer, row, outputs=gain)
    shift(layer, offset)
