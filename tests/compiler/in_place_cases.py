"""Forwards with in-place ops whose memory is read under several names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Forward = Callable[[Any, Tensor], Any]


def view_then_add(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.view(y.shape[0], -1)
    y += 1
    return z * 2, y


def view_of_what_was_changed(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.view(y.shape[0], -1)
    z.mul_(2).clamp_(-1, 1)
    return m.d(y)


def two_names(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    a = y
    y.mul_(2.0)
    y.clamp_(-1, 1)
    return a + m.d(y)


def slice_of(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y[:, :4]
    z.mul_(3.0)
    return m.d(y), z


def item_of_item(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y[:, 1:][:, :, 2]
    z += 5
    return y


def transposed(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.transpose(1, 2)
    z.add_(1)
    return m.d(y), z


def narrowed(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.narrow(1, 2, 3)
    other = y.narrow(1, 3, 3)
    z.add_(1)
    return y, other


def selected(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.select(1, 2)
    F.relu_(z)
    return y


def values_of_max(m: Any, x: Tensor) -> Any:
    y = m.c(x).max(1).values
    y.add_(0.25)
    return y


def through_data(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    y.data.add_(0.25)
    return y


def through_real(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    y.real.mul_(2)
    return m.d(y)


def copied_by_a_list(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y[:, [0, 2]]
    z += 5
    return y, z


def copied_by_a_mask(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y[:, m.mask]
    z += 5
    return y, z


def copied_by_dropout(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = F.dropout(y, 0.5, training=True)
    z += 5
    return m.d(y)


def narrowed_from_the_end(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.narrow(1, -3, 3)
    z.add_(1)
    return y


def item_of_a_tuple(m: Any, x: Tensor) -> Any:
    values, indices = m.c(x).max(1)
    values.add_(0.25)
    return values, indices


def moved_axes(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.movedim(1, -1)
    y += 1
    return z * 2


def other_part_of_a_chunk(m: Any, x: Tensor) -> Any:
    a, b = m.c(x).chunk(2, 1)
    a += 1
    return torch.cat((b, a), 1)


def other_attribute(m: Any, x: Tensor) -> Any:
    found = m.c(x).max(1)
    found.values.add_(0.25)
    return found.indices


def all_operators(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y[:, 2:]
    z **= 2
    z //= 0.25
    z %= 3
    mask = y > 1
    same = mask
    mask &= y < 2
    mask |= y < 0.5
    mask ^= y < 0
    return y, same.float()


def twice_through_a_slice(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y[1:].view(-1)[5:]
    w = y.transpose(1, 2)[:, 1]
    z *= 2
    w += 1
    z -= 3
    return y, z, w


def into_another(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.view(y.shape[0], -1)
    torch.add(y, 1, out=y)
    return z


def number(m: Any, x: Tensor) -> Any:
    a = b = m.c(x).shape[2] - x.mean(0).numel() + x[0, 0, 0, 0].item()
    b *= 2
    return m.c(x) * a + b


PURE = (
    copied_by_a_list, copied_by_a_mask, copied_by_dropout, narrowed_from_the_end, other_part_of_a_chunk, into_another,
    number, moved_axes, view_then_add, view_of_what_was_changed, two_names, slice_of, item_of_item, transposed,
    narrowed, selected, values_of_max, through_data, through_real,
)  # fmt: skip

EXACT_ONLY = (twice_through_a_slice, item_of_a_tuple, other_attribute, all_operators)  # rounding may change decisions


def reshaped(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.transpose(1, 2).reshape(2, -1)  # a copy, as the strides do not allow a view
    y += 1
    return z, y


def part_of_a_chunk(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    a, _ = y.chunk(2, 1)
    a += 1
    return y


def of_the_transposed(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    y.mT.add_(1)
    return y


def of_an_unbound(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    first = y.unbind(1)[0]
    first += 1
    return y


def of_an_item(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y[x.amax(1).argmax(0)]  # by a tensor: a copy, but the graph does not know it
    z += 1
    return y


def same_attribute(m: Any, x: Tensor) -> Any:
    found = m.c(x).max(1)
    found.values.add_(0.25)
    return found.values


def reshaped_like_another(m: Any, x: Tensor) -> Any:
    y = m.c(x)
    z = y.view_as(m.d(y))
    z.add_(1)
    return y


REFUSED = (
    reshaped, part_of_a_chunk, of_the_transposed, of_an_unbound, of_an_item, same_attribute,
    reshaped_like_another,
)  # fmt: skip
