"""Whether a call of a module has changed the module."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

_OF_TORCH = frozenset(vars(nn.Module())) | {"forward"}

State = dict[str, Any]  # marks that change with the attributes, by path


class SavedState:
    """What forward() may change in ``model``: buffers, and attributes that are no parameters or modules."""

    def __init__(self, model: nn.Module) -> None:
        self._modules, self._parameters = list(model.modules()), list(model.parameters())
        self._values = copy.deepcopy([_values(m) for m in self._modules], self._shared)
        self._marks = [_marks(m) for m in self._modules]

    @property
    def _shared(self) -> dict[int, Any]:
        """What copies share with the model, for the memo of deepcopy()."""
        return {id(value): value for value in (*self._modules, *self._parameters)}

    def changes(self, module: nn.Module) -> list[str]:
        """The attributes of ``module``, a part of the model, that are not as they were."""
        saved = dict(zip(self._modules, self._marks, strict=True))
        parts = list(module.named_modules())
        return changed_names(_by_path((p, saved[m]) for p, m in parts), _by_path((p, _marks(m)) for p, m in parts))

    def restore(self) -> None:
        """Give the model the state back. What did not change stays the same object."""
        values = copy.deepcopy(self._values, self._shared)
        for module, saved, marks in zip(self._modules, values, self._marks, strict=True):
            now = _marks(module)
            for name in now:
                if now[name] != marks.get(name):
                    delattr(module, name)
            for name, value in saved.items():
                if now.get(name) != marks[name]:
                    place = module._buffers if isinstance(value, _Buffer) else module.__dict__
                    place[name] = value.tensor if isinstance(value, _Buffer) else value
            marks.update(_marks(module))


class _Buffer:
    def __init__(self, tensor: Tensor | None) -> None:
        self.tensor = tensor


def _values(module: nn.Module) -> dict[str, Any]:
    return _own(module) | {name: _Buffer(value) for name, value in module._buffers.items()}


def _marks(module: nn.Module) -> dict[str, Any]:
    """Marks that change with what :func:`_values` gives."""
    return {name: _mark(value) for name, value in (_own(module) | module._buffers).items()}


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_TORCH}


def _by_path(marks: Iterable[tuple[str, dict[str, Any]]]) -> State:
    return {f"{path}.{name}" if path else name: mark for path, named in marks for name, mark in named.items()}


class _Same:
    """Equal to what holds the same object. Keeps it alive: the address of a freed one may be used again."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


def state_of(model: nn.Module) -> State:
    """What forward() may change: the attributes of all modules, and versions of tensors."""
    named = ((path, vars(m) | m._buffers | m._parameters) for path, m in model.named_modules())
    return _by_path((path, {name: _mark(value) for name, value in values.items()}) for path, values in named)


def changed_names(before: State, after: State) -> list[str]:
    """The attributes that were set, removed or written to in between."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [name for name in names if name.rpartition(".")[2] not in _OF_TORCH]


def _mark(value: Any) -> Any:
    """A mark that changes if ``value`` is replaced or written to, or if an item of a container is."""
    if isinstance(value, Tensor):
        return _Same(value), 0 if value.is_inference() else value._version
    if isinstance(value, list | tuple | set | deque):
        return _Same(value), tuple(map(_mark, value))
    if isinstance(value, dict):
        return _Same(value), tuple((_Same(k), _mark(v)) for k, v in value.items())
    return _Same(value)
