"""Attention within a sliding neighborhood of a large grid of cells, a block of cells at a time.

Every cell reads the cells of a square box around it. At the grid's edges the box is shifted inward
and never shrunk, so that all cells read equally many. The cells of a block share the keys of the
union of their boxes; a mask, the same for all blocks in the same place relative to their keys,
takes out what lies outside the box of each. Nothing is larger than a row of blocks.

Axes: h w rows and columns of cells, K elements of a cell (tokens, or queries of v1.3), M heads,
E channels of a head; b blocks of a run, R C rows and columns of keys of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

BLOCK_QUERIES = 32
"""Queries of a block. Fewer waste less on the corners of the union, more keep the matrix units
busy: on a CPU 16 cost 1 % more, 8 and 64 about 10 % (bench/seam_free.py --blocks)."""

MASK_SCORES = 4_000_000
"""Scores that are masked at once where tokens are hidden: 16 MB."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Neighboring cells of one axis that are attended together, and the cells that they read."""

    start: int
    key_start: int
    offsets: tuple[int, ...]
    """For each cell, where its box begins among the keys."""

    window: int
    """Side of a box."""

    @property
    def cells(self) -> slice:
        """The cells of the block."""
        return slice(self.start, self.start + len(self.offsets))

    @property
    def n_keys(self) -> int:
        """Cells in the union of the boxes."""
        return self.offsets[-1] + self.window

    @property
    def keys(self) -> slice:
        """The union of the boxes."""
        return slice(self.key_start, self.key_start + self.n_keys)

    def inside(self) -> Tensor:
        """Which keys lie in the box of which cell, [cells, keys]."""
        distance = torch.arange(self.n_keys) - torch.tensor(self.offsets)[:, None]
        return (distance >= 0) & (distance < self.window)


