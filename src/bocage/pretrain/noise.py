"""Random numbers of a training step that belong to samples, not to the batch they are in.

Each sample's numbers follow from the step's generator and the sample's id alone, so the same step
on one process, on two, or in smaller pieces draws the same masks and drops the same bands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def sample_noise(ids: Sequence[str], n_numbers: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers [0, 1) [B, n_numbers], on the CPU; advances ``generator`` by one draw."""
    key = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    own = torch.Generator()
    noise = torch.empty(len(ids), n_numbers)
    for row, name in zip(noise, ids, strict=True):
        digest = hashlib.blake2b(f"{key}:{name}".encode(), digest_size=8).digest()
        own.manual_seed(int.from_bytes(digest) >> 1)
        torch.rand(n_numbers, generator=own, out=row)
    return noise
