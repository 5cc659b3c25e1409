"""Every layer with int8 or fp16 weights against the float layer on the weights as they were rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fxquant import QuantConfig
from fxquant.backends.base.backend import binding_of
from fxquant.backends.base.dynamic_layer import DynamicLayer
from fxquant.backends.base.dynamic_spec import DynamicSpec, RoundedWeight, weight_names
from fxquant.backends.base.weights import IntegerWeight
from fxquant.backends.ops.table import OPS
from fxquant.backends.x86 import X86Backend
from fxquant.backends.x86.kernels.layers.embedding import rows_of
from fxquant.compiler.core.tensors import tensors_of
from fxquant.passes.dynamic.layer_maker import row_of
from fxquant.passes.layers.weight_grid import LayerWeight, quantize_weight

from .support import seeded, sqnr

BACKEND = X86Backend()
DTYPES = (torch.int8, torch.float16)
# Inputs and states are rounded to 8 bits where weights are integers: a normal tensor has about 40 dB then. With fp16
# weights nothing else is rounded, and the sums agree to fp32 rounding.
LEAST = {torch.int8: 30, torch.float16: 60}


def spec_of(module: nn.Module, dtype: torch.dtype = torch.int8, **config: Any) -> DynamicSpec:
    weights: dict[str, RoundedWeight] = {}
    for name in weight_names(module):
        if dtype == torch.int8:
            of = LayerWeight(module, row_of(module), QuantConfig(**config), BACKEND)
            weights[name] = quantize_weight(of, name=name)
        else:
            weights[name] = module.get_parameter(name).detach().half()
    return DynamicSpec.of(row_of(module).name, module.eval(), weights)


def made_of(spec: DynamicSpec) -> DynamicLayer:
    make = BACKEND.bindings[spec.op].dynamic
    assert make is not None
    return make(spec)


def both(module: nn.Module, dtype: torch.dtype, *args: Any, **config: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of the layer, and of the float layer on rounded weights."""
    spec = spec_of(module, dtype, **config)
    with torch.no_grad():
        return flat(made_of(spec)(*args)), flat(spec.run(*args))


def flat(value: Any) -> list[Tensor]:
    return [t for v in value for t in flat(v)] if isinstance(value, tuple | PackedSequence) else tensors_of(value)


