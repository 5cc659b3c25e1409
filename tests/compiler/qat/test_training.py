"""Training with fake-quants: gradients, schedules, copies, precision."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

import fxquant
from fxquant import QATModule, QuantConfig

from ..toys import data, images, small, sqnr
from .ddp_worker import train
from .toys import optimizer_of, prepared, step


@pytest.mark.parametrize("scales", ["moving_average", "learned"])
@pytest.mark.parametrize("weight", ["per_channel_symmetric", "per_tensor_affine"])
def test_training_lowers_the_loss_and_int8_keeps_it(scales: Any, weight: Any) -> None:
    q = prepared(config=QuantConfig(weight=weight, weight_bits=4, scales=scales), backend="x86").train()
    optimizer = optimizer_of(q)
    losses = [step(q, optimizer, seed=0) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    done = fxquant.convert(q)
    x = images(4)
    assert sqnr(q.eval()(x), done(x)) > 30
    assert "no layer differs by more than one quantization step" in str(done)


def test_every_parameter_gets_a_gradient() -> None:
    q = prepared(config=QuantConfig(scales="learned")).train()
    q(images()).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in q.parameters())
    assert any("theta" in n for n, _ in q.named_parameters())


def test_resuming_in_the_middle_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def begin() -> tuple[QATModule, torch.optim.Optimizer]:
        q = prepared(small(), config=QuantConfig(scales="learned")).train()
        return q, optimizer_of(q)

    q, optimizer = begin()
    q.freeze_observers(after=0.5, steps=8)
    q.freeze_batchnorm(after=0.75, steps=8)
    for number in range(5):
        step(q, optimizer, number)
    torch.save({"model": q.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "at5.pt")
    resumed, its_optimizer = begin()
    saved = torch.load(tmp_path / "at5.pt")
    resumed.load_state_dict(saved["model"])
    its_optimizer.load_state_dict(saved["optimizer"])
    for number in range(5, 8):
        assert step(q, optimizer, number) == step(resumed, its_optimizer, number)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in q.state_dict().items())


def test_a_copy_trains_by_itself_and_converts_to_the_same() -> None:
    q = prepared().train()
    step(q, optimizer_of(q))
    twin = copy.deepcopy(q)
    x = images()
    assert torch.equal(fxquant.convert(twin)(x), fxquant.convert(q)(x))
    before = copy.deepcopy(q.state_dict())
    step(twin, optimizer_of(twin))
    assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())
    assert not torch.equal(twin.state_dict()["stem.weight"], before["stem.weight"])
    inside = copy.deepcopy(nn.ModuleDict({"net": q}))["net"]
    assert torch.equal(inside.eval()(x), q.eval()(x))


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_is_in_the_mode_of_the_original(training: bool) -> None:
    q = prepared().train(not training)
    q(images())
    twin = copy.deepcopy(q.train(training))
    assert all(m.training is training for m in twin.modules())


def test_a_copy_is_made_of_modules_that_keep_their_last_output() -> None:
    class Keeps(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            self.last = super().forward(input)
            return self.last

    q = prepared(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Keeps(8, 8, 1), nn.Conv2d(8, 4, 1))).train()
    q(images()).sum().backward()
    x = images()
    assert sqnr(q.eval()(x), fxquant.convert(q)(x)) > 60


def test_converting_does_not_end_training() -> None:
    q = prepared().train()
    optimizer = optimizer_of(q)
    before = copy.deepcopy(q.state_dict())
    fxquant.convert(q)
    assert q.training and all(torch.equal(v, before[k]) for k, v in q.state_dict().items())
    step(q, optimizer)
    fxquant.convert(q)


def test_observers_freeze_at_their_step() -> None:
    q = prepared().train()
    optimizer = optimizer_of(q)
    q.freeze_observers(after=0.5, steps=4)
    ranges = lambda: [v.clone() for k, v in q.state_dict().items() if k.endswith("range")]  # noqa: E731
    seen = []
    for number in range(4):
        step(q, optimizer, number)
        seen.append(ranges())
    same = [all(map(torch.equal, a, b)) for a, b in itertools.pairwise(seen)]
    assert same == [False, True, True]


def test_both_schedules_count_the_same_steps() -> None:
    q = prepared().train()
    optimizer = optimizer_of(q)
    q.freeze_observers(after=0.5, steps=4)
    q.freeze_batchnorm(after=0.5, steps=4)
    frozen = []
    for number in range(4):
        before = q.state_dict()["bn.running_mean"].clone()
        step(q, optimizer, number)
        frozen.append((bool(q.fake_quants.observers_frozen), torch.equal(q.state_dict()["bn.running_mean"], before)))
    assert frozen == [(False, False), (False, False), (True, True), (True, True)]


def test_a_checkpoint_from_before_the_freeze_thaws() -> None:
    q = prepared().train()
    before = copy.deepcopy(q.state_dict())
    q.freeze_observers()
    q.freeze_batchnorm()
    q(images())
    q.load_state_dict(before)
    q(images())
    assert not torch.equal(q.state_dict()["bn.running_mean"], before["bn.running_mean"])
    assert not torch.equal(q.state_dict()["fake_quants.act_observer.range"], before["fake_quants.act_observer.range"])


def test_batchnorm_freezes_at_its_step_and_survives_train() -> None:
    q = prepared().train()
    optimizer = optimizer_of(q)
    step(q, optimizer)
    q.freeze_batchnorm()
    before = q.state_dict()["bn.running_mean"].clone()
    weight = q.state_dict()["bn.weight"].clone()
    q.eval().train()
    step(q, optimizer)
    assert torch.equal(q.state_dict()["bn.running_mean"], before)
    assert not torch.equal(q.state_dict()["bn.weight"], weight), "its weight goes on training"


def test_with_everything_frozen_training_mode_computes_what_int8_will() -> None:
    q = prepared().train()
    step(q, optimizer_of(q))
    q.freeze_observers()
    q.freeze_batchnorm()
    x = images()
    assert torch.equal(q.train()(x), q.eval()(x))


def test_autocast_trains() -> None:
    q = prepared(config=QuantConfig(scales="learned")).train()
    optimizer = optimizer_of(q)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [step(q, optimizer) for _ in range(20)]
    assert losses[-1] < losses[0] / 2
    assert all(p.dtype == torch.float32 for p in q.parameters())
    x = images()
    assert sqnr(q.eval()(x), fxquant.convert(q)(x)) > 30


@pytest.mark.parametrize("scheme", ["static", "dynamic", "qat"])
def test_autocast_around_a_compilation_changes_nothing(scheme: Any) -> None:
    model, options = small(), {} if scheme == "dynamic" else {"calibration": data()}
    if scheme == "qat":
        options["train"] = lambda q: None  # type: ignore[assignment]
    plain = fxquant.compile(model, scheme=scheme, **options)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        inside = fxquant.compile(model, scheme=scheme, **options)  # type: ignore[arg-type]
    x = images()
    assert sqnr(plain(x), inside(x)) > 40


def test_it_prints_how_far_it_is() -> None:
    q = prepared().train()
    step(q, optimizer_of(q))
    assert "step 1" in repr(q) and "frozen" not in repr(q)
    q.freeze_observers()
    q.freeze_batchnorm()
    assert "step 1, scales frozen, statistics frozen" in repr(q)
    assert "integers -127 to 127" in repr(q)


@pytest.mark.parametrize("scales", ["moving_average", "learned"])
def test_ranks_agree_under_distributed_data_parallel(scales: Any, tmp_path: Path) -> None:
    spawn(train, (2, str(tmp_path), scales), nprocs=2)
    states = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    # As under DistributedDataParallel ever, running statistics agree only from the next forward on.
    keys = [k for k in states[0] if "running" not in k]
    assert sum(k.startswith("fake_quants.") for k in keys) > 8
    assert [k for k in keys if not torch.equal(states[0][k], states[1][k])] == []
