"""Several processes on one network, started by ``torchrun``; one process needs nothing of this.

Gradients are summed by one all-reduce after the last backward of a step. DistributedDataParallel
would have to be told anew which parameters have gradients when the backbone begins to learn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from bocage.models.process_group import leave_process_group

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """One process among those that train together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    @property
    def writes(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """Sum over all processes."""
        if self.world_size == 1:
            return value
        x = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(x)
        return float(x)

    def sum_gradients(self, network: nn.Module) -> None:
        """Sum the gradients of all processes, the same in each."""
        if self.world_size == 1:
            return
        # Trainable, not "has a gradient": the processes must agree on what they exchange.
        parameters = [p for p in network.parameters() if p.requires_grad]
        present = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        dist.all_reduce(present, dist.ReduceOp.MAX)
        used = [p for p, there in zip(parameters, present, strict=True) if there]
        if not used:
            return
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        flat = torch.cat([g.flatten() for g in parts])
        dist.all_reduce(flat)
        start = 0
        for p in used:
            p.grad = flat[start : start + p.numel()].view_as(p)
            start += p.numel()

    def sum_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Sum the arrays of a metric in place over all processes."""
        if self.world_size == 1:
            return
        for array in state.values():
            x = torch.from_numpy(array).to(self.device)
            dist.all_reduce(x)
            array[...] = x.cpu().numpy()

    def wait(self) -> None:
        """Return once every process is here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started; alone if it did not start any."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(device=torch.device(device))
        return
    place = torch.device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    joined_before = dist.is_initialized()
    if not joined_before:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(rank=dist.get_rank(), world_size=world_size, device=place)
    finally:
        if not joined_before:
            leave_process_group()
