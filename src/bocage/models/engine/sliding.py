"""Seam-free inference on CPUs with AMX: ``domain.py`` on the engine's kernels.

Read ``domain.py`` first: this is the same network. Linear maps, norms and patch embedding are those
of ``cpu.py``, attention is ``sliding.cpp``. Tokens lie in one array that the blocks change in
place, a strip of rows at a time: a strip is attended as soon as the rows that it reads are packed,
so what is in memory besides the tokens grows with the width of a domain and not with its area.

Axes: h w rows and columns of cells, K elements of a cell (T timesteps x S band sets, or location
queries), D width, M heads, E channels of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from bocage.models.attention import Block
from bocage.models.domain import Rotation, check_one_domain
from bocage.models.encoder import Encoder
from bocage.models.engine.blocks import FastBlock, halves
from bocage.models.engine.cpu import CpuBackend
from bocage.models.engine.fast import NUMBERS_AT_ONCE, FastEncoder
from bocage.models.engine.locations import FastPooler
from bocage.models.native import library, pointer
from bocage.models.neighborhood import box_start
from bocage.models.rope import days_since_first

logger = logging.getLogger(__name__)

SIDE = 4
"""Cells on a side of a square, whose elements are a tile each; as in ``sliding.cpp``."""

STRIP_NUMBERS = NUMBERS_AT_ONCE
"""Tokens times width of a strip."""


def sliding_encoder(
    encoder: Encoder, engine: FastEncoder | None, cells: int
) -> SlidingEncoder | None:
    """Seam-free inference on the kernels of an engine; None where plain modules must do.

    Every token attends within ``cells`` x ``cells`` cells around it.
    """
    backend = None if engine is None else engine.backend
    if not isinstance(backend, CpuBackend):
        return None
    if encoder.attention_pooler is not None and backend.pooler is None:
        logger.info("seam-free inference runs as plain modules, because its pooler does")
        return None
    return SlidingEncoder(encoder, backend, cells)


class SlidingEncoder:
    """Embedding maps of one large domain in which every token has its own window."""

    def __init__(self, encoder: Encoder, backend: CpuBackend, cells: int) -> None:
        """Every token attends within ``cells`` x ``cells`` cells around it."""
        self.encoder = encoder
        self.config = encoder.config
        self.backend = backend
        self.cells = cells

    @torch.no_grad()
    def grid(
        self,
        values: Mapping[str, Tensor],
        timestamps: Tensor,
        patch_size: int,
        *,
        output: str,
        visible: Mapping[str, Tensor] | None = None,
        location_query_patch_size: int | None = None,
        raw: Set[str] = frozenset(),
    ) -> Tensor:
        """The map [1, r_h, r_w, D] of ``values`` [1, H, W, T, C], NaN where a cell saw nothing.

        ``output`` is "pooled", "student" or "locations". Values of the sensors in ``raw`` are in
        product units, the others normalized; ``visible`` [1, h, w, T, S] hides tokens from all.
        """
        check_one_domain(timestamps)
        x, shown, owners = self.tokens(values, timestamps, patch_size, visible=visible, raw=raw)
        if output == "pooled":
            return self._pooled(x, shown, owners)[None]
        side = patch_size // (location_query_patch_size or patch_size)
        spacing = patch_size * self.config.positions.coordinate_scale
        found = self._locations(x, shown, side, spacing, output)
        if shown is not None:
            seen = shown.any(dim=-1).repeat_interleave(side, 0).repeat_interleave(side, 1)
            found[~seen] = torch.nan
        return found[None]

    @torch.no_grad()
    def tokens(
        self,
        values: Mapping[str, Tensor],
        timestamps: Tensor,
        patch_size: int,
        *,
        visible: Mapping[str, Tensor] | None = None,
        raw: Set[str] = frozenset(),
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Tokens [h, w, K, D] before the last norm, which are shown, and the sensor [K] of each.

        Shown is [h, w, K], or None where nothing is hidden. Timesteps that are hidden everywhere
        are left out.
        """
        config, encoder = self.config, self.encoder
        values = {name: values[name] for name in config.modalities if name in values}
        step = float(patch_size)
        first = next(iter(values.values()))
        grid = first.shape[1] // patch_size, first.shape[2] // patch_size
        encodings = {
            name: encoder.composite_encodings(name, grid, timestamps, step) for name in values
        }
        x = self.backend.embed(values, encodings, patch_size, raw)[0]  # [h, w, T, S, D]
        sets = [len(config.band_sets[name]) for name in values]
        owners = torch.arange(len(sets)).repeat_interleave(torch.tensor(sets)).repeat(x.shape[2])
        days = days_since_first(timestamps)[0] * config.positions.temporal_coordinate_scale
        times = days.repeat_interleave(sum(sets))
        x = x.flatten(2, 3)
        shown: Tensor | None = None
        if visible is not None:
            shown = torch.cat([visible[name][0] for name in values], dim=-1).flatten(2)
            kept = shown.flatten(0, 1).any(dim=0)
            kept[0] |= ~kept.any()  # where nothing is visible, one element stands for the shape
            if not bool(kept.all()):
                x, shown, owners, times = x[:, :, kept], shown[..., kept], owners[kept], times[kept]
            shown = None if bool(shown.all()) else shown
        coordinates = torch.zeros(len(times), 3)
        coordinates[:, 0] = times
        spacing = step * config.positions.coordinate_scale
        for module, fast in zip(encoder.blocks, self.backend.blocks, strict=True):
            block = cast(Block, module)
            attention = self._attention(x, x.shape[2], block.attn.heads, shown)
            rotation = Rotation.of(block.attn.frequencies(), grid, spacing, coordinates)
            _transform(fast, x, attention, turns(rotation, block.attn.heads))
        return x, shown, owners

    def _attention(
        self, x: Tensor, n_keys: int, heads: int, shown: Tensor | None
    ) -> SlidingAttention:
        """The attention of all elements of x [h, w, K, D] over ``n_keys`` of each cell."""
        return SlidingAttention(
            (x.shape[0], x.shape[1]),
            self.cells,
            heads=heads,
            n_queries=x.shape[2],
            n_keys=n_keys,
            width=x.shape[3],
            dtype=x.dtype,
            shown=shown,
        )

    def _pooled(self, x: Tensor, shown: Tensor | None, owners: Tensor) -> Tensor:
        """Mean over elements of each sensor, then over sensors, [h, w, D]."""
        one_hot = functional.one_hot(owners).float()  # [K, sensors]
        seen = torch.ones(len(owners)) if shown is None else shown.float()
        counts = seen @ one_hot  # [h, w, sensors], or [sensors]
        n_sensors = (counts > 0).sum(dim=-1, keepdim=True)  # 0 gives NaN
        weight = seen * ((1 / counts.clamp(min=1)) @ one_hot.T) / n_sensors
        return self.backend.pool(x, weight)

    def _normed(self, x: Tensor) -> Tensor:
        """The encoder's last norm, fp32."""
        norm = self.encoder.norm
        return functional.layer_norm(x.float(), x.shape[-1:], norm.weight, norm.bias, norm.eps)

    def _locations(
        self, tokens: Tensor, shown: Tensor | None, side: int, spacing: float, output: str
    ) -> Tensor:
        """Location tokens or their student [h side, w side, D]: queries read, then look around."""
        pooler = cast(FastPooler, self.backend.pooler)
        grid = (tokens.shape[0], tokens.shape[1])
        offsets = ((torch.arange(side) + 0.5) / side - 0.5) * spacing
        own = torch.cartesian_prod(torch.zeros(1), offsets, offsets)
        center = torch.zeros(tokens.shape[2], 3)
        x = tokens.new_empty(*grid, len(own), len(pooler.proj.bias))
        reading = self._attention(x, tokens.shape[2], pooler.heads, shown)
        own_turns, key_turns = (
            turns(Rotation.of(pooler.frequencies, grid, spacing, at), pooler.heads)
            for at in (own, center)
        )
        query = pooler.query.flatten()[halves(pooler.heads, pooler.query.shape[1])]
        query = query.to(x.dtype).as_strided(x.shape, (0, 0, 0, 1))  # one for all

        def pack(rows: slice) -> None:
            kv = pooler.kv.rows(self._normed(tokens[rows]).to(x.dtype))
            reading.pack(rows, key_turns, keys=kv)
            reading.pack(rows, own_turns, queries=query[rows])

        for rows in reading.strips(pack):
            part = pooler.proj.rows(reading.attend(rows))
            hidden = pooler.fc1.rows(part, gelu=True)
            pooler.fc2.rows(hidden, plus=part, out=x[rows])
        heads = pooler.look.heads
        rotation = Rotation.of(pooler.look_frequencies, grid, spacing, own)
        looking = self._attention(x, len(own), heads, None)
        _transform(pooler.look, x, looking, turns(rotation, heads))
        student = pooler.student if output == "student" else None
        norm, found = pooler.norm, None
        for rows in _strips(x):
            part = functional.layer_norm(
                x[rows].float(), x.shape[-1:], norm.weight, norm.bias, norm.eps
            )
            part = part if student is None else student(part)
            part = part.unflatten(2, (side, side)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
            if found is None:
                found = torch.empty(grid[0] * side, grid[1] * side, part.shape[-1])
            found[rows.start * side : rows.stop * side] = part
        return cast(Tensor, found)


def turns(rotation: Rotation, heads: int) -> list[Tensor | None]:
    """Cosine and sine [n, M, 2, K] of rows, columns and elements, as the kernels read them."""
    return [
        None
        if x is None
        else torch.stack([x.real, x.imag], dim=-2).repeat(1, heads // x.shape[1], 1, 1)
        for x in (rotation.row, rotation.column, rotation.element)
    ]


class SlidingAttention:
    """Attention of a grid of cells over the box around each, fed and read a strip at a time."""

    def __init__(
        self,
        grid_hw: tuple[int, int],
        window: int,
        *,
        heads: int,
        n_queries: int,
        n_keys: int,
        width: int,
        dtype: torch.dtype,
        shown: Tensor | None = None,
    ) -> None:
        """Boxes of ``window`` cells a side; ``n_queries`` and ``n_keys`` are elements of a cell.

        ``shown`` [h, w, K] hides keys from all queries; a query that sees no key gets zeros.
        """
        self.grid_hw, self.window, self.heads = grid_hw, window, heads
        self.n_queries, self.n_keys, self.width, self.dtype = n_queries, n_keys, width, dtype
        rows, columns = (-(-n // SIDE) for n in grid_hw)
        tokens_per_row = SIDE * grid_hw[1] * max(n_queries, n_keys)
        self.tall = max(1, STRIP_NUMBERS // (tokens_per_row * width))  # squares of a strip
        self.spans = [(first, min(first + self.tall, rows)) for first in range(0, rows, self.tall)]
        self.n_slots = max(
            self._stop(span) - min(span[0], self._box(span)[0]) for span in self.spans
        )
        shape = (self.n_slots, heads, columns + 1)
        number = (columns + 1) * 16 * width // heads
        self.q = torch.zeros(self.n_slots, heads, n_queries, number, dtype=dtype)
        self.k = torch.zeros(self.n_slots, heads, n_keys, number, dtype=dtype)
        self.v = torch.zeros_like(self.k)
        self.longest_q, self.longest_k = torch.zeros(shape), torch.zeros(shape)
        self.shown = None if shown is None else _bits(shown)

    def strips(self, pack: Callable[[slice], None]) -> Iterator[slice]:
        """Strips of rows in order; before one is given out ``pack`` has packed what it reads."""
        packed, height = 0, self.grid_hw[0]
        for span in self.spans:
            while packed < self._stop(span):
                following = min(packed + self.tall, self.spans[-1][1])
                pack(slice(packed * SIDE, min(following * SIDE, height)))
                packed = following
            yield slice(span[0] * SIDE, min(span[1] * SIDE, height))

    def pack(
        self,
        rows: slice,
        turns: Sequence[Tensor | None],
        *,
        queries: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> None:
        """Queries [r, w, K, D], or keys and values [r, w, K, 2 D], or both, of rows.

        Both may be views of whole tokens, or one token that stands for all.
        """
        sources = [(None, 0) if x is None else (x.data_ptr(), x.stride(2)) for x in (queries, keys)]
        library("sliding").bocage_sliding_pack(
            *sources[0],
            *sources[1],
            *map(pointer, (self.q, self.k, self.v, self.longest_q, self.longest_k)),
            self.dtype == torch.float32,
            self.width // self.heads,
            rows.start,
            rows.stop - rows.start,
            *self.grid_hw,
            self.n_keys if queries is None else self.n_queries,
            self.heads,
            self.n_slots,
            *map(pointer, turns),
        )

    def attend(self, rows: slice) -> Tensor:
        """Attended [r, w, K of queries, D] of rows that ``strips`` gave out."""
        n_rows = rows.stop - rows.start
        out = torch.empty(n_rows, self.grid_hw[1], self.n_queries, self.width, dtype=self.dtype)
        library("sliding").bocage_sliding_attend(
            *map(pointer, (self.q, self.k, self.v, self.longest_q, self.longest_k)),
            pointer(self.shown),
            pointer(out),
            self.dtype == torch.float32,
            self.width // self.heads,
            rows.start,
            n_rows,
            *self.grid_hw,
            self.n_queries,
            self.n_keys,
            self.heads,
            self.n_slots,
            self.window,
        )
        return out

    def _box(self, span: tuple[int, int]) -> tuple[int, int]:
        """Rows of squares that a strip reads."""
        n = self.grid_hw[0]
        window = min(self.window, n)
        first = box_start(span[0] * SIDE, n, window) // SIDE
        last = box_start(min(span[1] * SIDE, n) - 1, n, window) + window - 1
        return first, last // SIDE + 1

    def _stop(self, span: tuple[int, int]) -> int:
        """How far rows of squares are packed when a strip is attended: by whole strips."""
        stop = max(span[1], self._box(span)[1])
        return min(-(-stop // self.tall) * self.tall, self.spans[-1][1])


def _transform(
    block: FastBlock, x: Tensor, attention: SlidingAttention, turns: Sequence[Tensor | None]
) -> None:
    """Run a block over x [h, w, K, D] in place, a strip of rows at a time."""
    width = attention.width

    def pack(rows: slice) -> None:
        qkv = block.qkv.rows(x[rows])
        attention.pack(rows, turns, queries=qkv, keys=qkv[..., width:])

    for rows in attention.strips(pack):
        attended = attention.attend(rows).flatten(0, 2)
        part = x[rows].view(-1, x.shape[-1])
        n_once = max(1, STRIP_NUMBERS // part.shape[1])
        for some, read in zip(part.split(n_once), attended.split(n_once), strict=True):
            block.proj.rows(read, plus=some, out=some)
            block.fc2.rows(block.fc1.rows(some, gelu=True), plus=some, out=some)


def _strips(x: Tensor) -> Iterator[slice]:
    """Rows of x [h, w, K, D] in pieces that stay in the caches."""
    tall = max(1, STRIP_NUMBERS // x[0].numel())
    return (slice(i, min(i + tall, len(x))) for i in range(0, len(x), tall))


def _bits(shown: Tensor) -> Tensor:
    """Which of the 16 cells of each square are shown [squares, squares, K], a bit each."""
    h, w, _ = shown.shape
    padded = functional.pad(shown, (0, 0, 0, -w % SIDE, 0, -h % SIDE))
    cells = padded.unflatten(1, (-1, SIDE)).unflatten(0, (-1, SIDE)).permute(0, 2, 4, 1, 3)
    weights = 1 << torch.arange(SIDE * SIDE, dtype=torch.int32)
    bits: Tensor = (cells.flatten(3).int() * weights).sum(dim=-1, dtype=torch.int32)
    return bits.to(torch.int16)
