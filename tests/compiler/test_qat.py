"""Quantization-aware training as a user does it: names, checkpoints, schedules, copies, precision, conversion."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.utils import prune

import fxquant
from fxquant import CalibrationError, ConfigError, QATModule, QuantConfig, StateError, TrainingError
from fxquant.compiler.cli.demo import accuracy, conv_bn, load_digits
from tests.models import batches, settled

from .ddp_worker import train
from .toys import Small, data, images, small, sqnr


def prepared(model: nn.Module | None = None, **options: Any) -> QATModule:
    options = {"backend": "reference", "calibration": data(), **options}
    return fxquant.prepare(model or small(), scheme="qat", **options)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 1e-3)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> float:
    """One step towards given outputs. Returns the loss."""
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), x.flatten(1)[:, :5].sigmoid())
    loss.backward()
    optimizer.step()
    return float(loss.detach())


# Names and checkpoints --------------------------------------------------------------------------------------


def test_names_of_the_model_survive() -> None:
    model = small()
    q = prepared(model)
    assert [n for n, _ in q.named_parameters()] == [n for n, _ in model.named_parameters()]
    own = [k for k in q.state_dict() if not k.startswith("fake_quants.")]
    assert own == list(model.state_dict())
    assert isinstance(q.get_submodule("stem"), nn.Conv2d) and isinstance(q.get_submodule("bn"), nn.BatchNorm2d)


@pytest.mark.parametrize("scales", ["moving_average", "learned"])
def test_checkpoints_load_both_ways(scales: Any) -> None:
    model, other = small(), small()
    q = prepared(model, config=QuantConfig(scales=scales))
    q.load_state_dict(other.state_dict())
    assert all(torch.equal(q.state_dict()[k], v) for k, v in other.state_dict().items())
    step(q.train(), optimizer_of(q))
    model.load_state_dict(q.float_state_dict())
    assert all(torch.equal(q.state_dict()[k], v) for k, v in model.state_dict().items())


def test_a_checkpoint_that_lacks_keys_is_refused_as_ever() -> None:
    state = small().state_dict()
    del state["head.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"head\.weight"'):
        prepared().load_state_dict(state)


def test_a_checkpoint_with_other_bits_is_refused() -> None:
    q = prepared(config=QuantConfig(weight_bits=4))
    match = "weight of 'stem' has integers from -1 to 1, but this module was prepared for -7 to 7"
    with pytest.raises(RuntimeError, match=match):
        q.load_state_dict(prepared(config=QuantConfig(weight_bits=2)).state_dict())


def test_the_model_stays_as_it_was() -> None:
    model = small().train()
    before = copy.deepcopy(model.state_dict())
    q = prepared(model)
    step(q, optimizer_of(q))
    assert model.training and q.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_modes_that_parts_of_the_model_are_in_are_kept() -> None:
    model = small().train()
    model.get_submodule("bn").eval()
    q = prepared(model)
    assert q.get_submodule("stem").training and not q.get_submodule("bn").training
    before = q.state_dict()["bn.running_mean"].clone()
    q(images())
    assert torch.equal(q.state_dict()["bn.running_mean"], before)


def test_modules_that_the_forward_does_not_use_are_kept() -> None:
    model = small()
    model.unused = nn.Linear(3, 2)
    model.register_buffer("note", torch.ones(2))
    q = prepared(model)
    q.load_state_dict(model.state_dict())
    assert set(model.state_dict()) <= set(q.state_dict())


def test_names_that_differ_in_a_dot_only_do_not_meet() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.b_c, self.head = nn.ModuleDict({"c": nn.Linear(6, 6)}), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.b_c(self.b["c"](x)))
            return logits

    q = prepared(Nested(), calibration=[torch.randn(4, 6)], config=QuantConfig(scales="learned"))
    assert sum(n.endswith("_weight.theta") or n.endswith("_weight_.theta") for n, _ in q.named_parameters()) == 3


@pytest.mark.parametrize("assign", [False, True])
def test_parameters_read_by_name_beside_their_layer_are_the_layers(assign: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.last(torch.relu(self.first(x))), self.first.weight.t()) + self.last.bias[:6]

    model, other, x = Tied(), Tied(), torch.randn(16, 6)
    q = prepared(model, calibration=[x])
    q.load_state_dict(other.state_dict(), assign=assign)
    assert sqnr(other(x), q.eval()(x)) > 20
    q.train()(x).sum().backward()
    assert all(p.grad is not None for p in q.parameters())
    assert sqnr(q.eval()(x), fxquant.convert(q)(x)) > 60


def test_a_train_of_the_models_own_is_called() -> None:
    class FrozenNorm(Small):
        def train(self, mode: bool = True) -> FrozenNorm:
            super().train(mode)
            self.bn.eval()
            return self

    q = prepared(FrozenNorm()).train()
    assert q.get_submodule("stem").training and not q.get_submodule("bn").training


@pytest.mark.parametrize("observer", ["histogram", "measured"])
def test_preparing_a_model_in_training_mode_leaves_its_statistics(observer: Any) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    for fresh in (True, False):
        q = prepared(model.train(), config=QuantConfig(observer=observer))
        assert all(torch.equal(q.state_dict()[k], v) for k, v in model.state_dict().items()), fresh
        assert all(m.training for m in q.modules())
        model(images())


@pytest.mark.parametrize(
    "hook", [torch.nn.utils.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_a_layer_whose_weight_a_hook_computes_trains_in_fp32(hook: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    hook(model[0])
    with torch.no_grad():
        model(images())  # else its weight belongs to an autograd graph, and cannot be copied
    q = prepared(model).train()
    q(images()).square().sum().backward()
    assert [n for n, p in q.named_parameters() if p.grad is None] == []
    done = fxquant.convert(q)
    assert "it has forward hooks" in {row.node: row for row in done.report.rows}["0"].reason
    x = images()
    assert sqnr(q.eval()(x), done(x)) > 60


def test_functions_over_parameters_keep_their_names_and_train() -> None:
    class Functional(nn.Module):
        offset: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 192) / 14)
            self.register_buffer("offset", torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.flatten(1), self.weight) + self.offset

    model = Functional()
    q = prepared(model)
    assert [n for n, _ in q.named_parameters()] == ["weight"]
    before = q.state_dict()["weight"].clone()
    step(q.train(), optimizer_of(q))
    assert not torch.equal(q.state_dict()["weight"], before)
    q.load_state_dict(model.state_dict())
    x = images()
    assert sqnr(model(x), q.eval()(x)) > 30
    assert sqnr(model(x), q.double().float()(x)) > 30, "buffers that the graph reads follow a change of dtype"


# Training ---------------------------------------------------------------------------------------------------


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
    assert "no layer differs by more than one step" in str(done)


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


# Models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "resnet18", "shufflenet_v2", "densenet", "unet", "vit"])
def test_models_of_the_zoo_train_and_agree_with_their_int8_form(name: str) -> None:
    calibration = batches(name, 1)
    q = fxquant.prepare(settled(name), scheme="qat", calibration=calibration).train()
    q(*calibration[0]).square().mean().backward()
    assert [n for n, p in q.named_parameters() if p.grad is None] == []
    assert "no layer differs by more than one step" in fxquant.convert(q).report.remark


class SqueezeExcite(nn.Module):
    """The gate of MobileNetV3 (Howard et al. 2019, arXiv:1905.02244)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.gate(x)
        return result


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(channels, channels, 3), nn.ReLU(), *conv_bn(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(channels, 10)]


