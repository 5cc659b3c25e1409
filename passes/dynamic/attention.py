"""``nn.MultiheadAttention`` gives way to an attention with linear projections, which can be quantized."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from .projected_attention import ProjectedAttention


def project_attentions(
    tree: nn.Module, chosen: Callable[[str], bool] = lambda path: True
) -> tuple[nn.Module, dict[str, str]]:
    """Replace every ``nn.MultiheadAttention`` at a path that is ``chosen``.

    Returns the tree (another module if the tree is an attention itself), and why attentions were left, by path.
    """
    refusals: dict[str, str] = {}
    done: dict[nn.Module, nn.Module] = {}
    own = _self_attentions(tree)
    for encoder in tree.modules():
        if isinstance(encoder, nn.TransformerEncoder):
            encoder.use_nested_tensor = False  # it needs the fused fp32 path
    for path, module in list(tree.named_modules(remove_duplicate=False)):
        if type(module) is not nn.MultiheadAttention or not chosen(path):
            continue
        reason = _refusal(module)
        if reason:
            refusals[path] = f"left whole: {reason}"
            continue
        if module not in done:
            done[module] = ProjectedAttention(module, module in own)
        if not path:
            return done[module], refusals
        tree.set_submodule(path, done[module])
    return tree, refusals


def _self_attentions(tree: nn.Module) -> set[nn.Module]:
    """Attentions that read one tensor: those of torch's own layers, and those for which the graph shows it."""
    layers = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    own: set[nn.Module] = {m.self_attn for m in tree.modules() if isinstance(m, layers)}
    calls: dict[nn.Module, list[bool]] = {}
    for node in tree.graph.nodes if isinstance(tree, fx.GraphModule) else ():
        if node.op == "call_module" and isinstance(m := tree.get_submodule(str(node.target)), nn.MultiheadAttention):
            inputs = [*node.args, *(node.kwargs[n] for n in ("query", "key", "value") if n in node.kwargs)][:3]
            calls.setdefault(m, []).append(len(set(inputs)) == 1)
    return own | {m for m, alike in calls.items() if all(alike)}


def _refusal(attention: nn.MultiheadAttention) -> str | None:
    """Why an attention cannot be replaced."""
    if attention.bias_k is not None or attention.bias_v is not None:
        return "add_bias_kv appends to keys and values"
    return "add_zero_attn appends to keys and values" if attention.add_zero_attn else None
