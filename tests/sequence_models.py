"""More models with the weights of sequences in them, for dynamic quantization."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .models import BertEncoder, ConvBNAct, ZooModel, images
from .models.decoder import GPT2Step
from .models.sequences import ViT


class GRUTagger(nn.Module):
    """Bidirectional GRU over packed sequences: int64 ids [N,T] and lengths [N] -> [N,max length,tags]."""

    def __init__(self, tags: int = 16, vocabulary: int = 4096, features: int = 128, hidden: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, features, padding_idx=0)
        self.gru = nn.GRU(features, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, tags)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        steps, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        out: Tensor = self.head(steps)
        return out


class BagClassifier(nn.Module):
    """Mean of word vectors, as fastText has it: int64 ids [N,T] -> [N,num_classes]."""

    def __init__(self, num_classes: int = 10, vocabulary: int = 20000, features: int = 64) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(vocabulary, features, mode="mean", padding_idx=0)
        self.body = nn.Sequential(nn.Linear(features, 256), nn.ReLU(), nn.Linear(256, num_classes))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.body(self.bag(ids))
        return out


class TorchEncoder(nn.Module):
    """Torch's own encoder, with a padding mask: features [N,T,dim], True where padded [N,T] -> [N,num_classes]."""

    def __init__(self, num_classes: int = 10, dim: int = 256, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x, src_key_padding_mask=padded).mean(1))
        return out


class ConvLSTM(nn.Module):
    """CRNN: columns of convolution features read by an LSTM: [N,1,32,W] -> [N,W/4,num_classes]."""

    def __init__(self, num_classes: int = 40, hidden: int = 256) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvBNAct(1, 32, 3), nn.MaxPool2d(2),
            ConvBNAct(32, 64, 3), nn.MaxPool2d(2),
            ConvBNAct(64, 64, 3), nn.MaxPool2d((2, 1)), ConvBNAct(64, 64, 3), nn.MaxPool2d((2, 1)),
        )  # fmt: skip
        self.lstm = nn.LSTM(2 * 64, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).flatten(1, 2).transpose(1, 2)
        out: Tensor = self.head(self.lstm(columns)[0])
        return out


def _tagged(batch: int) -> tuple[Tensor, Tensor]:
    lengths = torch.randint(20, 41, (batch,))
    lengths[0] = 40
    ids = torch.randint(1, 4096, (batch, 40)) * (torch.arange(40) < lengths[:, None])
    return ids, lengths


def _padded(batch: int) -> tuple[Tensor, Tensor]:
    lengths = torch.randint(32, 65, (batch, 1))
    return torch.randn(batch, 64, 256), torch.arange(64) >= lengths


_bert_base = partial(BertEncoder, dim=768, heads=12, hidden=3072, depth=12, vocabulary=30522)

SEQUENCES: dict[str, ZooModel] = {
    model.name: model
    for model in (
        ZooModel("bert_base", _bert_base, lambda n: (torch.randint(30522, (n, 128)),), "transformer"),
        ZooModel("gru_tagger", GRUTagger, _tagged, "recurrent"),
        ZooModel("bag_classifier", BagClassifier, lambda n: (torch.randint(20000, (n, 100)),), "bag"),
        ZooModel("torch_encoder", TorchEncoder, _padded, "transformer"),
        ZooModel("conv_lstm", ConvLSTM, lambda n: (images(n, 1, 128)[:, :, :32],), "recurrent"),
    )
}


def _step(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randint(8192, (batch, 1)), torch.randn(12, 2, batch, 12, 128, 64)


FURTHER_SEQUENCES: dict[str, ZooModel] = {
    model.name: model
    for model in (
        ZooModel(
            "bert_base_16", partial(_bert_base, length=16), lambda n: (torch.randint(30522, (n, 16)),), "transformer"
        ),
        ZooModel("vit", ViT, lambda n: (images(n, 3, 224),), "transformer"),
        ZooModel("gpt2_step", GPT2Step, _step, "transformer"),
    )
}
