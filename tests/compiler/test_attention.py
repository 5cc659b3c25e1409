"""Attention with linear projections gives what ``nn.MultiheadAttention`` gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxquant.passes.dynamic.attention import project_attentions
from fxquant.passes.dynamic.projected_attention import ProjectedAttention


@settings(deadline=None, max_examples=150)
@given(
    own=st.booleans(),
    cross=st.sampled_from(("self", "memory", "all")),
    batch_first=st.booleans(),
    batch=st.integers(0, 3),
    bias=st.booleans(),
    widths=st.booleans(),
    padding=st.sampled_from((None, "bool", "float")),
    mask=st.sampled_from((None, "bool", "float", "per head")),
    weights=st.sampled_from((False, True, "each")),
    seed=st.integers(0, 99),
)
def test_equals_the_float_module(
    own: bool, cross: str, batch_first: bool, batch: int, bias: bool, widths: bool, padding: str | None,
    mask: str | None, weights: bool | str, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    dims: dict[str, Any] = {"kdim": 6, "vdim": 10} if widths and cross == "all" else {}
    exact = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first, **dims).eval()
    for p in exact.parameters():
        nn.init.normal_(p, std=0.5)
    ours = ProjectedAttention(exact, own and not dims)
    n, target, source = max(batch, 1), 4, 4 if cross == "self" else 5

    def tensor(length: int, dim: int = 8) -> Tensor:
        shape = (n, length, dim) if batch_first else (length, n, dim)
        return torch.randn(shape) if batch else torch.randn(length, dim)

    query = tensor(target)
    key = query if cross == "self" else tensor(source, dims.get("kdim", 8))
    value = tensor(source, dims.get("vdim", 8)) if cross == "all" else key
    options: dict[str, Any] = {"need_weights": bool(weights), "average_attn_weights": weights != "each"}
    if padding:
        dropped = torch.rand(n, source) < 0.3
        dropped[:, 0] = False
        dropped = dropped if batch else dropped[0]
        options["key_padding_mask"] = dropped if padding == "bool" else torch.where(dropped, -torch.inf, 0.0)
    if mask:
        hidden = torch.rand(2 * n, target, source) < 0.3
        hidden[..., 0] = False
        chosen = hidden if mask == "per head" else hidden[0]
        # torch warns of masks of two types, and will refuse them.
        options["attn_mask"] = torch.randn(chosen.shape) if mask == "float" or padding == "float" else chosen
        if mask == "float" and padding == "bool":
            options["key_padding_mask"] = torch.where(options["key_padding_mask"], -torch.inf, 0.0)
    with torch.no_grad():
        expected, actual = exact(query, key, value, **options), ours(query, key, value, **options)
    assert (expected[1] is None) == (actual[1] is None)
    for a, b in zip(actual, expected, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_causal_hint_needs_a_mask() -> None:
    x = torch.randn(3, 1, 8)
    with pytest.raises(RuntimeError, match="pass attn_mask"):
        ProjectedAttention(nn.MultiheadAttention(8, 2), True)(x, x, x, is_causal=True)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_what_appends_to_keys_is_left_whole(option: str) -> None:
    options: dict[str, Any] = {option: True}
    tree = nn.Sequential(nn.MultiheadAttention(8, 2, **options))
    same, refusals = project_attentions(tree)
    assert same is tree and type(tree[0]) is nn.MultiheadAttention
    assert option in refusals["0"]


def test_one_wide_projection_where_one_tensor_is_read() -> None:
    layer = nn.TransformerDecoderLayer(8, 2, 16)
    project_attentions(layer)
    own, cross = layer.self_attn, layer.multihead_attn
    assert isinstance(own, ProjectedAttention) and isinstance(cross, ProjectedAttention)
    assert [p.out_features for p in own.in_proj] == [24]
    assert [p.out_features for p in cross.in_proj] == [8, 16]


def test_a_shared_attention_stays_shared() -> None:
    attention = nn.MultiheadAttention(8, 2)
    tree = nn.ModuleList([attention, attention])
    project_attentions(tree)
    assert isinstance(tree[0], ProjectedAttention) and tree[0] is tree[1]
