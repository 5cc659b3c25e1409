"""What each process of the DistributedDataParallel test runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fxquant


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8 * 6 * 6, 4)
    )


def train(rank: int, world: int, folder: str, scales: Any) -> None:
    """Four steps, each rank on its own data; the second half with frozen scales. Saves the state at the end."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    config = fxquant.QuantConfig(scales=scales)
    calibration = [torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))]
    prepared = fxquant.prepare(build(), scheme="qat", calibration=calibration, config=config).train()
    prepared.freeze_observers(after=0.5, steps=4)
    ddp = DistributedDataParallel(prepared)
    optimizer = torch.optim.Adam(ddp.parameters(), 1e-2)
    own = torch.Generator().manual_seed(10 + rank)
    for _ in range(4):
        optimizer.zero_grad()
        # The second rank sees wider values: the ranges can only agree if the ranks do.
        ddp(torch.randn(4, 1, 8, 8, generator=own) * (1 + 3 * rank)).square().mean().backward()
        optimizer.step()
    torch.save(prepared.state_dict(), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
