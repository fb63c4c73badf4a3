"""The encoder rearranged for ``torch.compile``: GPUs, other CPUs; fp32 or bfloat16.

Read ``encoder.py`` first: this is the same network. What differs is what ``cpu.py`` lists, in
plain torch operations that a compiler can fuse: one sequence ordered by place, time and band set;
one map for q, k and v; norms folded into the maps that follow them; rotations from two small
tables; patches cut out before the pixel network rather than after it.

Axes: B batch, H W pixels, h w patch rows and columns, T timesteps, C bands, S band sets of all
sensors together, N = h w T S tokens, M heads, K channel pairs of a head, D width.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Set
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.models.attention import Block
from bocage.models.encoder import Encoder
from bocage.models.engine.blocks import merge_qkv
from bocage.models.engine.kernels import TokenOrder
from bocage.models.engine.linear import fold_norm
from bocage.models.engine.locations import FastPooler
from bocage.models.engine.tables import Angles
from bocage.models.missing import to_unit_range
from bocage.models.native import cache_folder
from bocage.models.patch_embedding import PatchEmbedding, resize

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class CompiledBackend:
    """Patch embedding and blocks; see ``FastEncoder`` for what is around them."""

    takes_many_callers = False  # nothing says that tracing and compiling do

    def __init__(self, encoder: Encoder, precision: str, *, compile: bool) -> None:  # noqa: A002
        """With ``compile`` each shape is compiled at first use; without it the algebra stays.

        Graphs are kept in torch's cache, which TORCHINDUCTOR_CACHE_DIR places; else it lies in
        ``cache_folder()``. A later process that meets the same network and shape reads them.
        """
        self.dtype = DTYPES[precision]
        self.norm = encoder.norm
        self.pooler: FastPooler | None = None  # runs as plain modules
        device = encoder.norm.weight.device
        self._embed: Any = Embedding(encoder).to(self.dtype)
        self._blocks: Any = Blocks(encoder).to(self.dtype)
        self.device = device
        if compile:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torch"))
            # Shapes recur for thousands of windows: one graph each, never a symbolic one.
            self._embed, self._blocks = (
                report_compiling(torch.compile(module, dynamic=False, options=_options(device)))
                for module in (self._embed, self._blocks)
            )

    def embed(
        self,
        values: Mapping[str, Tensor],
        encodings: Mapping[str, Tensor],
        patch_size: int,
        raw: Set[str] = frozenset(),
    ) -> Tensor:
        """Tokens [B, h, w, T, S, D] of values, with their encodings; ``raw`` sensors are scaled."""
        pixels = {
            name: (to_unit_range(name, x) if name in raw else x).to(self.dtype)
            for name, x in values.items()
        }
        added = {name: encodings[name].to(self.dtype) for name in values}
        x: Tensor = self._embed(pixels, added, patch_size)
        return x

    def prepare(self, angles: list[Angles] | None, order: TokenOrder) -> Any:
        """Angles on the device, and how many tokens share a place and a time."""
        if angles is None:
            return None, 1
        pairs = [(time.to(self.device), place.to(self.device)) for time, place in angles]
        times, places = pairs[0][0].shape[1], pairs[0][1].shape[0]
        return pairs, order.time.shape[1] // (times * places)

    def run(self, x: Tensor, prepared: Any, keep: Tensor | None) -> Tensor:
        """Tokens [B, N, D] after the last block; those that are not kept are masked."""
        mask = None
        if keep is not None:
            mask = (keep | ~keep.any(dim=1, keepdim=True))[:, None, None]
        out: Tensor = self._blocks(x, *prepared, mask)
        return out

    def pool(self, x: Tensor, weight: Tensor) -> Tensor:
        """Last norm and weighted mean of x [..., L, D] over L, fp32 [..., D]."""
        normed = functional.layer_norm(x.float(), x.shape[-1:], eps=self.norm.eps)
        mean = torch.einsum("...ld,l->...d", normed, weight)
        return mean * self.norm.weight + self.norm.bias


def report_compiling(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function; a call that compiles logs how long it took and what the cache held."""
    from torch._dynamo.utils import counters

    def graphs() -> tuple[int, int]:
        found = counters["inductor"]
        return found["fxgraph_cache_hit"], found["fxgraph_cache_miss"]

    def reporting(*arguments: Any) -> Tensor:
        before, started = graphs(), time.perf_counter()
        out = run(*arguments)
        hits, misses = (now - then for now, then in zip(graphs(), before, strict=True))
        if hits + misses:
            seconds = time.perf_counter() - started
            logger.info(
                "compiled in %.1f s; %d of %d graphs from the cache", seconds, hits, hits + misses
            )
        return out

    return reporting


def _options(device: torch.device) -> dict[str, Any] | None:
    # Weights are constants of the graph on CPUs, where oneDNN lays them out once.
    return {"freezing": True} if device.type == "cpu" else None


