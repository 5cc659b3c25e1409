"""Running statistics that fit the rounded weights, without any schedule."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import QATModule, QuantConfig
from fxquant.compiler.cli.demo import InvertedResidual, accuracy, conv_bn, load_digits
from fxquant.compiler.numerics.metrics import sqnr
from fxquant.compiler.runtime.recent_batches import KEPT, LEAST, RecentBatches
from fxquant.passes.training.simulated_layer import SimulatedLayer

CONFIG = QuantConfig(weight="per_tensor_symmetric", weight_bits=3)
ITEMS = 64  # of a batch


def net() -> nn.Sequential:
    """As small networks for images are: residuals, ReLU, batch normalization."""
    body = [InvertedResidual(16, 16, 1, nn.ReLU, expansion=6), InvertedResidual(16, 24, 2, nn.ReLU, expansion=6)]
    return nn.Sequential(*conv_bn(1, 16, 3), nn.ReLU(), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


def trained(model: nn.Module, epochs: int, rate: float, seed: int) -> nn.Module:
    """An ordinary loop."""
    pictures, labels = load_digits().train
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    model.train()
    torch.manual_seed(seed)
    for _ in range(epochs):
        for part in torch.randperm(len(labels)).split(ITEMS):
            optimizer.zero_grad()
            F.cross_entropy(model(pictures[part]), labels[part]).backward()
            optimizer.step()
    return model.eval()


def prepared(model: nn.Module, config: QuantConfig = CONFIG) -> QATModule:
    calibration = list(load_digits().train[0][:512].split(ITEMS))
    return fxquant.prepare(model, scheme="qat", calibration=calibration, config=config)


def layers_with_norms(q: QATModule) -> list[SimulatedLayer]:
    return [m for m in q.training_graph.modules() if isinstance(m, SimulatedLayer) and m.norm is not None]


@torch.no_grad()
@pytest.mark.parametrize("config", [CONFIG, QuantConfig()], ids=["3 bits", "8 bits"])
def test_statistics_are_those_of_the_rounded_layers(config: QuantConfig) -> None:
    """The mean exactly. The variance, too, where few weights are rounded otherwise when it changes: with 8 bits."""
    torch.manual_seed(0)
    with torch.enable_grad():
        q = prepared(net(), config)
    seen: list[Tensor] = []
    with torch.enable_grad():
        for x in load_digits().train[0][: 4 * ITEMS].split(ITEMS):
            q.train()(x)
            seen.append(x)
    before = copy.deepcopy(q.state_dict())
    q.eval()
    given: dict[SimulatedLayer, list[Tensor]] = {}
    for layer in layers_with_norms(q):
        layer.register_forward_pre_hook(lambda m, args: given.setdefault(m, []).append(args[0]))
    for x in seen:
        q(x)
    assert len(given) == 7
    for layer, inputs in given.items():
        outputs = torch.cat([layer.before_norm(x).movedim(1, 0).flatten(1) for x in inputs], 1)
        mean, variance = layer.norm.running_mean, layer.norm.running_var
        assert torch.allclose(mean, outputs.mean(1), atol=1e-5 * float(outputs.abs().max()))
        if config.weight_bits == 8:
            assert (variance / outputs.var(1)).log().abs().max() < 0.02
    after = q.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k.rpartition(".")[2] for k in changed} == {"running_mean", "running_var"}
    assert len(changed) == 2 * len(given)


def check_within_a_point(seed: int, config: QuantConfig, epochs: int) -> None:
    torch.manual_seed(seed)
    digits = load_digits()
    model = trained(net(), 20, 2e-3, seed)
    q = trained(prepared(model, config), epochs, 1e-3, seed + 100)
    exact = accuracy(model, *digits.test)
    assert exact > 97
    assert accuracy(fxquant.convert(q), *digits.test) > exact - 1  # type: ignore[arg-type]


def test_a_channel_that_is_rounded_to_zero() -> None:
    """Its variance is zero: with a gain to match, it would set the scale of all others."""
    torch.manual_seed(0)
    model = nn.Sequential(*conv_bn(1, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    conv, norm = model[0], model[1]
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    conv.weight.data[3] *= 1e-3
    norm.running_var[3] *= 1e-2
    q, x = prepared(model), load_digits().train[0][: 8 * ITEMS]
    for part in x.split(ITEMS):
        q.train()(part)
    (layer,) = layers_with_norms(q.eval())
    spread = layer.before_norm(x).movedim(1, 0).flatten(1).var(1)
    assert spread[3] == 0 and float(layer.norm.running_var[3]) > 1e-3
    assert (spread > 0).sum() > 10


@torch.no_grad()
def test_eval_mode_is_near_to_training_mode() -> None:
    """Of a layer whose statistics have changed since they were averaged, by a factor of three."""
    torch.manual_seed(0)
    q, x = prepared(net()), load_digits().train[0][: 8 * ITEMS]
    with torch.enable_grad():
        for factor in (3.0, 1.0):
            for part in x.split(ITEMS):
                q.train()(factor * part)
    expected = q(x)
    lagging = copy.deepcopy(q)
    lagging._recent.clear()
    assert sqnr([expected], [q.eval()(x)]) > sqnr([expected], [lagging.eval()(x)]) + 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("weight", ["per_tensor_symmetric", "per_channel_symmetric"])
def test_all_seeds_and_bits(seed: int, bits: int, weight: Any) -> None:
    check_within_a_point(seed, QuantConfig(weight=weight, weight_bits=bits), 10)


def test_convert_in_training_mode_is_the_same() -> None:
    torch.manual_seed(0)
    q = prepared(net())
    for x in load_digits().train[0][: 4 * ITEMS].split(ITEMS):
        q.train()(x).sum().backward()
    x, statistics = load_digits().test[0][:50], copy.deepcopy(q.float_state_dict())
    first = fxquant.convert(q)(x)
    assert all(torch.equal(v, statistics[k]) for k, v in q.float_state_dict().items())  # convert() changes nothing
    assert torch.equal(first, fxquant.convert(q.eval())(x))


@pytest.mark.parametrize("how", ["frozen", "in eval mode", "no momentum", "few items", "a checkpoint", "no gradients"])
def test_statistics_that_stay(how: str) -> None:
    torch.manual_seed(0)
    q = prepared(net()).train()
    norms = [m for m in q.modules() if isinstance(m, nn.BatchNorm2d)]
    if how == "frozen":
        q.freeze_batchnorm()
    for norm in norms:
        norm.train(how != "in eval mode")
        norm.momentum = 0.0 if how == "no momentum" else norm.momentum
    count = 1 if how == "few items" else 4
    with torch.set_grad_enabled(how != "no gradients"):
        for x in load_digits().train[0][: count * ITEMS].split(ITEMS):
            q(x)
    if how == "a checkpoint":
        q.load_state_dict(copy.deepcopy(q.state_dict()))
    before = copy.deepcopy(q.float_state_dict())
    assert all(torch.equal(v, before[k]) for k, v in q.eval().float_state_dict().items())


class Shared(nn.Module):
    """One normalization after two layers, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 8, 3)
        self.norm, self.own = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.last(torch.relu(self.norm(self.first(x))) + torch.relu(self.norm(self.second(x))))).mean(
            (2, 3)
        )


