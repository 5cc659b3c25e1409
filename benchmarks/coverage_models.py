"""Architectures that others wrote, with small random configurations: Hugging Face `transformers` and torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

Call = dict[str, Any]  # arguments of forward() by name
Make = Callable[[], tuple[nn.Module, Call]]

BATCH, LENGTH, VOCABULARY = 4, 48, 200
TRANSFORMER = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
}  # fmt: skip
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = TRANSFORMER | TOKENS
SEQUENCES = {
    "d_model": 128, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 256, "decoder_layers": 2,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 256,
}  # fmt: skip
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}


def _built(name: str, config: Call) -> nn.Module:
    cls = getattr(hf, name)
    model: nn.Module = cls(cls.config_class(**config))
    return model


def text(name: str, config: Call, masked: bool = False, **given: Any) -> Make:
    def make() -> tuple[nn.Module, Call]:
        ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH))
        mask = {"attention_mask": torch.ones_like(ids)} if masked else {}
        return _built(name, config), {"input_ids": ids, **mask, **given}

    return make


def decoder(name: str, **config: Any) -> Make:
    return text(name, TEXT | config, use_cache=False)


def encoder(name: str, **config: Any) -> Make:
    return text(name, TEXT | config, masked=True)


def image(name: str, size: int, **config: Any) -> Make:
    return lambda: (_built(name, config), {"pixel_values": torch.randn(BATCH, 3, size, size)})


def patches(name: str, **config: Any) -> Make:
    return image(name, 64, **TRANSFORMER, **{"image_size": 64, "patch_size": 16} | config)


def audio(name: str, input_name: str, shape: tuple[int, ...], config: Call, part: str = "") -> Make:
    def make() -> tuple[nn.Module, Call]:
        model = _built(name, config)
        return model.get_submodule(part) if part else model, {input_name: torch.randn(BATCH, *shape)}

    return make


def clip() -> tuple[nn.Module, Call]:
    """Two encoders, of texts and images."""
    config = hf.CLIPConfig(
        text_config=TEXT | {"max_position_embeddings": LENGTH}, projection_dim=64,
        vision_config=TRANSFORMER | {"image_size": 64, "patch_size": 16},
    )  # fmt: skip
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH))
    return hf.CLIPModel(config), {"input_ids": ids, "pixel_values": torch.randn(BATCH, 3, 64, 64)}


SPEECH = {
    "num_feat_extract_layers": 2, "conv_dim": (64, 64), "conv_kernel": (10, 3), "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip

HUGGING_FACE: dict[str, Make] = {
    # encoders of text
    "BERT": encoder("BertModel"),
    "DistilBERT": text("DistilBertModel", TOKENS | {"dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 256}, True),
    "RoBERTa": encoder("RobertaModel"),
    "ALBERT": encoder("AlbertModel", embedding_size=64),
    "ELECTRA": encoder("ElectraModel", embedding_size=64),
    "MPNet": encoder("MPNetModel"),
    "DeBERTa-v2": encoder("DebertaV2Model"),
    "ConvBERT": encoder("ConvBertModel"),
    "SqueezeBERT": encoder("SqueezeBertModel", embedding_size=128),
    "MobileBERT": encoder("MobileBertModel", embedding_size=64),
    "LayoutLM": encoder("LayoutLMModel"),
    "RemBERT": encoder("RemBertModel", input_embedding_size=64),
    "RoFormer": encoder("RoFormerModel", embedding_size=128),
    "FNet": text("FNetModel", TEXT),
    "XLM-RoBERTa": encoder("XLMRobertaModel"),
    "ModernBERT": encoder("ModernBertModel", cls_token_id=1, sep_token_id=2),
    "T5 encoder": text(
        "T5EncoderModel", TOKENS | {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4}, True,
    ),
    "BART": text(
        "BartModel",
        TOKENS | SEQUENCES,
        use_cache=False,
    ),
    # decoders of text
    "GPT-2": text("GPT2Model", TOKENS | {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64}, use_cache=False),
    "GPT-Neo": text(
        "GPTNeoModel",
        TOKENS | {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        use_cache=False,
    ),
    "GPT-NeoX": decoder("GPTNeoXModel"),
    "GPT-J": text("GPTJModel", TOKENS | {"n_embd": 128, "n_layer": 2, "n_head": 4, "rotary_dim": 16}, use_cache=False),
    "OPT": decoder("OPTModel", ffn_dim=256, word_embed_proj_dim=128, max_position_embeddings=64),
    "Llama": decoder("LlamaModel", num_key_value_heads=2),
    "Mistral": decoder("MistralModel", num_key_value_heads=2),
    "Qwen2": decoder("Qwen2Model", num_key_value_heads=2),
    "Qwen3": decoder("Qwen3Model", num_key_value_heads=2, head_dim=32),
    "Phi": decoder("PhiModel"),
    "Phi-3": decoder("Phi3Model"),
    "Gemma": decoder("GemmaModel", num_key_value_heads=2, head_dim=32),
    "Gemma 2": decoder("Gemma2Model", num_key_value_heads=2, head_dim=32),
    "BLOOM": text("BloomModel", TOKENS | {"hidden_size": 128, "n_layer": 2, "n_head": 4}, use_cache=False),
    "Falcon": decoder("FalconModel"),
    "StableLM": decoder("StableLmModel", num_key_value_heads=4),
    "Mamba": text("MambaModel", TOKENS | {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, use_cache=False),
    # images
    "ViT": patches("ViTModel"),
    "DeiT": patches("DeiTModel"),
    "BEiT": patches("BeitModel"),
    "DINOv2": patches("Dinov2Model"),
    "CLIP vision": patches("CLIPVisionModel"),
    "SigLIP vision": patches("SiglipVisionModel"),
    "ViT-MSN": patches("ViTMSNModel"),
    "YOLOS": patches("YolosModel", image_size=[64, 64], num_detection_tokens=5),
    "BLIP vision": patches("BlipVisionModel"),
    "Swin": image("SwinModel", 64, embed_dim=32, depths=[2, 2], num_heads=[2, 4], image_size=64, window_size=4),
    "Swinv2": image("Swinv2Model", 64, embed_dim=32, depths=[2, 2], num_heads=[2, 4], image_size=64, window_size=4),
    "ConvNeXt": image("ConvNextModel", 96, **STAGES),
    "ConvNeXtV2": image("ConvNextV2Model", 96, **STAGES),
    "ResNet": image("ResNetModel", 96, embedding_size=16, **STAGES),
    "RegNet": image("RegNetModel", 96, embedding_size=16, groups_width=8, **STAGES),
    "BiT": image("BitModel", 96, embedding_size=16, num_groups=4, **STAGES),
    "MobileNetV1": image("MobileNetV1Model", 96, depth_multiplier=0.5),
    "MobileNetV2": image("MobileNetV2Model", 96, depth_multiplier=0.5),
    "MobileViT": image("MobileViTModel", 64, image_size=64, hidden_sizes=[32, 48, 64], num_attention_heads=2,
                       neck_hidden_sizes=[8, 16, 24, 32, 48, 64, 80]),
    "EfficientNet": image("EfficientNetModel", 96, width_coefficient=0.5, depth_coefficient=0.3, hidden_dim=640),
    "LeViT": image("LevitModel", 64, image_size=64, hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4],
                   depths=[1, 1, 1], key_dim=[8, 8, 8]),
    "PoolFormer": image("PoolFormerModel", 96, **STAGES),
    "SegFormer": image("SegformerModel", 96, **STAGES, num_attention_heads=[1, 2, 3, 4]),
    "PVT": image("PvtModel", 64, image_size=64, **STAGES, num_attention_heads=[1, 2, 3, 4]),
    "PVTv2": image("PvtV2Model", 64, image_size=64, **STAGES, num_attention_heads=[1, 2, 3, 4]),
    "CvT": image("CvtModel", 64, embed_dim=[16, 32, 64], num_heads=[1, 2, 4], depth=[1, 2, 3]),
    "FocalNet": image("FocalNetModel", 64, image_size=64, embed_dim=32, depths=[1, 1, 2, 1]),
    "CLIP": clip,
    # sound
    "Whisper encoder": audio(
        "WhisperModel", "input_features", (80, 128),
        TOKENS | SEQUENCES | {"max_source_positions": 64, "decoder_start_token_id": 1}, "encoder",
    ),
    "Wav2Vec2": audio("Wav2Vec2Model", "input_values", (4000,), TEXT | SPEECH),
    "HuBERT": audio("HubertModel", "input_values", (4000,), TEXT | SPEECH),
    "AST": audio(
        "ASTModel", "input_values", (64, 32), TRANSFORMER | {"num_mel_bins": 32, "max_length": 64, "patch_size": 16}
    ),
    "Speech2Text encoder": audio(
        "Speech2TextModel", "input_features", (64, 80), TOKENS | SEQUENCES | {"conv_channels": 64}, "encoder"
    ),
}  # fmt: skip


def settled(model: nn.Module) -> nn.Module:
    """``model`` in eval mode, with statistics of batch normalizations that are not those of a new network."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(module.running_var, Tensor):
            assert isinstance(module.running_mean, Tensor)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.3, 1.5)
    return model.eval()
