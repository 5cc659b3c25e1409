"""Graphs with pairs."""

from __future__ import annotations

from torch import fx, nn

import fxquant
from fxquant.backends.registry import create_backend
from fxquant.compiler.workflows.options import Options


def placed(gm: fx.GraphModule, kind: type[nn.Module]) -> list[fx.Node]:
    modules = dict(gm.named_modules())
    return [n for n in gm.graph.nodes if n.op == "call_module" and isinstance(modules[str(n.target)], kind)]


def options() -> Options:
    return Options(create_backend("reference"), fxquant.QuantConfig())
