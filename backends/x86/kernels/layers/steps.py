"""The steps of an LSTM and of a GRU in one direction, written so that TorchScript can compile them.

``data`` holds the inputs (rows, features) of all steps, one after the other, with ``sizes`` rows each, as in a packed
sequence: the shortest sequences are last in the batch. Returns the outputs (rows, hidden) and the last states.
"""

from __future__ import annotations

import torch
from torch import Tensor

Packed = torch.classes.quantized.LinearPackedParamsBase


def multiply(x: Tensor, packed: Packed, half: bool) -> Tensor:  # type: ignore[valid-type]
    """``x`` times a packed matrix, plus its bias."""
    if half:
        return torch.ops.quantized.linear_dynamic_fp16(x, packed)
    return torch.ops.quantized.linear_dynamic(x, packed)


def steps_of(data: Tensor, sizes: list[int], reverse: bool) -> list[Tensor]:
    """The rows of each step, in the order of the steps."""
    parts: list[Tensor] = list(data.split_with_sizes(sizes))
    return parts[::-1] if reverse else parts


def resized(h: Tensor, last: Tensor, first: Tensor, size: int) -> Tensor:
    """The state for a batch of ``size``. Ended sequences leave their state in ``last``; new ones start at ``first``."""
    last.narrow(0, 0, h.size(0)).copy_(h)
    if size <= h.size(0):
        return h.narrow(0, 0, size)
    return torch.cat([h, first.narrow(0, h.size(0), size - h.size(0))])


def lstm_steps(
    data: Tensor,
    sizes: list[int],
    inputs: Packed,  # type: ignore[valid-type]
    states: Packed,  # type: ignore[valid-type]
    half: bool,
    h0: Tensor,
    c0: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hochreiter & Schmidhuber 1997 with forget gates, as in ``nn.LSTM``; the gates are i, f, o, g."""
    width = h0.size(1)
    outputs = data.new_empty(data.size(0), width)
    given = steps_of(multiply(data, inputs, half), sizes, reverse)
    taken = steps_of(outputs, sizes, reverse)
    h, last, cells = h0, h0.clone(), c0.clone()
    c, squashed, gates = cells, cells, cells
    sigmoids, i, f, o, g = cells, cells, cells, cells, cells
    size = -1
    for k in range(len(given)):
        if given[k].size(0) != size:
            # Buffers and views are kept until the batch changes: making them costs as much as the arithmetic.
            size = given[k].size(0)
            h = resized(h, last, h0, size)
            gates, squashed = data.new_empty(size, 4 * width), data.new_empty(size, width)
            sigmoids = gates.narrow(1, 0, 3 * width)
            i, f, o, g = gates.chunk(4, 1)
            c = cells.narrow(0, 0, size)
        torch.add(multiply(h, states, half), given[k], out=gates)
        sigmoids.sigmoid_()
        c.mul_(f).addcmul_(i, g.tanh_())
        h = torch.mul(o, torch.tanh(c, out=squashed), out=taken[k])
    last.narrow(0, 0, size).copy_(h)
    return outputs, last, cells


def gru_steps(
    data: Tensor,
    sizes: list[int],
    inputs: Packed,  # type: ignore[valid-type]
    states: Packed,  # type: ignore[valid-type]
    half: bool,
    h0: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Cho et al. 2014 (arXiv:1406.1078), as in ``nn.GRU``; the gates are r, z, n."""
    width = h0.size(1)
    outputs = data.new_empty(data.size(0), width)
    product = multiply(data, inputs, half)
    given = steps_of(product.narrow(1, 0, 2 * width), sizes, reverse)
    given_new = steps_of(product.narrow(1, 2 * width, width), sizes, reverse)
    taken = steps_of(outputs, sizes, reverse)
    h, last = h0, h0.clone()
    gates, new, r, z = last, last, last, last
    size = -1
    for k in range(len(given)):
        if given[k].size(0) != size:
            size = given[k].size(0)
            h = resized(h, last, h0, size)
            gates, new = data.new_empty(size, 2 * width), data.new_empty(size, width)
            r, z = gates.chunk(2, 1)
        whole = multiply(h, states, half)
        torch.add(whole.narrow(1, 0, 2 * width), given[k], out=gates).sigmoid_()
        torch.addcmul(given_new[k], r, whole.narrow(1, 2 * width, width), out=new).tanh_()
        h = torch.lerp(new, h, z, out=taken[k])
    last.narrow(0, 0, size).copy_(h)
    return outputs, last
