"""Seam-free inference: over one large domain, every token attends within its own neighborhood.

Windows cut a scene at arbitrary lines, and embeddings jump where the cut was. Here the box of
``neighborhood_px`` moves with each cell instead (at the border of the domain it is shifted, not
shrunk), in the encoder, in the read of the location queries and in their look at each other. Pixels
are embedded once. Only models with rotary positions can do this: the others count from the corner.

Attention is computed for blocks of cells, which share most of their neighbors: the keys of a block
are the union of its cells' boxes, and a mask takes out what a cell does not see.

Axes: h w patch rows and columns, E elements of a cell (timesteps x band sets, or location queries),
M heads, D width, G cells a side of the box, U cells a side of a block's union.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from bocage.errors import ConfigError
from bocage.models.attention import Attention, Block
from bocage.models.encoder import Encoder, EncoderOutput
from bocage.models.engine import tables
from bocage.models.pooler import Locations, location_positions
from bocage.models.rope import days_since_first, rope_angles, rotate

MASK_BYTES = 2**26
"""Blocks attended at once are as many as their masks and keys fit in about this."""


@torch.no_grad()
def encode_seam_free(
    encoder: Encoder,
    values: Mapping[str, Tensor],
    timestamps: Tensor,
    patch_size: int,
    *,
    neighborhood_px: int = 16,
    location_query_patch_size: int | None = None,
    input_res_m: float = 10.0,
) -> EncoderOutput:
    """Tokens of one domain [1, H, W, T, C] of any size, without the seams of windows.

    ``neighborhood_px`` is the side of the box that a token sees, a multiple of the patch size.
    Complete data only. Raises ConfigError for v1 and v1.1, and for a batch.
    """
    values = {name: values[name] for name in encoder.config.modalities if name in values}
    first = next(iter(values.values()))
    _check(encoder, first, patch_size, neighborhood_px)
    box = neighborhood_px // patch_size
    positions = encoder.config.positions
    step = input_res_m * patch_size / 10
    grid = first.shape[1] // patch_size, first.shape[2] // patch_size
    parts = [
        encoder.patch_embeddings(name, x, patch_size)
        + encoder.composite_encodings(name, grid, timestamps, step)
        for name, x in values.items()
    ]
    x = torch.cat(parts, dim=4)[0]  # [h, w, T, S, D]
    times, n_sets = x.shape[2:4]
    x = x.flatten(2, 3)
    places = tables.grid_places(grid, step, positions).to(x.device).view(*grid, 1, 2)
    places = places.expand(-1, -1, x.shape[2], -1)
    coordinates = places
    if positions.n_coordinates == 3:
        days = days_since_first(timestamps)[0] * positions.temporal_coordinate_scale
        days = days.repeat_interleave(n_sets)[:, None].expand(*grid, -1, -1)
        coordinates = torch.cat((days.to(x.device), places), dim=-1)
    for module in encoder.blocks:
        block = cast(Block, module)
        x = x + _attend(block.attn, block.norm1(x), coordinates, box)
        x = x + block.mlp(block.norm2(x))
    x = encoder.norm(x)
    tokens = x.unflatten(2, (times, n_sets))[None]
    sizes = [part.shape[4] for part in parts]
    split = dict(zip(values, torch.split(tokens, sizes, dim=4), strict=True))
    return EncoderOutput(
        tokens=split,
        visible={
            name: torch.ones(part.shape[:-1], dtype=torch.bool, device=x.device)
            for name, part in split.items()
        },
        locations=_locate(
            encoder,
            x,
            places,
            box=box,
            per_patch=patch_size // (location_query_patch_size or patch_size),
            step=step * positions.coordinate_scale,
        ),
    )


def reach_px(encoder: Encoder, neighborhood_px: int) -> int:
    """How far an output looks in the end: half a box per attention, summed over depth."""
    pooler = encoder.config.pooler
    depth = encoder.config.depth + (0 if pooler is None else pooler.depth + 1)
    return depth * (neighborhood_px // 2)


def _locate(
    encoder: Encoder, x: Tensor, places: Tensor, *, box: int, per_patch: int, step: float
) -> Locations | None:
    """The pooler of v1.3; its queries count as elements of the patch cell they lie in."""
    pooler = encoder.attention_pooler
    if pooler is None:
        return None
    if len(pooler.read_blocks) != 1:
        raise ConfigError(
            got=f"a pooler of depth {len(pooler.read_blocks)}",
            expected="depth 1, as released",
            fix="encode in windows",
        )
    h, w = x.shape[:2]
    at = location_positions((h, w), per_patch, step, x.device)
    at = _to_cells(at, per_patch)
    q = pooler.learned_query.expand(*at.shape[:3], -1)
    context = pooler.kv_proj(pooler.input_norm(x))
    read, look = cast(Block, pooler.read_blocks[0]), cast(Block, pooler.self_attn_blocks[0])
    q = q + _attend(read.attn, read.norm1(q), at, box, context=context, context_at=places)
    q = q + read.mlp(read.norm2(q))
    q = q + _attend(look.attn, look.norm1(q), at, box)
    q = q + look.mlp(look.norm2(q))
    tokens = _from_cells(pooler.norm(q), per_patch)[None]
    return Locations(
        tokens=tokens,
        positions=_from_cells(at, per_patch).flatten(0, 1)[None],
        student=None if pooler.student is None else pooler.student(tokens),
    )


def _to_cells(x: Tensor, side: int) -> Tensor:
    """[side h, side w, D] to [h, w, side side, D]."""
    rows, cols = x.shape[0] // side, x.shape[1] // side
    cells: Tensor = x.unflatten(1, (cols, side)).unflatten(0, (rows, side))
    return cells.transpose(1, 2).flatten(2, 3)


def _from_cells(x: Tensor, side: int) -> Tensor:
    """Undo ``_to_cells``."""
    grid: Tensor = x.unflatten(2, (side, side)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    return grid


def _attend(
    attention: Attention,
    x: Tensor,
    at: Tensor,
    box: int,
    *,
    context: Tensor | None = None,
    context_at: Tensor | None = None,
) -> Tensor:
    """Projected attention of x [h, w, E, D] at coordinates [h, w, E, X] within boxes."""
    read = x if context is None else context
    read_at = at if context_at is None else context_at
    q = attention.q(x).unflatten(-1, (attention.heads, -1))
    k, v = (map_(read).unflatten(-1, (attention.heads, -1)) for map_ in (attention.k, attention.v))
    frequencies = attention.frequencies()
    q = _turn(q, at, frequencies)
    k = _turn(k, read_at, frequencies)
    out: Tensor = attention.proj(neighborhood_attention(q, k, v, box).flatten(-2))
    return out


def _turn(x: Tensor, at: Tensor, frequencies: Tensor) -> Tensor:
    """Rotate x [h, w, E, M, D/M] by its coordinates [h, w, E, X]."""
    angles = rope_angles(at.reshape(1, -1, at.shape[-1]), frequencies)  # [1, M, N, K]
    turned = rotate(x.flatten(0, 2).transpose(0, 1)[None], angles)
    return turned[0].transpose(0, 1).view(x.shape)


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, box: int) -> Tensor:
    """Attention of q [h, w, E, M, d] to k and v [h, w, F, M, d] of the box of cells around it.

    The box of cell (i, j) has ``box`` cells a side and begins at i - box // 2, shifted to lie
    inside; in a domain smaller than the box every cell sees every other.
    """
    h, w = q.shape[:2]
    boxes = min(box, h), min(box, w)
    side = min(max(box // 2, 1), h, w)
    rows, cols = Blocks(h, boxes[0], side), Blocks(w, boxes[1], side)
    n_q, n_k = q.shape[2], k.shape[2]
    keys_bytes = rows.union * cols.union * n_k * k[0, 0, 0].numel() * 2 * k.element_size()
    mask_bytes = side * side * n_q * rows.union * cols.union * n_k
    per_call = max(1, MASK_BYTES // (keys_bytes + mask_bytes))
    out = torch.empty_like(q)
    for i in range(rows.n):
        r, see_row = rows.union_cells[i], rows.sees[i]  # [U], [side, U]
        band_q, band_k, band_v = q[rows.cells[i]], k[r], v[r]
        for j in range(0, cols.n, per_call):
            c, see_col = cols.union_cells[j : j + per_call], cols.sees[j : j + per_call]
            mask = see_row[None, :, None, :, None] & see_col[:, None, :, None, :]
            mask = mask.flatten(3).flatten(1, 2)  # [J, side^2, U^2]
            mask = mask.repeat_interleave(n_q, 1).repeat_interleave(n_k, 2)[:, None]
            at = cols.cells[j : j + per_call]  # [J, side]
            attended = functional.scaled_dot_product_attention(
                _heads_first(band_q[:, at]),
                _heads_first(band_k[:, c]),
                _heads_first(band_v[:, c]),
                attn_mask=mask.to(q.device),
            )  # [J, M, side side E, d]
            back = attended.transpose(1, 2).unflatten(1, (side, side, n_q)).transpose(0, 1)
            # Blocks at the end overlap their neighbors; both give the same values.
            out[rows.cells[i][:, None, None], at[None]] = back
    return out


def _heads_first(x: Tensor) -> Tensor:
    """[R, J, C, E, M, d] to [J, M, R C E, d]."""
    return x.permute(1, 4, 0, 2, 3, 5).flatten(2, 4)


class Blocks:
    """One axis cut in blocks of cells, with the union of what their boxes cover."""

    def __init__(self, n_cells: int, box: int, side: int) -> None:
        self.union = min(side + box - 1, n_cells)
        self.n = -(-n_cells // side)
        starts = (torch.arange(self.n) * side).clamp(max=n_cells - side)
        self.cells = starts[:, None] + torch.arange(side)
        """Cells of each block [n, side]; the last block is moved to lie inside."""
        first = (self.cells - box // 2).clamp(0, n_cells - box)  # of the box of each cell
        union_first = first[:, :1].clamp(max=n_cells - self.union)
        self.union_cells = union_first + torch.arange(self.union)
        """Cells that a block reads [n, U]."""
        seen = self.union_cells[:, None] - first[:, :, None]
        self.sees = (seen >= 0) & (seen < box)
        """Which of them each of its cells sees [n, side, U]."""


def _check(encoder: Encoder, x: Tensor, patch_size: int, neighborhood_px: int) -> None:
    if not encoder.config.positions.n_coordinates:
        raise ConfigError(
            got=f"seam-free inference with a {encoder.config.release} model",
            expected="rotary positions (v1.2, v1.3)",
            fix="use a v1.2 or v1.3 model, or encode in windows",
        )
    if neighborhood_px < patch_size or neighborhood_px % patch_size:
        raise ConfigError(
            got=f"neighborhood_px={neighborhood_px} with patch_size={patch_size}",
            expected="a multiple of the patch size",
            fix=f"pass neighborhood_px={max(1, neighborhood_px // patch_size) * patch_size}",
        )
    if len(x) != 1:
        raise ConfigError(
            got=f"a batch of {len(x)} domains",
            expected="one domain; its size is the batch",
            fix="call once per domain",
        )
