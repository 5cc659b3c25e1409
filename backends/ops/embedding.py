"""Which embeddings are refused."""

from __future__ import annotations

from torch import nn

CHANGING = "max_norm changes the table as it reads"


def refuse_changing_table(module: nn.Module) -> str | None:
    """Why the rows of an embedding cannot be packed."""
    return CHANGING if getattr(module, "max_norm", None) else None


def refuse_bag(module: nn.Module) -> str | None:
    """Why the rows of an ``nn.EmbeddingBag`` cannot be packed."""
    if getattr(module, "mode", "") == "max":
        return "no kernel takes the maximum of int8 rows"
    return refuse_changing_table(module)
