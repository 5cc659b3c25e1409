"""Which configuration each op of a graph, or each module of a tree, has."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from .config import DYNAMIC_DTYPES, Override, QuantConfig
from .errors import ConfigError
from .messages import nearest

Key = str | type[nn.Module]


@dataclass(frozen=True)
class Subject:
    """What an override may name.

    Attributes:
        op: the name of the op.
        path: the path of its module, or of the module in whose forward() it is.
        name: the name of its node; "" for a module.
        classes: of its module and of the modules around it.
    """

    op: str
    path: str
    name: str = ""
    classes: tuple[type, ...] = ()

    @property
    def label(self) -> str:
        return self.path or self.name


@dataclass(frozen=True)
class Part:
    """A part of the user's model that is compiled on its own.

    Attributes:
        path: of the module in the user's model; "" is the model itself.
        classes: of the modules around it.
        whole: it is all of the model.
    """

    path: str = ""
    classes: tuple[type, ...] = ()
    whole: bool = False

    def within(self, path: str) -> str:
        """The path in the user's model for a ``path`` in the part."""
        return ".".join(filter(None, (self.path, path)))


WHOLE = Part(whole=True)


def module_path(node: fx.Node) -> str:
    """The path of the module that ``node`` calls, or in whose forward() it is ("" for the root)."""
    if node.op == "call_module":
        return str(node.target)
    around = _modules_around(node)
    return around[-1][0] if around else ""


def _modules_around(node: fx.Node) -> list[tuple[str, type | None]]:
    """Path and class of the modules in whose forward() a node is, outermost first."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    # torch.export has an entry with two equal strings for a node that is in no module.
    return [(str(path), _class_named(cls)) for path, cls in stack if path != cls]


def _class_named(cls: Any) -> type | None:
    """A class, or the one with this full name, which torch.export writes down."""
    if isinstance(cls, type):
        return cls
    module, names = str(cls), list[str]()
    while module and module not in sys.modules:
        module, _, name = module.rpartition(".")
        names.insert(0, name)
    found: Any = sys.modules.get(module)
    for name in names:
        found = getattr(found, name, None)
    return found if isinstance(found, type) else None


def node_subject(node: fx.Node, op: str, part: Part = WHOLE) -> Subject:
    """The subject of a node of a graph, which is that of ``part`` of the user's model."""
    classes = tuple(cls for _, cls in _modules_around(node) if cls is not None)
    return Subject(op, part.within(module_path(node)), node.name, (*part.classes, *classes))


def module_subject(path: str, tree: Mapping[str, nn.Module], op: str) -> Subject:
    """The subject of the module at ``path`` of ``tree``, which maps paths to modules, containers included."""
    return Subject(op, path, "", tuple(type(tree[a]) for a in _around(path) if a in tree))


@dataclass(frozen=True)
class ResolvedConfig:
    """The configuration of each subject, by the subject's key in the mapping that was resolved."""

    default: QuantConfig
    by_subject: Mapping[Hashable, Override]
    keys: Mapping[Hashable, Key]
    known: frozenset[Hashable] = frozenset()

    def nearest(self, path: str) -> str:
        """``path``, or the nearest path around it that was among the subjects."""
        while path and path not in self.known:
            path = path.rpartition(".")[0]
        return path

    def of(self, subject: Hashable) -> QuantConfig | None:
        """How ``subject`` is quantized; None leaves it in fp32."""
        override = self.by_subject.get(subject, self.default)
        return self.default if isinstance(override, str) else override

    def dynamic_dtype(self, subject: Hashable) -> torch.dtype | None:
        """The dtype of weights, if an override asks for ``"dynamic"`` or ``"fp16"``."""
        override = self.by_subject.get(subject)
        return DYNAMIC_DTYPES[override] if isinstance(override, str) else None

    def key_of(self, subject: Hashable) -> Key | None:
        """The override entry that decided for ``subject``, if any."""
        return self.keys.get(subject)


def resolve(config: QuantConfig, subjects: Mapping[Hashable, Subject], part: Part = WHOLE) -> ResolvedConfig:
    """Match every override against ``subjects``. Of a part of a model, not all overrides need to match.

    Raises:
        ConfigError: an override matches none of them.
    """
    by_subject: dict[Hashable, Override] = {}
    keys: dict[Hashable, Key] = {}
    matched: set[Key] = set()
    for matches in (_is_kind, _is_at_path):  # a path beats a class or an op
        for key, value in config.overrides.items():
            hits = [k for k, subject in subjects.items() if matches(key, subject)]
            by_subject.update((k, value) for k in hits)
            keys.update((k, key) for k in hits)
            matched.update([key] if hits else [])
    for key in config.overrides:
        if key not in matched and part.whole:
            valid = {text for s in subjects.values() for text in (s.label, s.op) if text}
            raise ConfigError(f"Override {key!r} matches nothing in the model. {nearest(key, sorted(valid))}")
    return ResolvedConfig(replace(config, overrides={}), by_subject, keys, frozenset(subjects))


def _is_kind(key: Key, subject: Subject) -> bool:
    """Whether ``key`` is the name of the op, or the class of its module or of one around it."""
    if isinstance(key, str):
        return key == subject.op
    return any(issubclass(cls, key) for cls in subject.classes)


def _is_at_path(key: Key, subject: Subject) -> bool:
    """Whether ``key`` is a glob for the path of the subject's module, of one around it, or for the node's name."""
    if not isinstance(key, str):
        return False
    return any(fnmatch.fnmatchcase(text, key) for text in (subject.name, *_around(subject.path)))


def _around(path: str) -> list[str]:
    """The paths of all modules around ``path``, and ``path`` itself."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
