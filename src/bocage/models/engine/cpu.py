"""The encoder on CPUs with AMX, in bfloat16, fp32 or int8, on kernels of our own.

Read ``encoder.py`` first: this is the same network. What differs:

* one sequence for all sensors, ordered by place, then time, then band set, so that position is two
  small tables (time and place) and rotations are applied inside attention;
* gains and biases of norms are folded into the linear map that follows; q, k and v are one map;
* a patch goes from pixels to its projection without an upsampled image, normalized on the way;
* norms before a linear map, GELU and sums after it are part of it; weights are packed once;
* fp32 products run on the bf16 tile unit, three numbers per value (``products.cpp``);
* statistics, softmax and rotations are fp32; int8 products are oneDNN's.

Axes: B batch, H W pixels, h w patch rows and columns, T timesteps, C bands, S band sets of all
sensors together, N = h w T S tokens, M heads, K channel pairs of a head, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.memory import keep_freed_memory
from bocage.models.attention import Block
from bocage.models.config import ModelConfig
from bocage.models.encoder import Encoder
from bocage.models.engine import kernels, tables
from bocage.models.engine.kernels import Rotation, TokenOrder
from bocage.models.engine.library import why_unavailable
from bocage.models.engine.tables import Angles
from bocage.models.missing import normalization
from bocage.models.packing import plan_packing
from bocage.models.patch_embedding import PatchEmbedding

BLOCK_BYTES = 2**21
"""Pixels of the patches projected at once. Small blocks reread the weights: base in bf16 took
4.6 ms with 1 MiB, 3.8 with 2 MiB, 5.8 with 4 MiB (4 x 256 tokens, 2 cores, 2026-11-21)."""

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.bfloat16}


def why_unsuited(config: ModelConfig, precision: str) -> str | None:
    """The reason why this engine cannot run a network, or None if it can."""
    head_width = config.width // config.heads
    if precision != "fp32" and head_width not in kernels.HEAD_WIDTHS:
        return f"there is no attention kernel for heads of width {head_width}"
    if head_width % 16 or config.width % 32:
        return f"heads of width {head_width} are not a multiple of 16, or {config.width} not of 32"
    if config.base_patch_size != 8 or len(config.pixel_hidden or (1,)) != 1:
        return "its patch embedding is not that of a release"
    return why_unavailable()


class CpuBackend:
    """Patch embedding and blocks; see ``FastEncoder`` for what is around them."""

    def __init__(self, encoder: Encoder, precision: str) -> None:
        self.config = encoder.config
        self.dtype = DTYPES[precision]
        self.norm = encoder.norm
        blocks = [cast(Block, block) for block in encoder.blocks]
        self.blocks: Sequence[Int8Block | FastBlock]
        if precision == "int8":
            self.blocks = [Int8Block(block) for block in blocks]
        else:
            self.blocks = [FastBlock(block, self.dtype) for block in blocks]
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
        for name, pixels in values.items():
            dense = pixels.float().contiguous()
            encoding = encodings[name].to(self.dtype)
            for i, embedder in enumerate(self.embedders[name]):
                tokens = embedder(dense, patch_size, raw=name in raw)
                torch.add(tokens, encoding[..., i, :], out=next(slots))
        return x

    def prepare(
        self, angles: list[Angles] | None, order: TokenOrder
    ) -> tuple[list[Rotation | None], TokenOrder]:
        """What ``run`` needs to know of a shape and its dates."""
        if angles is None:
            return [None] * len(self.blocks), order
        return [tables.rotation(time, place) for time, place in angles], order

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
        for block, rotation in zip(self.blocks, rotations, strict=True):
            x = block(x, rotation, order)
        return x if packing is None else packing.unpack(x)

    def pool(self, x: Tensor, weight: Tensor) -> Tensor:
        """Last norm and weighted mean of x [..., L, D] over L, fp32 [..., D]."""
        norm = self.norm
        return kernels.norm_pool(x, weight, norm.weight.detach(), norm.bias.detach(), norm.eps)


class FastBlock:
    """One transformer block."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attention, mlp = block.attn, block.mlp
        self.heads = attention.heads
        self.epsilon = block.norm1.eps
        self.qkv = PackedLinear(*fold_norm(block.norm1, *merge_qkv(block)), dtype)
        self.proj = PackedLinear(attention.proj.weight, attention.proj.bias, dtype)
        self.fc1 = PackedLinear(*fold_norm(block.norm2, mlp.fc1.weight, mlp.fc1.bias), dtype)
        self.fc2 = PackedLinear(mlp.fc2.weight, mlp.fc2.bias, dtype)

    def __call__(self, x: Tensor, rotation: Rotation | None, order: TokenOrder) -> Tensor:
        """Tokens [B, N, D] to [B, N, D]."""
        qkv = self.qkv(x, norm_epsilon=self.epsilon)
        x = self.proj(self._attend(qkv, rotation, order), plus=x)
        hidden = self.fc1(x, norm_epsilon=self.epsilon, gelu=True)
        return self.fc2(hidden, plus=x)

    def _attend(self, qkv: Tensor, rotation: Rotation | None, order: TokenOrder) -> Tensor:
        if qkv.dtype == torch.bfloat16:
            return kernels.attention(qkv, self.heads, rotation, order)
        if rotation is not None:
            kernels.rotate_qk_(qkv, self.heads, rotation, order)
        mask = None
        if order.lengths is not None:
            counts = order.lengths.clamp(min=1)  # a sample without tokens reads its padding
            mask = (torch.arange(qkv.shape[1]) < counts[:, None])[:, None, None]
        n_batch, n_tokens, _ = qkv.shape
        q, k, v = qkv.view(n_batch, n_tokens, 3, self.heads, -1).transpose(1, 3).unbind(2)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).reshape(n_batch, n_tokens, -1)


