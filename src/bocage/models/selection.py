"""The tokens that a training step works on: one list without padding, row after row.

A row shows one sample; several rows may show the same sample with other tokens (two masked views).
Everything here is integers that are found on the CPU, so that a GPU is never waited for.

Axes: R rows, n chosen tokens of all rows, h w patch rows and columns, T timesteps, S band sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from bocage.sensors import SENSORS


@dataclass(frozen=True, kw_only=True)
class Picked:
    """Chosen tokens of one band set, in the order of rows."""

    modality: str
    band_set: int
    row: Tensor
    """Row that each token is in [k]."""

    sample: Tensor
    """Sample that each token is cut from [k]."""

    cell_row: Tensor
    cell_col: Tensor
    time: Tensor
    """Place and timestep in the token grid [k]; 0 for the one timestep of a map."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Chosen tokens, row after row, and where they are."""

    picked: tuple[Picked, ...]
    """The same tokens by band set, for embedding; concatenated they are numbered 0, 1, ..."""

    source: Tensor
    """Number of each token in that concatenation [n]."""

    row: Tensor
    """Row of each token [n]."""

    sample: Tensor
    """Sample of each token [n]."""

    set_number: Tensor
    """Band set of each token [n], counted over ``band_sets``."""

    band_sets: tuple[tuple[str, int], ...]
    """Modality and band set that ``set_number`` counts."""

    slot: Tensor
    """Timestep [n]; for maps the number of timesteps, which means no date."""

    cell_row: Tensor
    cell_col: Tensor
    """Place in the token grid [n]."""

    counts: tuple[int, ...]
    """Tokens of each row."""

    grid_hw: tuple[int, int]

    def to(self, device: torch.device | str) -> Selection:
        """The same on a device."""
        picked = tuple(replace(p, **_moved(p, device)) for p in self.picked)
        return replace(self, **{"picked": picked, **_moved(self, device)})


def _moved(part: Picked | Selection, device: torch.device | str) -> dict[str, Any]:
    tensors = {f.name: getattr(part, f.name) for f in fields(part)}
    return {
        name: x.to(device, non_blocking=True) for name, x in tensors.items() if torch.is_tensor(x)
    }


def select(masks: Mapping[str, Tensor], sample: Tensor) -> Selection:
    """The tokens where ``masks`` [R, h, w, T, S] are True; row r shows sample ``sample[r]``.

    All modalities share one grid; a map has T = 1. The order within a row is by modality, place,
    timestep and band set.
    """
    n_rows, n_cell_rows, n_cell_cols = next(iter(masks.values())).shape[:3]
    band_sets = tuple((m, s) for m, x in masks.items() for s in range(x.shape[-1]))
    n_slots = max(x.shape[3] for x in masks.values())
    # What each column of the full sequence is.
    columns = []
    for m, x in masks.items():
        first = band_sets.index((m, 0))
        axes = [torch.arange(k) for k in x.shape[1:]]
        i, j, time, own = (g.flatten() for g in torch.meshgrid(*axes, indexing="ij"))
        slot = time if m in SENSORS else torch.full_like(time, n_slots)
        columns.append(torch.stack((own + first, slot, i, j, time)))
    table = torch.cat(columns, dim=1)

    keep = torch.cat([x.flatten(1) for x in masks.values()], dim=1)
    row, column = keep.nonzero(as_tuple=True)
    set_number, slot, cell_row, cell_col, time = table[:, column]
    source = torch.empty_like(row)
    picked, n_before = [], 0
    for number, (modality, band_set) in enumerate(band_sets):
        here = (set_number == number).nonzero()[:, 0]
        source[here] = torch.arange(n_before, n_before + len(here))
        n_before += len(here)
        picked.append(
            Picked(
                modality=modality,
                band_set=band_set,
                row=row[here],
                sample=sample[row[here]],
                cell_row=cell_row[here],
                cell_col=cell_col[here],
                time=time[here],
            )
        )
    return Selection(
        picked=tuple(picked),
        source=source,
        row=row,
        sample=sample[row],
        set_number=set_number,
        band_sets=band_sets,
        slot=slot,
        cell_row=cell_row,
        cell_col=cell_col,
        counts=tuple(row.bincount(minlength=n_rows).tolist()),
        grid_hw=(n_cell_rows, n_cell_cols),
    )


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Consecutive rows of equal length: attention over them needs no padding."""

    n_rows: int
    n_queries: int
    """Tokens of each row that ask."""

    n_read: int
    """Tokens of each row that are read."""


def row_groups(queries: Sequence[int], read: Sequence[int]) -> tuple[RowGroup, ...]:
    """Groups of consecutive rows whose counts are equal; the fewer, the faster."""
    pairs = groupby(zip(queries, read, strict=True))
    return tuple(RowGroup(n_rows=len(list(rows)), n_queries=q, n_read=r) for (q, r), rows in pairs)