def test_a_shared_normalization_stays() -> None:
    q = prepared(Shared()).train()
    for x in load_digits().train[0][: 4 * ITEMS].split(ITEMS):
        q(x)
    before = copy.deepcopy(q.float_state_dict())
    changed = {k for k, v in q.eval().float_state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"own.running_mean", "own.running_var"}


def test_a_step_that_fails_is_not_remembered() -> None:
    q, x = prepared(net()).train(), load_digits().train[0][:ITEMS]
    for _ in range(3):
        q(x)
    with pytest.raises(RuntimeError):
        q(x[:, :, :, :1].expand(-1, 5, -1, -1))
    assert q._recent.items == 3 * ITEMS
    assert torch.isfinite(q.eval()(x)).all()


def test_nothing_is_half_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    q = prepared(net()).train()
    for x in load_digits().train[0][: 4 * ITEMS].split(ITEMS):
        q(x)
    before, calls = copy.deepcopy(q.float_state_dict()), iter(range(100))
    exact = SimulatedLayer.before_norm

    def failing(self: SimulatedLayer, x: Tensor) -> Tensor:
        if next(calls) == 20:
            raise MemoryError
        return exact(self, x)

    monkeypatch.setattr(SimulatedLayer, "before_norm", failing)
    with pytest.raises(MemoryError):
        q.eval()
    assert all(torch.equal(v, before[k]) for k, v in q.float_state_dict().items())


def test_a_model_without_normalizations_keeps_no_batches() -> None:
    q = prepared(nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))).train()
    q(load_digits().train[0][:ITEMS])
    assert q._recent.items == 0


def test_which_batches_are_kept() -> None:
    norm: nn.Module = nn.BatchNorm2d(2)
    kept = RecentBatches(10**6)
    for number in range(20):
        kept.add(((torch.full((100, 2), float(number)),), {}), [norm])
    batches, norms = kept.taken()
    assert [int(args[0][0, 0]) for args, _ in batches] == list(range(20 - -(-KEPT // 100), 20)) and norms == {norm}
    assert kept.taken() == ([], set())
    kept.add(((torch.zeros(LEAST - 1, 2),), {}), [norm])
    assert kept.taken()[0] == []
    few = RecentBatches(10)  # as many as memory takes
    for _ in range(5):
        few.add(((torch.zeros(4, 2),), {}), [norm])
    assert few.items == 12 and len(few.taken()[0]) == 3