def mobilenet_v3_style() -> nn.Sequential:
    return nn.Sequential(
        *(*conv_bn(1, 16, 3, 2), nn.Hardswish(), *conv_bn(16, 48, 1), nn.Hardswish()),
        *(*conv_bn(48, 48, 3, 2, groups=48), nn.Hardswish(), SqueezeExcite(48), *conv_bn(48, 24, 1)),
        *(*conv_bn(24, 96, 1), nn.Hardswish()),
        *head(96),
    )


def residual_style() -> nn.Sequential:
    return nn.Sequential(*conv_bn(1, 24, 3, 2), nn.ReLU(), Residual(24), *conv_bn(24, 32, 3, 2), nn.ReLU(), *head(32))


def fit(model: nn.Module, rate: float, epochs: int) -> None:
    pictures, labels = load_digits().train
    steps = epochs * len(pictures) // 50
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    if isinstance(model, QATModule):
        model.freeze_observers(after=0.6, steps=steps)
        model.freeze_batchnorm(after=0.6, steps=steps)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(labels)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(pictures[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@pytest.mark.parametrize("build", [mobilenet_v3_style, residual_style])
def test_models_converge_with_weights_of_four_bits(build: Callable[[], nn.Sequential]) -> None:
    digits, model = load_digits(), build()
    fit(model, 1e-2, epochs=8)
    config = QuantConfig(weight_bits=4, scales="learned")
    q = fxquant.prepare(model, scheme="qat", calibration=[digits.train[0][:32]], config=config)
    fit(q, 1e-3, epochs=5)
    done = fxquant.convert(q)
    assert accuracy(done, *digits.test) > accuracy(model, *digits.test) - 6
    with torch.no_grad():
        agree = done(digits.test[0]).argmax(1) == q(digits.test[0]).argmax(1)
    assert agree.float().mean() >= 0.99


# In one call, and what is refused ---------------------------------------------------------------------------


def test_compile_trains_in_between() -> None:
    def fit(model: QATModule) -> None:
        model.train()
        optimizer = optimizer_of(model)
        for number in range(3):
            step(model, optimizer, number)

    model = small()
    given = data()
    done = fxquant.compile(model, scheme="qat", calibration=given, train=fit, backend="reference")
    by_hand = prepared(model, calibration=given)
    fit(by_hand)
    x = images()
    assert torch.equal(done(x), fxquant.convert(by_hand)(x))


def test_compile_takes_the_module_that_training_returns() -> None:
    best: list[QATModule] = []

    def fit(model: QATModule) -> QATModule:
        best.append(copy.deepcopy(model))
        step(model.train(), optimizer_of(model))
        return best[0]

    done = fxquant.compile(small(), scheme="qat", calibration=data(), train=fit, backend="reference")
    x = images()
    assert torch.equal(done(x), fxquant.convert(best[0])(x))


def test_without_training_it_is_static_quantization_without_its_passes() -> None:
    off: dict[str, Any] = dict.fromkeys(("equalize", "smooth", "absorb_bias", "correct_bias"), False)
    model, x = small(), images(4)
    static = fxquant.compile(model, calibration=data(), backend="reference", config=QuantConfig(**off))
    done = fxquant.convert(prepared(model))
    assert sqnr(static(x), done(x)) > 40
    assert [(r.node, r.op, r.precision) for r in static.report.rows] == [
        (r.node, r.op, r.precision) for r in done.report.rows
    ]


def test_overrides_hold() -> None:
    config = QuantConfig(overrides={"head": None, "stem": QuantConfig(weight_bits=2)})
    q = prepared(config=config)
    assert "fake_quants.head_weight.scale" not in q.state_dict()
    assert (q.fake_quants.get_submodule("stem_weight").qmax) == 1
    rows = {row.node: row for row in fxquant.convert(q).report.rows}
    assert "weights of 2 bits" in rows["stem"].reason
    assert rows["head"].precision == "fp32" and "override 'head'" in rows["head"].reason


def test_a_layer_with_dynamic_weights_trains_in_fp32_and_is_swapped_in_the_end() -> None:
    q = prepared(config=QuantConfig(overrides={"head": "dynamic"}), backend="x86").train()
    step(q, optimizer_of(q))
    rows = {row.node: row for row in fxquant.convert(q).report.rows}
    assert rows["head"].precision == "int8 dynamic" and rows["stem"].precision == "int8"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"calibration": None}, ConfigError, "needs calibration="),
        ({"calibration": []}, CalibrationError, "no batch"),
        ({"calibration": [torch.ones(2, 3)]}, CalibrationError, r"forward\(\) fails on calibration batch 0"),
        ({"calibration_batches": 0}, ConfigError, "calibration_batches"),
        ({"config": QuantConfig(equalize=True)}, ConfigError, r"equalize=True is for scheme 'static'"),
        ({"config": QuantConfig(overrides={"stem": QuantConfig(correct_bias=True)})}, ConfigError, "correct_bias"),
        ({"config": QuantConfig(rounding="learned")}, ConfigError, r"rounding='learned' is for scheme 'static'"),
    ],
)
def test_what_cannot_be_prepared_says_why(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        prepared(**options)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"after": 0.5}, "give both"),
        ({"steps": 5}, "give both"),
        ({"after": 50, "steps": 5}, "from 0 to 1"),
        ({"after": 0.5, "steps": 0}, "positive int"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(arguments: dict[str, Any], match: str) -> None:
    q = prepared()
    for freeze in (q.freeze_observers, q.freeze_batchnorm):
        with pytest.raises(ConfigError, match=match):
            freeze(**arguments)


def test_train_is_for_this_scheme_and_needed_there() -> None:
    with pytest.raises(ConfigError, match="needs train="):
        fxquant.compile(small(), scheme="qat", calibration=data())
    with pytest.raises(ConfigError, match="takes no train="):
        fxquant.compile(small(), calibration=data(), train=print)


def test_what_train_returns_is_not_ignored() -> None:
    for wrong in (5, nn.Linear(2, 2)):
        with pytest.raises(ConfigError, match="must return None or the QATModule"):
            fxquant.compile(small(), scheme="qat", calibration=data(), train=lambda q, wrong=wrong: wrong)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="must be a function"):
        fxquant.compile(small(), scheme="qat", calibration=data(), train="x")  # type: ignore[arg-type]


