"""Architectures of `transformers` that branch on values or use NumPy, and the test models of torch's quantization."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.testing._internal import common_quantization as torch_models

from .coverage_models import TOKENS, Call, Make, decoder, encoder, text

BRANCHING: dict[str, Make] = {
    "Mixtral": decoder("MixtralModel", num_key_value_heads=2, num_local_experts=4),
    "Qwen2 MoE": decoder("Qwen2MoeModel", num_key_value_heads=2, num_experts=4, moe_intermediate_size=64),
    "Switch encoder": text(
        "SwitchTransformersEncoderModel",
        TOKENS | {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4, "num_experts": 4},
        masked=True,
    ),
    "Longformer": encoder("LongformerModel", attention_window=16),
    "XLNet": text("XLNetModel", TOKENS | {"d_model": 128, "n_layer": 2, "n_head": 4, "d_inner": 256}),
    "Funnel": text("FunnelModel", TOKENS | {"block_sizes": [1, 1], "d_model": 128, "n_head": 4, "d_head": 32}, True),
    "CANINE": encoder("CanineModel", num_hash_buckets=64),
    "Nystromformer": encoder("NystromformerModel", num_landmarks=8, segment_means_seq_len=48),
    "DeBERTa": encoder("DebertaModel", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "XLM": text("XLMModel", {"vocab_size": 200, "emb_dim": 128, "n_layers": 2, "n_heads": 4}),
    "Perceiver": lambda: _perceiver(),
}


def _perceiver() -> tuple[nn.Module, Call]:
    import transformers as hf

    config = hf.PerceiverConfig(d_model=64, d_latents=64, num_latents=16, num_self_attends_per_block=1,
                                num_self_attention_heads=4, num_cross_attention_heads=4)  # fmt: skip
    return hf.PerceiverModel(config), {"inputs": torch.randn(4, 48, 64)}


def _of_torch(kind: type[nn.Module]) -> Make:
    def make() -> tuple[nn.Module, Call]:
        model: Any = kind()
        names = list(inspect.signature(model.forward).parameters)
        return model, dict(zip(names, model.get_example_inputs(), strict=False))

    return make


def _has_example(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "get_example_inputs")


# Small modules with one pattern each: those that take no arguments and have an example.
TORCH: dict[str, Make] = {
    f"torch {name}": _of_torch(kind)
    for name, kind in sorted(vars(torch_models).items())
    if _has_example(kind) and not inspect.signature(kind).parameters and "Quant" not in name and "QAT" not in name
}
