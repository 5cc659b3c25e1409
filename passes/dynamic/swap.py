"""Float layers give way to the layers that a plan asks for."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx, nn

from ...backends.base.op import Output
from ...compiler.core.progress import progress
from ..base import PassResult
from .layer_maker import LayerMaker, MadeLayer, row_of
from .plan import LayerPlan


class SwapLayers:
    """Not exact: puts the reference form of every requested layer into the graph.

    Args:
        maker: makes the layers.
        plan: says which; what was replaced is added to it.
    """

    name = "swap"
    exact = False

    def __init__(self, maker: LayerMaker, plan: LayerPlan) -> None:
        self.maker, self.plan = maker, plan

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        count = len(self.plan.requests.keys() - self.plan.floats.keys())
        _replace(gm, self.plan, self.maker, lambda made: made.reference)
        gm.recompile()
        return PassResult(count)


def swap_in_tree(tree: nn.Module, plan: LayerPlan, maker: LayerMaker) -> nn.Module:
    """Put the compiled form of every requested layer into a module tree.

    Returns the tree: another module if the tree is a layer itself.
    """
    return _replace(tree, plan, maker, lambda made: made.compiled)


def _replace(tree: nn.Module, plan: LayerPlan, maker: LayerMaker, form: Callable[[MadeLayer], nn.Module]) -> nn.Module:
    new = {path: tree.get_submodule(path) for path in plan.requests if path not in plan.floats}
    plan.floats |= new
    # Tables last: if they share a weight with a matrix, they take its integers, which the kernel of the matrix bounds.
    ordered = sorted(new, key=lambda p: row_of(new[p]).output is Output.WEIGHT_ONLY)
    for path in progress(ordered, "replace layers", "layer", len(ordered)):
        layer, request = new[path], plan.requests[path]
        made = maker.make(layer, request, path in plan.relus)
        if isinstance(made, str):
            plan.reasons[path] = made
            del plan.requests[path], plan.floats[path]
            if path in plan.relus:
                tree.set_submodule(path, nn.Sequential(layer, nn.ReLU()))
            continue
        if made.remark:
            plan.reasons.setdefault(path, f"no scales by group: {made.remark}")
        if not path:
            return form(made)
        tree.set_submodule(path, form(made))
    return tree


class MergedPart(nn.Module):
    """The part of a merged layer that was a layer, for a forward() that calls the layers one by one.

    Args:
        whole: the merged layer.
        start, size: where the part is in the output of the merged layer.
    """

    def __init__(self, whole: nn.Module, start: int, size: int) -> None:
        super().__init__()
        self.whole, self.start, self.out_features = whole, start, size

    def forward(self, input: Tensor) -> Tensor:
        part: Tensor = self.whole(input).narrow(-1, self.start, self.out_features)
        return part.contiguous()
