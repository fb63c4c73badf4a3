"""The tokens that a training step works on, packed into rows without a full sequence in between.

A row shows one sample; several rows may show the same sample with other tokens (two masked views).
Everything here is integers that are found on the CPU, so that a GPU is never waited for.

Axes: R rows, L tokens of the longest row, h w patch rows and columns, T timesteps, S band sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bocage.sensors import SENSORS


@dataclass(frozen=True, kw_only=True)
class Picked:
    """Tokens of one band set, in the order of rows."""

    modality: str
    band_set: int
    row: Tensor
    """Row that each token is in [n]."""

    sample: Tensor
    """Sample that each token is cut from [n]."""

    cell_row: Tensor
    cell_col: Tensor
    time: Tensor
    """Place and timestep in the token grid [n]; 0 for the one timestep of a map."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Chosen tokens of each row, and where they are. Padding points at token 0 and is not valid."""

    picked: tuple[Picked, ...]
    """The same tokens by band set, for embedding; concatenated they are numbered 0, 1, ..."""

    source: Tensor
    """Number of each token in that concatenation [R, L]."""

    sample: Tensor
    """Sample that each row shows [R]."""

    set_number: Tensor
    """Band set of each token [R, L], counted over ``band_sets``."""

    band_sets: tuple[tuple[str, int], ...]
    """Modality and band set that ``set_number`` counts."""

    slot: Tensor
    """Timestep [R, L]; for maps the number of timesteps, which means no date."""

    cell_row: Tensor
    cell_col: Tensor
    """Place in the token grid [R, L]."""

    valid: Tensor | None
    """False where a row is padding [R, L]; None if there is none."""

    counts: Tensor
    """Tokens of each row [R], on the CPU."""

    grid_hw: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens of the longest row."""
        return self.source.shape[0], self.source.shape[1]

    @property
    def key_valid(self) -> Tensor | None:
        """Mask for attention; an empty row reads its padding, for no use."""
        if self.valid is None:
            return None
        return self.valid | ~self.valid.any(dim=1, keepdim=True)

    def to(self, device: torch.device | str) -> Selection:
        """The same on a device; the counts stay on the CPU."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor) and f.name != "counts"
        }
        picked = tuple(
            replace(
                p,
                **{
                    f.name: getattr(p, f.name).to(device, non_blocking=True)
                    for f in fields(p)
                    if isinstance(getattr(p, f.name), Tensor)
                },
            )
            for p in self.picked
        )
        return replace(self, picked=picked, **moved)


def select(masks: Mapping[str, Tensor], sample: Tensor) -> Selection:
    """The tokens where ``masks`` [R, h, w, T, S] are True; row r shows sample ``sample[r]``.

    All modalities share one grid; a map has T = 1. The order within a row is by modality, band
    set, place and timestep.
    """
    n_rows, *grid = next(iter(masks.values())).shape[:3]
    n_slots = max(x.shape[3] for x in masks.values())
    band_sets = tuple((m, s) for m, x in masks.items() for s in range(x.shape[-1]))
    keep = [masks[m][..., s].flatten(1) for m, s in band_sets]  # [R, h w T] each
    counts = torch.stack([k.sum(1) for k in keep], dim=1)  # [R, band sets]
    ends = counts.cumsum(1)
    length = max(int(ends[:, -1].max()), 1)

    source = torch.zeros(n_rows, length, dtype=torch.long)
    columns = torch.zeros(4, n_rows, length, dtype=torch.long)
    picked, n_before = [], 0
    for number, (modality, band_set) in enumerate(band_sets):
        row, token = keep[number].nonzero(as_tuple=True)
        n_times = masks[modality].shape[3]
        time = token % n_times
        slot = time if modality in SENSORS else torch.full_like(time, n_slots)
        cell_row = token // n_times // grid[1]
        cell_col = token // n_times % grid[1]
        # Tokens of a row follow each other, so their place in it counts up from the row's first.
        n_here = counts[:, number]
        within = torch.arange(len(row)) - (n_here.cumsum(0) - n_here)[row]
        place = (ends[:, number] - n_here)[row] + within
        source[row, place] = torch.arange(len(row)) + n_before
        for column, values in zip(
            columns, (torch.tensor(number), slot, cell_row, cell_col), strict=True
        ):
            column[row, place] = values
        n_before += len(row)
        picked.append(
            Picked(
                modality=modality,
                band_set=band_set,
                row=row,
                sample=sample[row],
                cell_row=cell_row,
                cell_col=cell_col,
                time=time,
            )
        )
    valid = torch.arange(length) < ends[:, -1:]
    return Selection(
        picked=tuple(picked),
        source=source,
        sample=sample,
        set_number=columns[0],
        band_sets=band_sets,
        slot=columns[1],
        cell_row=columns[2],
        cell_col=columns[3],
        valid=None if bool(valid.all()) else valid,
        counts=ends[:, -1],
        grid_hw=(grid[0], grid[1]),
    )
