"""The encoder on CPUs with AMX, in bfloat16, fp32 or int8, on kernels of our own.

Read ``encoder.py`` first: this is the same network. What differs:

* one sequence for all sensors, ordered by place, then time, then band set, so that position is two
  small tables (time and place) and rotations are applied inside attention;
* a patch goes from pixels to its projection without an upsampled image, normalized on the way;
* q, k and v are one map; norms before a linear map, GELU and sums after it are part of it;
* in bf16 and int8 tokens stay in the order of tiles from the first block to the last;
* the pooler of v1.3 reads with a table of queries (``locations.py``);
* statistics, softmax and rotations are fp32.

Axes: B batch, H W pixels, h w patch rows and columns, T timesteps, C bands, S band sets of all
sensors together, N = h w T S tokens, M heads, K channel pairs of a head, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import cast

import torch
from torch import Tensor

from bocage.memory import keep_freed_memory
from bocage.models.attention import Block
from bocage.models.config import ModelConfig
from bocage.models.encoder import Encoder
from bocage.models.engine import kernels, locations, tables
from bocage.models.engine.blocks import FastBlock, run_blocks
from bocage.models.engine.kernels import Rotation, TokenOrder
from bocage.models.engine.linear import Linear
from bocage.models.engine.locations import FastPooler
from bocage.models.engine.tables import Angles
from bocage.models.missing import normalization
from bocage.models.native import cpu_flags, why_unavailable
from bocage.models.packing import plan_packing
from bocage.models.patch_embedding import PatchEmbedding

BLOCK_BYTES = 2**21
"""Pixels of the patches projected at once. Small blocks reread the weights: base in bf16 took
4.6 ms with 1 MiB, 3.8 with 2 MiB, 5.8 with 4 MiB (4 x 256 tokens, 2 cores, 2026-11-21)."""

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.bfloat16}


def why_unsuited(config: ModelConfig, precision: str) -> str | None:
    """The reason why this engine cannot run a network, or None if it can."""
    head_width = config.width // config.heads
    if head_width not in kernels.HEAD_WIDTHS:
        return f"there is no attention kernel for heads of width {head_width}"
    if config.width % 32:
        return f"{config.width} is not a multiple of 32"
    if precision == "int8" and (config.width % 64 or "amx_int8" not in cpu_flags()):
        return f"the processor lacks amx_int8, or {config.width} is not a multiple of 64"
    if config.base_patch_size != 8 or len(config.pixel_hidden or (1,)) != 1:
        return "its patch embedding is not that of a release"
    return why_unavailable()


class CpuBackend:
    """Patch embedding and blocks; see ``FastEncoder`` for what is around them."""

    takes_many_callers = True
    """Several threads may call at once, each on its own cores."""

    def __init__(self, encoder: Encoder, precision: str) -> None:
        self.config = encoder.config
        self.dtype = DTYPES[precision]
        self.norm = encoder.norm
        self.blocks = [FastBlock(cast(Block, block), precision) for block in encoder.blocks]
        self.embedders = {
            name: [
                FastPatchEmbedding(cast(PatchEmbedding, embedder), name, bands, self.dtype)
                for embedder, bands in zip(
                    encoder.patch_embeddings.per_modality_embeddings[name].children(),
                    encoder.config.band_sets[name],
                    strict=True,
                )
            ]
            for name in encoder.config.inputs
        }
        self.pooler: FastPooler | None = None
        pooler = encoder.attention_pooler
        if pooler is not None and locations.why_unsuited(encoder.config) is None:
            self.pooler = FastPooler(pooler, precision)
        keep_freed_memory()

    def embed(
        self,
        values: Mapping[str, Tensor],
        encodings: Mapping[str, Tensor],
        patch_size: int,
        raw: Set[str] = frozenset(),
    ) -> Tensor:
        """Tokens [B, h, w, T, S, D] of values, with their encodings; ``raw`` sensors are scaled."""
        n_sets = sum(len(self.embedders[name]) for name in values)
        n_batch, rows, cols, times, _ = next(iter(values.values())).shape
        shape = (n_batch, rows // patch_size, cols // patch_size, times, n_sets)
        x = torch.empty(*shape, self.config.width, dtype=self.dtype)
        slots = iter(x.unbind(4))
        for name, imagery in values.items():
            pixels = imagery.float()
            encoding = encodings[name].to(self.dtype)
            for i, embedder in enumerate(self.embedders[name]):
                tokens = embedder(pixels, patch_size, raw=name in raw)
                torch.add(tokens, encoding[..., i, :], out=next(slots))
        return x

    def prepare(
        self, angles: list[Angles] | None, order: TokenOrder
    ) -> tuple[list[Rotation | None], TokenOrder]:
        """What ``run`` needs to know of a shape and its dates."""
        if angles is None:
            return [None] * len(self.blocks), order
        turns = tables.turns
        return [Rotation(times=turns(time), places=turns(place)) for time, place in angles], order

    def run(
        self,
        x: Tensor,
        prepared: tuple[list[Rotation | None], TokenOrder],
        keep: Tensor | None,
    ) -> Tensor:
        """Tokens [B, N, D] after the last block; those that are not kept leave the sequence."""
        rotations, order = prepared
        packing = None if keep is None else plan_packing(keep)
        if packing is not None:
            x, order = packing.pack(x), tables.packed_order(order, packing)
        x = run_blocks(self.blocks, x.contiguous(), rotations, order)
        return x if packing is None else packing.unpack(x)

    def pool(self, x: Tensor, weight: Tensor) -> Tensor:
        """Last norm and weighted mean of x [..., L, D] over L, fp32 [..., D]."""
        norm = self.norm
        return kernels.norm_pool(x, weight, norm.weight.detach(), norm.bias.detach(), norm.eps)


class FastPatchEmbedding:
    """One band set: pixels to tokens, a block of patches at a time."""

    def __init__(
        self, embedder: PatchEmbedding, sensor: str, bands: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        weight, bias = embedder.flat_projection()
        self.dtype = dtype
        self.base = embedder.base
        self.hidden: tuple[Tensor, Tensor] | None = None
        self.pixel_width = len(bands)
        for layer in embedder.pixel_layers():  # one or none
            self.hidden = kernels.pack_hidden(layer.weight, layer.bias, dtype)
            self.pixel_width = layer.out_features
        self.bands = torch.full((16,), -1, dtype=torch.int32)
        self.bands[: len(bands)] = torch.tensor(bands, dtype=torch.int32)
        low, span = normalization(sensor)
        self.scaling = torch.ones(16), torch.zeros(16)
        self.raw_scaling = torch.ones(16), torch.zeros(16)
        self.raw_scaling[0][: len(bands)] = 1 / span[list(bands)]
        self.raw_scaling[1][: len(bands)] = -low[list(bands)] / span[list(bands)]
        self.width = len(weight)
        precision = "fp32" if dtype == torch.float32 else "bf16"  # of int8 too
        self.project = Linear(weight, bias, precision)

    def __call__(self, x: Tensor, patch_size: int, *, raw: bool = False) -> Tensor:
        """Tokens [B, h, w, T, D] of fp32 x [B, H, W, T, C], in product units if ``raw``."""
        n_batch, rows, cols, times, _ = x.shape
        grid = rows // patch_size, cols // patch_size
        by_row = tables.resize_taps(rows, patch_size, self.base)
        by_col = tables.resize_taps(cols, patch_size, self.base)
        out = torch.empty(n_batch * grid[0] * grid[1] * times, self.width, dtype=self.dtype)
        n_patch = self.base**2 * self.pixel_width
        step = max(BLOCK_BYTES // (n_patch * self.dtype.itemsize), 64)
        for first in range(0, len(out), step):
            part = out[first : first + step]
            pixels = torch.empty(len(part), n_patch, dtype=self.dtype)
            kernels.patch_pixels(
                x,
                pixels,
                first=first,
                taps=(by_row, by_col),
                bands=self.bands,
                scaling=self.raw_scaling if raw else self.scaling,
                hidden=self.hidden,
            )
            self.project.rows(pixels, out=part)
        return out.view(n_batch, *grid, times, self.width)
