"""Which configuration each op of a graph, or each module of a tree, has."""

from __future__ import annotations

import fnmatch
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from .config import DYNAMIC_FORMS, Override, QuantConfig
from .errors import ConfigError, nearest

Key = str | type[nn.Module]


@dataclass(frozen=True)
class Subject:
    """What an override may speak of: the ``op`` at a module ``path``, of a ``name``, in modules of ``classes``."""

    op: str
    path: str
    name: str = ""
    classes: tuple[type, ...] = ()

    @property
    def label(self) -> str:
        return self.path or self.name


def module_path(node: fx.Node) -> str:
    """The dotted path of the module that ``node`` is, or in whose forward it stands ("" for the root)."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def node_subject(node: fx.Node, op: str) -> Subject:
    """A node of a graph."""
    stack = node.meta.get("nn_module_stack") or {}
    classes = tuple(cls for _, cls in stack.values() if isinstance(cls, type))
    return Subject(op, module_path(node), node.name, classes)


def module_subject(path: str, tree: Mapping[str, nn.Module], op: str) -> Subject:
    """The module at ``path`` of ``tree``, which maps paths to modules, containers included."""
    return Subject(op, path, "", tuple(type(tree[a]) for a in _around(path) if a in tree))


@dataclass(frozen=True)
class ResolvedConfig:
    """Which override each subject has, by its key in the mapping that was resolved."""

    default: QuantConfig
    by_subject: Mapping[Hashable, Override]
    keys: Mapping[Hashable, Key]
    known: frozenset[Hashable] = frozenset()

    def nearest(self, path: str) -> str:
        """``path``, or the nearest one around it that was among the subjects."""
        while path and path not in self.known:
            path = path.rpartition(".")[0]
        return path

    def of(self, subject: Hashable) -> QuantConfig | None:
        """How ``subject`` is quantized; None is "leave in fp32"."""
        override = self.by_subject.get(subject, self.default)
        return self.default if isinstance(override, str) else override

    def dynamic(self, subject: Hashable) -> torch.dtype | None:
        """The type of weights that an override asks for by name, with activations that are not calibrated."""
        override = self.by_subject.get(subject)
        return DYNAMIC_FORMS[override] if isinstance(override, str) else None

    def key_of(self, subject: Hashable) -> Key | None:
        """The override entry that decided for ``subject``, if any."""
        return self.keys.get(subject)


def resolve(config: QuantConfig, subjects: Mapping[Hashable, Subject]) -> ResolvedConfig:
    """Match every override against ``subjects``.

    Raises:
        ConfigError: an override matches none of them.
    """
    by_subject: dict[Hashable, Override] = {}
    keys: dict[Hashable, Key] = {}
    matched: set[Key] = set()
    for matches in (_is_kind, _is_at_path):
        for key, value in config.overrides.items():
            hits = [k for k, subject in subjects.items() if matches(key, subject)]
            by_subject.update((k, value) for k in hits)
            keys.update((k, key) for k in hits)
            matched.update([key] if hits else [])
    for key in config.overrides:
        if key not in matched:
            valid = {text for s in subjects.values() for text in (s.label, s.op) if text}
            raise ConfigError(f"Override {key!r} matches nothing in the model. {nearest(key, sorted(valid))}")
    return ResolvedConfig(replace(config, overrides={}), by_subject, keys, frozenset(subjects))


def _is_kind(key: Key, subject: Subject) -> bool:
    """Whether ``key`` is the op's name, or the class of its module or of one around it."""
    if isinstance(key, str):
        return key == subject.op
    return any(issubclass(cls, key) for cls in subject.classes)


def _is_at_path(key: Key, subject: Subject) -> bool:
    """Whether ``key`` is a glob for the path of the subject's module or of one around it, or for its own name."""
    if not isinstance(key, str):
        return False
    return any(fnmatch.fnmatchcase(text, key) for text in (subject.name, *_around(subject.path)))


def _around(path: str) -> list[str]:
    """The paths of all modules around ``path``, and its own."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