def check(module: nn.Module, dtype: torch.dtype, *args: Any, **config: Any) -> None:
    ours, exact = both(module, dtype, *args, **config)
    assert len(ours) == len(exact) > 0
    for a, b in zip(ours, exact, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.is_floating_point():
            assert sqnr(b, a) > LEAST[dtype], f"{sqnr(b, a):.1f} dB"
        else:
            assert torch.equal(a, b)


def normal(*shape: int) -> Tensor:
    return seeded(lambda: torch.randn(shape))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "linear": (lambda: nn.Linear(24, 16), (normal(5, 24),)),
    "linear_one_axis": (lambda: nn.Linear(24, 16), (normal(24),)),
    "linear_no_bias_odd": (lambda: nn.Linear(23, 15, bias=False), (normal(2, 3, 23),)),
    "linear_no_rows": (lambda: nn.Linear(8, 4), (torch.zeros(1, 8),)),
    "conv1d": (lambda: nn.Conv1d(8, 12, 1), (normal(2, 8, 9),)),
    "conv2d": (lambda: nn.Conv2d(8, 12, 1, stride=2), (normal(2, 8, 9, 7),)),
    "conv2d_no_batch": (lambda: nn.Conv2d(8, 12, 1, bias=False), (normal(8, 9, 7),)),
    "conv2d_channels_last": (lambda: nn.Conv2d(8, 12, 1), (normal(2, 9, 7, 8).permute(0, 3, 1, 2),)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 1), (normal(1, 4, 3, 4, 5),)),
    "lstm": (lambda: nn.LSTM(12, 20), (normal(6, 3, 12),)),
    "gru": (lambda: nn.GRU(12, 20), (normal(6, 3, 12),)),
    "lstmcell": (lambda: nn.LSTMCell(12, 20), (normal(3, 12),)),
    "lstmcell_state": (lambda: nn.LSTMCell(12, 20), (normal(3, 12), (normal(3, 20), normal(3, 20)))),
    "lstmcell_one_axis": (lambda: nn.LSTMCell(12, 20, bias=False), (normal(12),)),
    "grucell": (lambda: nn.GRUCell(12, 20), (normal(3, 12), normal(3, 20).tanh())),
    "rnncell": (lambda: nn.RNNCell(12, 20), (normal(3, 12), normal(3, 20).tanh())),
    "rnncell_relu": (lambda: nn.RNNCell(12, 20, nonlinearity="relu"), (normal(3, 12),)),
    "embedding": (lambda: nn.Embedding(30, 16), (torch.arange(12).view(3, 4),)),
    "embedding_scalar": (lambda: nn.Embedding(30, 16), (torch.tensor(7),)),
    "embedding_int32": (lambda: nn.Embedding(30, 15, padding_idx=0), (torch.arange(12, dtype=torch.int32),)),
    "embedding_strided": (lambda: nn.Embedding(30, 16), (torch.arange(24).view(6, 4)[:, 1],)),
    "embedding_bag_strided": (lambda: nn.EmbeddingBag(30, 16), (torch.arange(18)[::2], torch.arange(8)[::4])),
    "embedding_bag": (lambda: nn.EmbeddingBag(30, 16, mode="mean"), (torch.arange(12).view(3, 4),)),
    "embedding_bag_offsets": (lambda: nn.EmbeddingBag(30, 16), (torch.arange(9), torch.tensor([0, 4, 4]))),
    "embedding_bag_default_mode": (lambda: nn.EmbeddingBag(30, 16), (torch.arange(12).view(3, 4),)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_against_the_rounded_float_layer(name: str, dtype: torch.dtype) -> None:
    build, args = CASES[name]
    check(seeded(build), dtype, *args)


def test_every_dynamic_row_has_a_case() -> None:
    assert {row.name for row in OPS.rows if binding_of(BACKEND, row).dynamic} <= {
        name.split("_")[0] for name in CASES
    } | {"embedding_bag"}


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from((nn.LSTM, nn.GRU)),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    hidden=st.integers(3, 17),
    length=st.integers(1, 6),
    batch=st.integers(0, 3),
    state=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_recurrent_layers_in_every_form(
    kind: Any, layers: int, bidirectional: bool, batch_first: bool, bias: bool, hidden: int, length: int,
    batch: int, state: bool, dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    """Options, batches (0: an input without that axis) and initial states."""
    torch.manual_seed(seed)
    options = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
    module = kind(10, hidden, num_layers=layers, **options)
    shape = (length, 10) if batch == 0 else (batch, length, 10) if batch_first else (length, batch, 10)
    wide = (layers * (1 + bidirectional), *([batch] if batch else []), hidden)
    h = torch.randn(wide).tanh()
    given_state: Any = (h, torch.randn(wide)) if kind is nn.LSTM else h
    ours, exact = both(module, dtype, torch.randn(shape), *([given_state] if state else []))
    for a, b in zip(ours, exact, strict=True):
        assert a.shape == b.shape
        # Few numbers, and a small h has the range of a large one: a step of 1/255 of the range of h, amplified.
        assert (a - b).abs().max() < (0.1 if dtype == torch.int8 else 1e-4)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from((nn.LSTM, nn.GRU)),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    bidirectional=st.booleans(),
    state=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_packed_sequences(kind: Any, lengths: list[int], bidirectional: bool, state: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = kind(10, 12, num_layers=2, bidirectional=bidirectional)
    packed = pack_padded_sequence(torch.randn(max(lengths), len(lengths), 10), lengths, enforce_sorted=False)
    h = torch.randn(2 * (1 + bidirectional), len(lengths), 12).tanh()
    given_state: Any = (h, torch.randn_like(h)) if kind is nn.LSTM else h
    ours, exact = both(module, dtype, packed, *([given_state] if state else []))
    assert len(ours) == len(exact)
    for a, b in zip(ours, exact, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < (0.1 if dtype == torch.int8 else 1e-4)


def test_wrong_sizes_are_refused() -> None:
    made = made_of(spec_of(nn.LSTM(12, 20)))
    with pytest.raises(RuntimeError, match="input_size, 12; got 13"):
        made(normal(6, 3, 13))
    with pytest.raises(RuntimeError, match=r"must be \(1, 3, 20\); got \(1, 2, 20\)"):
        made(normal(6, 3, 12), (normal(1, 2, 20), normal(1, 2, 20)))


@pytest.mark.parametrize("bits", range(2, 9))
def test_rows_hold_the_integers(bits: int) -> None:
    """The layout of FBGEMM, read by its kernel: up to 4 bits as nibbles, else bytes."""
    table = seeded(lambda: nn.Embedding(20, 16))
    spec = spec_of(table, weight_bits=bits)
    weight = spec.weights["weight"]
    assert isinstance(weight, IntegerWeight)
    kernel, rows = rows_of(weight)
    assert rows.shape[1] == (16 // 2 + 4 if bits <= 4 else 16 + 8)
    made = made_of(spec)
    with torch.no_grad():
        got = made(torch.arange(20))
    # Scale and offset of nibbles are fp16: up to 15 steps of one that is off by 2**-11, and as much of the offset.
    slack = weight.scale[:, None] * (16 * 2**-11 * 2) if bits <= 4 else 1e-6
    assert ((got - weight.dequantized()).abs() <= slack).all()
    assert f"{4 if bits <= 4 else 'byte'}" in kernel


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding", [None, 0, 3])
@pytest.mark.parametrize("last", [False, True])
def test_bags(mode: str, padding: int | None, last: bool) -> None:
    bag = seeded(lambda: nn.EmbeddingBag(20, 8, mode=mode, padding_idx=padding, include_last_offset=last))
    indices = torch.tensor([0, 3, 5, 0, 0, 7, 3, 3, 19])
    offsets = torch.tensor([0, 3, 5, 5, 9] if last else [0, 3, 5, 5])
    for args in ((indices, offsets), (indices.view(3, 3),)):
        ours, exact = both(bag, torch.int8, *args)
        torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-5)


def test_bags_with_weights() -> None:
    bag = seeded(lambda: nn.EmbeddingBag(20, 8, mode="sum", padding_idx=2))
    weights = normal(2, 3)
    ours, exact = both(bag, torch.int8, torch.tensor([[0, 2, 5], [7, 7, 2]]), None, weights)
    torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-5)
    made = made_of(spec_of(seeded(lambda: nn.EmbeddingBag(20, 8, mode="mean"))))
    with pytest.raises(ValueError, match="mode 'sum' only"):
        made(torch.zeros(2, 3, dtype=torch.int64), None, weights)


def test_indices_out_of_range_are_refused() -> None:
    made = made_of(spec_of(nn.Embedding(20, 8)))
    for index in (20, -1):
        with pytest.raises(RuntimeError, match="out of bounds"):
            made(torch.tensor([index]))


def test_full_range_without_saturation() -> None:
    """Large weights of one sign in pairs, large inputs: what 16-bit sums saturate on, without VNNI."""
    module = nn.Linear(64, 8, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.full((8, 64), 0.5) + 0.01 * normal(8, 64))
    check(module, torch.int8, normal(4, 64).abs() + 2)


def test_relu_is_part_of_the_kernel() -> None:
    spec = spec_of(seeded(lambda: nn.Linear(24, 16)))
    made = made_of(dataclasses.replace(spec, relu=True))
    with torch.no_grad():
        x = normal(5, 24)
        torch.testing.assert_close(made(x), made_of(spec)(x).relu())
    assert "relu" in made.kernel