def box_start(cell: int, n_cells: int, window: int) -> int:
    """First cell of the box around a cell; at the edges the box is shifted, not shrunk."""
    return min(max(cell - window // 2, 0), n_cells - window)


def cut_axis(n_cells: int, window: int, length: int) -> list[Span]:
    """Cut an axis into spans of ``length`` cells; a window longer than the axis reads all of it."""
    window = min(window, n_cells)
    spans = []
    for start in range(0, n_cells, length):
        stop = min(start + length, n_cells)
        boxes = [box_start(cell, n_cells, window) for cell in range(start, stop)]
        offsets = tuple(box - boxes[0] for box in boxes)
        spans.append(Span(start=start, key_start=boxes[0], offsets=offsets, window=window))
    return spans


def runs(spans: list[Span]) -> list[list[Span]]:
    """Group consecutive spans that differ by a shift alone: one mask and one call serves each."""
    groups = [spans[:1]]
    for before, span in pairwise(spans):
        shift = span.start - before.start
        if span.offsets == before.offsets and span.key_start - before.key_start == shift:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def block_shape(queries_per_cell: int) -> tuple[int, int]:
    """Rows and columns of cells of a block with about BLOCK_QUERIES queries."""
    n_cells = max(1, BLOCK_QUERIES // queries_per_cell)
    columns = 1
    while 8 * columns * columns <= n_cells:  # about twice as many rows: keys are copied per row
        columns *= 2
    return max(1, n_cells // columns), columns


class NeighborhoodAttention:
    """The attention of one grid: where its blocks lie, and their masks."""

    def __init__(
        self,
        grid_hw: tuple[int, int],
        window: int,
        per_cell: tuple[int, int],
        *,
        visible: Tensor | None = None,
        block_hw: tuple[int, int] | None = None,
    ) -> None:
        """Boxes of ``window`` cells a side; ``per_cell`` are queries and keys of a cell.

        ``visible`` [h, w, K] hides keys from all queries; a query that sees no key gets zeros.
        """
        self.n_queries, self.n_keys = per_cell
        rows, columns = block_hw or block_shape(self.n_queries)
        self.row_spans = cut_axis(grid_hw[0], window, rows)
        self.column_runs = runs(cut_axis(grid_hw[1], window, columns))
        # Columns before rows, as the keys are.
        self.visible = None if visible is None else visible.transpose(0, 1)
        self._masks: dict[tuple[object, ...], Tensor | None] = {}

    def attend(self, q: Tensor, keys: Rows, rows: Span) -> Tensor:
        """Attended [r, w, K, M E] of the queries [r, w, K, M, E] of one span of rows."""
        n_rows, width, per_cell, heads, channels = q.shape
        out = q.new_empty(n_rows, width, per_cell, heads * channels)
        visible = None if self.visible is None else self.visible[:, rows.keys]
        if visible is not None:
            visible = None if bool(visible.all()) else visible.contiguous()[None]
        for run in self._parts(rows, split=visible is not None):
            first, side = run[0], len(run[0].offsets)
            columns = slice(first.start, first.start + side * len(run))
            blocks = q[:, columns].unflatten(1, (len(run), side))  # [r, b, c, K, M, E]
            blocks = blocks.permute(1, 4, 2, 0, 3, 5).flatten(2, 4)  # [b, M, c r K, E]
            mask = self._mask(rows, first, q)
            if visible is not None:
                seen = _windows(visible, run)[:, :, None]  # [b, 1, 1, C R K]
                if not bool(seen.any()):
                    out[:, columns] = 0
                    continue
                if not bool(seen.all()):
                    hide = torch.zeros_like(seen, dtype=q.dtype).masked_fill_(~seen, -torch.inf)
                    shape = (-1, -1, blocks.shape[2], -1)
                    mask = hide.expand(shape) if mask is None else hide + mask
            # A query that sees no key gets zeros: torch's softmax of nothing.
            attended = functional.scaled_dot_product_attention(
                blocks, _windows(keys.k, run), _windows(keys.v, run), attn_mask=mask
            )
            attended = attended.unflatten(2, (side, n_rows, per_cell))  # [b, M, c, r, K, E]
            out[:, columns] = attended.permute(3, 0, 2, 4, 1, 5).reshape(
                n_rows, len(run) * side, per_cell, -1
            )
        return out

    def _parts(self, rows: Span, *, split: bool) -> Iterator[list[Span]]:
        """Runs of columns; ``split`` cuts them so that a mask of their own stays small."""
        for run in self.column_runs:
            cells = len(rows.offsets) * len(run[0].offsets), rows.n_keys * run[0].n_keys
            n_scores = cells[0] * self.n_queries * cells[1] * self.n_keys
            n_blocks = max(1, MASK_SCORES // n_scores) if split else len(run)
            for first in range(0, len(run), n_blocks):
                yield run[first : first + n_blocks]

    def _mask(self, rows: Span, columns: Span, like: Tensor) -> Tensor | None:
        """What is added to the scores [c r K, C R K] of a block; None where all is read."""
        name = (rows.offsets, columns.offsets, like.dtype)
        if name not in self._masks:
            inside = columns.inside()[:, None, :, None] & rows.inside()[None, :, None, :]
            inside = inside.flatten(0, 1).flatten(1, 2)  # [c r, C R]
            mask = None
            if not bool(inside.all()):
                inside = inside.repeat_interleave(self.n_queries, 0)
                inside = inside.repeat_interleave(self.n_keys, 1).to(like.device)
                mask = like.new_zeros(inside.shape).masked_fill_(~inside, -torch.inf)
            self._masks[name] = mask
        return self._masks[name]


class Rows:
    """Keys and values of the rows that a span reads; rows are added below and dropped above."""

    def __init__(self, project: Callable[[slice], tuple[Tensor, Tensor]]) -> None:
        """``project`` makes keys and values [r, w, K, M, E] of a slice of rows."""
        self.project = project
        self.start = self.stop = 0
        self.k = self.v = torch.empty(0)
        """[M, w, R, K, E], so that the keys of any run of columns lie in one piece."""

    def move_to(self, rows: slice) -> None:
        """Hold exactly ``rows``; starts and stops never go back."""
        if rows.stop > self.stop:
            k, v = (x.permute(3, 1, 0, 2, 4) for x in self.project(slice(self.stop, rows.stop)))
            if self.stop > rows.start:
                kept = slice(rows.start - self.start, None)
                k = torch.cat((self.k[:, :, kept], k), dim=2)
                v = torch.cat((self.v[:, :, kept], v), dim=2)
            self.k, self.v = k.contiguous(), v.contiguous()
        elif rows.start > self.start:
            kept = slice(rows.start - self.start, None)
            self.k, self.v = (x[:, :, kept].contiguous() for x in (self.k, self.v))
        self.start, self.stop = rows.start, rows.stop


def _windows(x: Tensor, run: list[Span]) -> Tensor:
    """The keys of each block of a run [b, M, C R K, ...] in x [M, w, R, K, ...], without a copy."""
    cells = x.flatten(2, 3).flatten(1, 2)  # [M, w R K, ...]
    per_column = x.shape[2] * x.shape[3]
    first = run[0]
    size = (len(run), x.shape[0], first.n_keys * per_column, *x.shape[4:])
    step = len(first.offsets) * per_column * cells.stride(1)
    offset = cells.storage_offset() + first.key_start * per_column * cells.stride(1)
    return cells.as_strided(size, (step, *cells.stride()), offset)