class Int8Block:
    """One transformer block with its linear maps in int8: one scale per token and per channel.

    Tokens stay bfloat16. A product leaves oneDNN as bfloat16 without its token's scale and its
    bias; whatever reads it next applies both.
    """

    def __init__(self, block: Block) -> None:
        attention, mlp = block.attn, block.mlp
        self.heads = attention.heads
        self.epsilon = block.norm1.eps
        self.qkv = Int8Linear(*fold_norm(block.norm1, *merge_qkv(block)))
        self.proj = Int8Linear(attention.proj.weight, attention.proj.bias)
        self.fc1 = Int8Linear(*fold_norm(block.norm2, mlp.fc1.weight, mlp.fc1.bias))
        self.fc2 = Int8Linear(mlp.fc2.weight, mlp.fc2.bias)

    def __call__(self, x: Tensor, rotation: Rotation | None, order: TokenOrder) -> Tensor:
        """Tokens [B, N, D] to [B, N, D], in place."""
        codes, scale = kernels.quantize(x, norm_epsilon=self.epsilon)
        attended = kernels.attention(
            self.qkv(codes), self.heads, rotation, order, rescale=(scale, self.qkv.bias)
        )
        codes, scale = kernels.quantize(attended)
        codes, scale = kernels.quantize(
            x,
            add=self.proj(codes),
            rescale=(scale, self.proj.bias),
            norm_epsilon=self.epsilon,
        )
        hidden = self.fc1(codes)
        codes, scale = kernels.quantize(hidden, rescale=(scale, self.fc1.bias), gelu=True)
        return kernels.add_(x, self.fc2(codes), (scale, self.fc2.bias))


class Int8Linear:
    """A linear map of int8 codes; weights have one scale per output channel."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Weight [n_out, n_in], bias [n_out]."""
        weight = weight.detach().float()
        self.scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-20)
        codes = (weight / self.scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(codes, [1024, weight.shape[1]])
        self.zero = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = bias.detach().float().contiguous()

    def __call__(self, codes: Tensor) -> Tensor:
        """bf16 [..., n_out] of codes [..., n_in], to be rescaled by the scale of each row."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes,
            1.0,
            0,
            self.weight,
            self.scale,
            self.zero,
            None,
            1.0,
            0,
            torch.bfloat16,
            "none",
            [],
            "",
        )
        return out


class FastPatchEmbedding:
    """One band set: pixels to tokens, a block of patches at a time."""

    def __init__(
        self, embedder: PatchEmbedding, sensor: str, bands: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        projection = embedder.proj
        assert isinstance(projection, nn.Conv2d | nn.Linear)
        weight, bias = projection.weight, projection.bias
        assert bias is not None
        self.dtype = dtype
        self.base = embedder.base
        self.hidden: tuple[Tensor, Tensor] | None = None
        self.pixel_width = len(bands)
        if isinstance(projection, nn.Conv2d):  # [D, C, 8, 8] to row, column, band
            weight = weight.permute(0, 2, 3, 1).flatten(1)
        else:
            network = embedder.pixel_proj[0]
            assert isinstance(network, nn.Linear)
            self.hidden = kernels.pack_hidden(network.weight, network.bias, dtype)
            self.pixel_width = network.out_features
        self.bands = torch.full((16,), -1, dtype=torch.int32)
        self.bands[: len(bands)] = torch.tensor(bands, dtype=torch.int32)
        low, span = normalization(sensor)
        self.scaling = torch.ones(16), torch.zeros(16)
        self.raw_scaling = torch.ones(16), torch.zeros(16)
        self.raw_scaling[0][: len(bands)] = 1 / span[list(bands)]
        self.raw_scaling[1][: len(bands)] = -low[list(bands)] / span[list(bands)]
        self.width = len(weight)
        self.project = PackedLinear(weight, bias, dtype)

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
            part.copy_(self.project(pixels))
        return out.view(n_batch, *grid, times, self.width)


class PackedLinear:
    """A linear map whose weight is laid out once for the kernel; fp32 or bf16 in and out."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        """Weight [n_out, n_in], bias [n_out]."""
        self.weight = kernels.pack_weight(weight, dtype)
        self.bias = bias.detach().float().contiguous()

    def __call__(
        self,
        x: Tensor,
        *,
        norm_epsilon: float | None = None,
        gelu: bool = False,
        plus: Tensor | None = None,
    ) -> Tensor:
        """Map x [..., n_in] to [..., n_out]; see ``kernels.product`` for the rest."""
        return kernels.product(
            x, self.weight, self.bias, norm_epsilon=norm_epsilon, gelu=gelu, plus=plus
        )


def merge_qkv(block: Block) -> tuple[Tensor, Tensor]:
    """Weight [3 D, D] and bias [3 D]; channel pairs (2k, 2k + 1) of q and k become (k, k + K).

    The order of channels within a head does not change a score, and halves load faster than pairs.
    """
    attention = block.attn
    heads, width = attention.heads, attention.head_width
    halves = torch.arange(heads * width).view(heads, width // 2, 2).transpose(1, 2).flatten()
    q, k, v = attention.q, attention.k, attention.v
    return (
        torch.cat([q.weight[halves], k.weight[halves], v.weight]),
        torch.cat([q.bias[halves], k.bias[halves], v.bias]),
    )


def fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear map that follows a norm, with the norm's own folded in."""
    return weight * norm.weight, bias + weight @ norm.bias
