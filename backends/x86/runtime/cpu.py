"""What this CPU can do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch


@lru_cache
def has_vnni() -> bool:
    """Whether it has AVX512-VNNI. AVX-VNNI alone does not count: fbgemm uses the AVX512 form only."""
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni", False))
