"""The law of the house: who may import whom. A room imports only from rooms above it in the table, and from itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fxquant.backends.registry import PACKAGES

ROOT = Path(__file__).parents[1]

# Rooms on one line may not import each other.
ROOMS = (
    ("compiler.core",),
    ("compiler.numerics",),
    ("compiler.execution",),
    ("backends.base",),
    ("backends.ops",),
    ("backends.llvm", "backends.reference", "backends.x86"),
    ("backends.registry",),
    ("compiler.capture",),
    ("passes.base",),
    ("passes.contracts",),
    ("passes.runner",),
    ("passes.layers",),
    ("passes.analysis",),
    ("passes.rewrites",),
    ("passes.quantization",),
    ("passes.training",),
    ("passes.dynamic",),
    ("compiler.report",),
    ("compiler.workflows",),
    ("compiler.runtime",),
    ("compiler.diagnosis",),
    ("compiler.search",),
    ("compiler.api",),
    ("compiler.cli",),
)
NAMES = "|".join(PACKAGES)
WITHIN_BACKEND = ("runtime", "codegen", "kernels", "bindings", "tuning", "lowering", "backend")
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}

FOLDERS = ("compiler", "passes", "backends")
EMPTY = {ROOT / folder / "__init__.py" for folder in FOLDERS}
SOURCES = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py")) if p not in EMPTY]


def module_of(path: Path) -> str:
    """Dotted name below ``fxquant``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute names of all that ``path`` imports, at the top or within a function."""
    package = ["fxquant", *path.relative_to(ROOT).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{a.name}" for a in node.names)}
    return found


def room_of(module: str) -> str | None:
    """The room that ``module`` is in; None for packages that only hold rooms, and for other libraries."""
    parts = module.removeprefix("fxquant.").split(".")
    room = ".".join(parts[:2])
    return room if room in RANK else None


def breaks_the_law(path: Path, names: set[str]) -> list[str]:
    """The names that ``path`` must not import."""
    own = room_of(module_of(path))
    assert own is not None, f"{path} is in no room: add its room to the table"
    wrong = []
    for name in names:
        room = room_of(name) if name.startswith("fxquant.") else None
        if room is not None and room != own and RANK[room] >= RANK[own]:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_rooms_import_only_from_those_above(path: Path) -> None:
    assert not breaks_the_law(path, imports(path))


@pytest.mark.parametrize("path", [p for p in SOURCES if "backends/x86/" in p.as_posix()], ids=module_of)
def test_within_a_backend_too(path: Path) -> None:
    own = module_of(path).split(".")[2:3]
    if not own:
        return  # the package itself, which exports the backend
    rank = WITHIN_BACKEND.index(own[0])
    for name in imports(path):
        parts = name.split(".")
        if parts[:3] == ["fxquant", "backends", "x86"] and len(parts) > 3 and parts[3] in WITHIN_BACKEND:
            assert WITHIN_BACKEND.index(parts[3]) <= rank, name


def test_a_break_would_be_found() -> None:
    assert breaks_the_law(ROOT / "passes/runner.py", {"fxquant.compiler.api"})
    assert breaks_the_law(ROOT / "backends/x86/backend.py", {"fxquant.backends.reference"})
    assert not breaks_the_law(ROOT / "compiler/api.py", {"fxquant.passes.base.Pass", "torch.fx"})


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_only_the_registry_names_backends(path: Path) -> None:
    if any(f"backends/{name}/" in path.as_posix() for name in PACKAGES):
        return
    assert not {n for n in imports(path) if re.match(rf"fxquant\.backends\.({NAMES})\b", n)}
    if path.name != "registry.py":
        code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)
        assert not re.search(rf"[\"']({NAMES})[\"']", code)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_nothing_imports_torch_ao(path: Path) -> None:
    assert not {n for n in imports(path) if re.match(r"torch\.(ao|quantization)\b", n)}
    assert not re.search(r"import_module\([\"']torch\.(ao|quantization)", path.read_text())


@pytest.mark.parametrize("path", [p for p in SOURCES if "backends/x86" not in p.as_posix()], ids=module_of)
def test_only_one_folder_knows_quantized_dtypes(path: Path) -> None:
    assert not re.search(r"\bquint8|\bqint8|\bqint32|ops\.quantized|quantize_per_(tensor|channel)\b", path.read_text())


def test_one_subclass_of_the_interpreter() -> None:
    found = [p for p in SOURCES if re.search(r"class \w+\(.*Interpreter\)", p.read_text())]
    assert [module_of(p) for p in found] == ["compiler.execution.visitor"]


@pytest.mark.parametrize(
    "path",
    [*SOURCES, *(p for folder in ("tests", "benchmarks", "examples") for p in sorted((ROOT / folder).rglob("*.py")))],
    ids=str,
)
def test_no_file_is_longer_than_250_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 250


def test_every_package_is_listed_for_the_wheel() -> None:
    folders = {p.parent for folder in FOLDERS for p in (ROOT / folder).rglob("__init__.py")}
    names = {".".join(("fxquant", *folder.relative_to(ROOT).parts)) for folder in folders}
    listed = set(re.findall(r'^    "(fxquant\.[\w.]+)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert listed == names
