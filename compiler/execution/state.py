"""Whether a call of a module has changed the module."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

from torch import Tensor, nn

_OF_TORCH = frozenset(vars(nn.Module())) | {"forward"}

State = list[tuple[str, Any]]  # paths of attributes, with marks that change with them


class SavedState:
    """What forward() may change in ``model``: buffers, and attributes that are no parameters or modules."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        kept = {id(value): value for value in (*self._modules, *model.parameters())}
        self._attributes = copy.deepcopy([_attributes(m) for m in self._modules], kept)

    def restore(self) -> None:
        """Give the model the state back. It can be given back once."""
        for module, (attributes, buffers) in zip(self._modules, self._attributes, strict=True):
            for name in _attributes(module)[0]:
                del module.__dict__[name]
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def _attributes(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    return own, dict(module._buffers)


class _Same:
    """Equal to what holds the same object. Keeps it alive: the address of a freed one may be used again."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


def state_of(model: nn.Module) -> State:
    """What forward() may change: the attributes of all modules, and versions of tensors."""
    found: State = []
    for path, module in model.named_modules():
        for name, value in (*vars(module).items(), *module._buffers.items(), *module._parameters.items()):
            found.append((f"{path}.{name}" if path else name, _mark(value)))
    return found


def changed_names(before: State, after: State) -> list[str]:
    """The attributes that were set, removed or written to in between."""
    was, now = dict(before), dict(after)
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return [name for name in names if name.rpartition(".")[2] not in ("_buffers", "_parameters", "_modules")]


def _mark(value: Any) -> Any:
    """A mark that changes if ``value`` is replaced or written to, or if an item of a container is."""
    if isinstance(value, Tensor):
        return _Same(value), 0 if value.is_inference() else value._version
    if isinstance(value, list | tuple | set | deque):
        return _Same(value), tuple(map(_mark, value))
    if isinstance(value, dict):
        return _Same(value), tuple((_Same(k), _mark(v)) for k, v in value.items())
    return _Same(value)
