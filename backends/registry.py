"""The one place that names the backends.

A backend is a package with a function ``create(target, executor)``. The package is imported when it
is first asked for. To add one, see "How to add" in ``docs/architecture.md``.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Literal, get_args

from ..compiler.core.errors import ConfigError
from ..compiler.core.messages import check_choice
from .base.backend import Backend, Target
from .base.joined_backend import JoinedBackend

BackendName = Literal["auto", "llvm", "x86", "reference"]
Executor = Literal["auto", "eager", "torchscript"]

DEFAULT: BackendName = "auto"
PACKAGES: dict[str, str] = {name: f"{__package__}.{name}" for name in get_args(BackendName) if name != "auto"}
LAYERS: dict[str, str] = {"llvm": "x86"}  # whose dynamic layers a backend takes, which has none of its own
_MEMBERS = (*Backend.__annotations__, *(name for name in vars(Backend) if not name.startswith("_")))


def create_backend(name: str = DEFAULT, target: Target | None = None, executor: str = "auto") -> Backend:
    """The backend called ``name``. ``"auto"`` is llvm, or x86 where llvmlite is missing or an executor is asked for.

    Raises:
        ConfigError: there is none of that name; or the backend refuses the target or the executor.
    """
    check_choice("backend", name, ("auto", *PACKAGES))
    check_choice("executor", executor, get_args(Executor))
    if target is not None and not isinstance(target, Target):
        raise ConfigError(f"target must be a Target, got {type(target).__name__}.")
    if name == "auto":
        name = "llvm" if executor == "auto" and find_spec("llvmlite") is not None else "x86"
    backend = _create(name, target, executor)
    return JoinedBackend(backend, _create(LAYERS[name], target, "auto")) if name in LAYERS else backend


def _create(name: str, target: Target | None, executor: str) -> Backend:
    package = import_module(PACKAGES[name])
    if not hasattr(package, "create"):
        raise ConfigError(f"Backend {name!r}: {package.__name__} has no function create(target, executor).")
    backend: Backend = package.create(target, executor)
    missing = [member for member in _MEMBERS if not hasattr(backend, member)]
    if missing:
        raise ConfigError(
            f"Backend {name!r}: the {type(backend).__name__} that create() returned has no {missing[0]!r}."
        )
    return backend