class Embedding(nn.Module):
    """Pixels of all sensors to one sequence."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        embeddings = encoder.patch_embeddings.per_modality_embeddings
        self.embedders = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    FoldedPatchEmbedding(cast(PatchEmbedding, embedder), bands)
                    for embedder, bands in zip(
                        embeddings[name].children(), encoder.config.band_sets[name], strict=True
                    )
                )
                for name in encoder.config.inputs
            }
        )

    def forward(
        self, values: dict[str, Tensor], encodings: dict[str, Tensor], patch_size: int
    ) -> Tensor:
        """Tokens [B, h, w, T, S, D]."""
        tokens = [
            embedder(x, patch_size) + encodings[name][..., i, :]
            for name, x in values.items()
            for i, embedder in enumerate(self.embedders[name].children())
        ]
        return torch.stack(tokens, dim=4)


class Blocks(nn.Module):
    """All transformer blocks."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FoldedBlock(cast(Block, block)) for block in encoder.blocks)

    def forward(
        self, x: Tensor, angles: list[Angles] | None, n_sets: int, mask: Tensor | None
    ) -> Tensor:
        """Tokens [B, N, D]; ``mask`` [B, 1, 1, N] is True where a token may be read."""
        for i, block in enumerate(self.blocks):
            rotation = None if angles is None else combine(*angles[i], n_sets=n_sets)
            x = block(x, rotation, mask)
        return x


class FoldedBlock(nn.Module):
    """One transformer block with three linear maps fewer and no gains in its norms."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention, mlp = block.attn, block.mlp
        self.heads = attention.heads
        self.epsilon = block.norm1.eps
        self.qkv = linear(*fold_norm(block.norm1, *merge_qkv(block)))
        self.proj = linear(attention.proj.weight, attention.proj.bias)
        self.fc1 = linear(*fold_norm(block.norm2, mlp.fc1.weight, mlp.fc1.bias))
        self.fc2 = linear(mlp.fc2.weight, mlp.fc2.bias)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> Tensor:
        """Tokens [B, N, D]; rotation is the cosine and sine [B or 1, N, M, K]."""
        q, k, v = self.qkv(normalize(x, self.epsilon)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if rotation is not None:
            q, k = turn(q, *rotation), turn(k, *rotation)
        attended = functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
        )
        x = x + self.proj(attended.transpose(1, 2).flatten(-2))
        hidden = functional.gelu(self.fc1(normalize(x, self.epsilon)))
        out: Tensor = x + self.fc2(hidden)
        return out


class FoldedPatchEmbedding(nn.Module):
    """One band set: cut patches out, then project their pixels."""

    def __init__(self, embedder: PatchEmbedding, bands: tuple[int, ...]) -> None:
        super().__init__()
        self.bands = list(bands)
        self.base = embedder.base
        maps = [(linear(m.weight, m.bias), nn.ReLU()) for m in embedder.pixel_layers()]
        self.hidden = nn.Sequential(*(part for pair in maps for part in pair))
        self.project = linear(*embedder.flat_projection())

    def forward(self, x: Tensor, patch_size: int) -> Tensor:
        """Tokens [B, h, w, T, D] of x [B, H, W, T, C]."""
        n_batch, rows, cols, times, _ = x.shape
        x = x[..., self.bands]
        h, w = rows // patch_size, cols // patch_size
        if patch_size != self.base:
            x = resize(x.permute(0, 3, 4, 1, 2), self.base, patch_size).permute(0, 3, 4, 1, 2)
        patches = x.reshape(n_batch, h, self.base, w, self.base, times, -1)
        pixels = self.hidden(patches.permute(0, 1, 3, 5, 2, 4, 6))  # [B, h, w, T, 8, 8, C]
        out: Tensor = self.project(pixels.flatten(4))
        return out


def combine(time: Tensor, place: Tensor, *, n_sets: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B or 1, N, M, K] of angles of time [B or 1, T, M, K] plus place [P, M, K].

    Products of the small tables' cosines and sines: no cosine is taken of N angles.
    """
    ct, st = time.cos()[:, None, :, None], time.sin()[:, None, :, None]
    cp, sp = place.cos()[None, :, None, None], place.sin()[None, :, None, None]
    cos, sin = ct * cp - st * sp, st * cp + ct * sp  # [B, P, T, 1, M, K]
    cos, sin = (a.expand(-1, -1, -1, n_sets, -1, -1).flatten(1, 3) for a in (cos, sin))
    return cos, sin


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (k, k + K) of x [B, N, M, 2 K]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def normalize(x: Tensor, epsilon: float) -> Tensor:
    """LayerNorm without gain."""
    return functional.layer_norm(x, x.shape[-1:], eps=epsilon)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer of given values."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
