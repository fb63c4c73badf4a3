"""Several processes on one model: DistributedDataParallel, or FSDP2 with sharded parameters.

Processes are started by ``torchrun``, which says who is who in the environment. With one process
everything here does nothing, so that the loop is written once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from bocage.errors import ConfigError
from bocage.models.attention import Block
from bocage.models.process_group import leave_process_group

STRATEGIES = ("auto", "ddp", "fsdp2")
"""How processes share the work; auto is DDP when there is more than one process."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One process among all that train the same model."""

    rank: int = 0
    world_size: int = 1
    device: torch.device
    strategy: str = "single"
    """single, ddp or fsdp2."""

    @property
    def writes(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0


@contextmanager
def join_group(device: str = "cpu", strategy: str = "auto") -> Iterator[Group]:
    """Join the processes that ``torchrun`` started; alone if it did not start any."""
    if strategy not in STRATEGIES:
        raise ConfigError(
            got=f"strategy {strategy!r}",
            expected=f"one of {', '.join(STRATEGIES)}",
            fix="correct --strategy",
        )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    started = "RANK" in os.environ
    if world_size == 1 and (strategy != "fsdp2" or not started):
        if strategy == "fsdp2":
            raise ConfigError(
                got="strategy fsdp2 in a single process",
                expected="processes started by torchrun",
                fix="run: torchrun --nproc-per-node 2 -m bocage pretrain run ...",
            )
        yield Group(device=_device(device, 0))
        return
    place = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Group(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            device=place,
            strategy="ddp" if strategy == "auto" else strategy,
        )
    finally:
        leave_process_group()


def share(module: nn.Module, group: Group) -> nn.Module:
    """The module as all processes train it; its forward runs one micro-batch."""
    if group.strategy == "ddp":
        # A batch without a sensor leaves that sensor's embedder without gradients.
        return DistributedDataParallel(
            module, find_unused_parameters=True, gradient_as_bucket_view=True
        )
    if group.strategy == "fsdp2":
        mesh = init_device_mesh(group.device.type, (group.world_size,))
        for part in module.modules():
            if isinstance(part, Block):
                fully_shard(part, mesh=mesh)
        fully_shard(module, mesh=mesh)
    return module


def gradients_stay_local(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around one micro-batch: only the last of a step exchanges gradients."""
    if isinstance(module, DistributedDataParallel) and not last:
        return cast(AbstractContextManager[None], module.no_sync())
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    return nullcontext()


def touch_whole_parameters(module: nn.Module) -> Tensor | float:
    """Zero, made of every parameter that is whole at present; for the loss under FSDP2.

    FSDP2 reduces the gradients of a group together: all processes must have the same ones, also
    those of a sensor that only some batches hold. Blocks are sharded here and always used.
    """
    whole = [
        p.reshape(-1)[:1]
        for p in module.parameters()
        if p.requires_grad and not isinstance(p, DTensor)
    ]
    return 0.0 * torch.cat(whole).sum() if whole else 0.0


def sum_over_processes(values: list[float], group: Group) -> list[float]:
    """Element-wise sum over all processes, the same list in each."""
    if group.world_size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=group.device)
    dist.all_reduce(tensor)
    return cast(list[float], tensor.tolist())


def gather_objects(value: Any, group: Group) -> list[Any]:
    """One value of each process, in the order of ranks."""
    if group.world_size == 1:
        return [value]
    found: list[Any] = [None] * group.world_size
    dist.all_gather_object(found, value)
    return found


def wait_for_all(group: Group) -> None:
    """Return once every process is here."""
    if group.world_size > 1:
        dist.barrier()


def whole(x: Tensor) -> Tensor:
    """The tensor itself, put together from all processes if it is sharded (all must call)."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def like(x: Tensor, reference: Tensor) -> Tensor:
    """``x``, whole and the same in every process, sharded and placed as ``reference``."""
    x = x.to(reference.device, reference.dtype)
    if not isinstance(reference, DTensor):
        return x
    # Every process has read the same file: nothing needs to be sent.
    return distribute_tensor(x, reference.device_mesh, reference.placements, src_data_rank=None)


def load_whole_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into the (perhaps sharded) parameters and buffers of the same names."""
    with torch.no_grad():
        for name, target in module.state_dict().items():
            target.copy_(like(tensors[name], target))


def _device(device: str, local_rank: int) -> torch.device:
    place = torch.device(device)
    if place.type != "cuda":
        return place
    if not torch.cuda.is_available():
        raise ConfigError(
            got=f"device {device}",
            expected="a machine where torch sees a GPU",
            fix="use --device cpu, or install a CUDA build of torch",
        )
    return torch.device("cuda", local_rank if place.index is None else place.index)