def test_what_is_in_training_already_is_not_prepared_again() -> None:
    for model in (prepared(), nn.Sequential(prepared())):
        with pytest.raises(fxquant.ModelError, match=r"in quantization-aware training already"):
            fxquant.compile(model, scheme="dynamic")


def test_converting_a_wrapper_or_a_diverged_model_says_what_to_do() -> None:
    q = prepared()
    with pytest.raises(StateError, match=r"got DataParallel\. Pass its \.module"):
        fxquant.convert(nn.DataParallel(q))  # type: ignore[arg-type]
    with torch.no_grad():
        q.get_parameter("stem.weight").fill_(torch.nan)
    with pytest.raises(fxquant.ModelError, match="layer 'stem' holds NaN or inf"):
        fxquant.convert(q)


def test_a_name_of_ours_in_the_model_is_refused() -> None:
    model = small()
    model.fake_quants = nn.ReLU()
    with pytest.raises(ConfigError, match="Rename it"):
        prepared(model)


def test_attention_is_not_taken_apart() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.attention(x, x, x)[0]
            logits: Tensor = self.out(x)
            return logits

    config = QuantConfig(overrides={"attention": "dynamic"})
    with pytest.raises(ConfigError, match="would lose their names"):
        prepared(Attends(), calibration=[torch.randn(2, 3, 8)], config=config)


def test_diverged_training_stops_with_the_layer() -> None:
    q = prepared().train()
    with torch.no_grad():
        q.get_parameter("stem.weight").fill_(torch.nan)
    with pytest.raises(TrainingError, match="NaN or inf in the output of 'act'"):
        q(images())


def test_it_cannot_be_pickled() -> None:
    with pytest.raises(StateError, match="Save its state_dict"):
        pickle.dumps(prepared())


def test_shapes_of_the_call_are_free() -> None:
    q = prepared(Small())
    assert q(images(7)).shape == (7, 5)
