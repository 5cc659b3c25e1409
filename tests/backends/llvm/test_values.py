"""Views of values name the elements that torch's views do; the arena has room for all that is needed at once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.backends.llvm.lowering.arena import Need, lower_bound, place
from fxquant.backends.llvm.lowering.storage import Storage
from fxquant.backends.llvm.lowering.values import Value

KINDS = st.sampled_from(["permute", "narrow", "select", "one", "split", "merge"])
CHANGES = st.lists(st.tuples(KINDS, st.integers(0, 99)), max_size=5)


def elements(value: Value, memory: Tensor) -> Tensor:
    """What ``value`` holds, in a memory of fp32."""
    strides = [s // 4 for s in value.strides]
    return memory.as_strided(value.shape, strides, value.offset // 4)


def changed(value: Value, tensor: Tensor, change: str, number: int) -> tuple[Value, Tensor] | None:
    """The same view of both; None if the memory does not allow it."""
    axes = tensor.dim()
    axis = number % axes
    if change == "permute":
        order = [(a + axis) % axes for a in range(axes)]
        return value.permuted(order), tensor.permute(order)
    if change == "narrow":
        start = number % tensor.shape[axis]
        return value.narrowed(axis, start, tensor.shape[axis] - start), tensor.narrow(
            axis, start, tensor.shape[axis] - start
        )
    if change == "select" and axes > 1:
        index = number % tensor.shape[axis]
        return value.narrowed(axis, index, 1).without(axis), tensor.select(axis, index)
    if change == "one":
        return value.with_one(axis), tensor.unsqueeze(axis)
    shape = list(tensor.shape)
    if change == "split" and shape[axis] % 2 == 0:
        shape[axis : axis + 1] = [2, shape[axis] // 2]
    elif change == "merge" and axis + 1 < axes:
        shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    else:
        return value, tensor
    viewed = value.reshaped(shape)
    return None if viewed is None else (viewed, tensor.reshape(shape))


@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4), order=st.permutations(range(4)), halo=st.booleans(),
    changes=CHANGES,
)  # fmt: skip
def test_views(shape: list[int], order: list[int], halo: bool, changes: list[tuple[str, int]]) -> None:
    storage = Storage("f32", tuple(shape), tuple(a for a in order if a < len(shape)))
    if halo:
        assert storage.widen(len(shape) - 1, 1, 2)
    value, applied = Value.of(storage), list[tuple[str, int]]()
    tensor = torch.arange(torch.Size(shape).numel()).float().reshape(shape)
    expected = tensor
    for change in changes:
        found = changed(value, expected, *change)
        if found is not None:
            value, expected = found
            applied.append(change)
    memory = torch.full((storage.bytes // 4,), -1.0)
    elements(Value.of(storage), memory).copy_(tensor)  # the layout is known now
    assert torch.equal(elements(value, memory), expected), applied


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=30))
def test_what_is_needed_at_once_does_not_overlap(given_needs: list[tuple[int, int, int]]) -> None:
    needs = [Need(size, first, first + length) for size, first, length in given_needs]
    offsets, size = place(needs)
    assert size >= lower_bound(needs)
    for i, a in enumerate(needs):
        assert offsets[i] % 64 == 0 and offsets[i] + a.size <= size
        for j, b in enumerate(needs[:i]):
            apart = offsets[i] + a.size <= offsets[j] or offsets[j] + b.size <= offsets[i]
            assert apart or not a.meets(b)
