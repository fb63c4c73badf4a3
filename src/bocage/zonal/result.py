"""What was found under the zones, as a person reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bocage.progress import format_bytes, format_duration, size_on_disk
from bocage.zonal.files import how_to_open

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ZonalResult:
    """A table of zones."""

    table: Any
    """GeoDataFrame: the zones' own columns, n_cells, zone_ha, map_share, valid_share, statistics,
    shapes; one row per zone and year."""

    id_column: str
    path: Path | None = None
    n_repaired: int = 0
    wall_s: float = 0.0
    files: tuple[Path, ...] = field(default=())

    def ids_without_data(self) -> dict[str, list[str]]:
        """Identifiers of zones that have no statistics in any year, by reason."""
        # Years stand one below the other, with the zones in the same order.
        n_zones = self.n_zones
        cells, hectares, on_map = (
            self.table[name].to_numpy().reshape(-1, n_zones).max(axis=0)
            for name in ("n_cells", "zone_ha", "map_share")
        )
        names = self.table[self.id_column].astype(str).to_numpy()[:n_zones]
        empty = cells == 0
        reasons = {
            "no_shape": empty & (hectares == 0),
            "outside": empty & (hectares > 0) & (on_map == 0),
            "no_data": empty & (on_map > 0),
        }
        return {reason: names[which].tolist() for reason, which in reasons.items()}

    @property
    def n_zones(self) -> int:
        """Zones, with data or without."""
        return int(self.table[self.id_column].nunique())

    def __str__(self) -> str:
        table = self.table
        lines = [f"wrote    {p}  ({format_bytes(size_on_disk(p))})" for p in self.files]
        n_zones = self.n_zones
        years = f" in {len(table) // n_zones} years" if len(table) > n_zones else ""
        lines.append(f"zones    {n_zones}{years}, {len(table.columns)} columns")
        words = {
            "no_shape": "without a shape or without area",
            "outside": "outside the map",
            "no_data": "on the map, but without data there",
        }
        lost = 0
        for reason, names in self.ids_without_data().items():
            if names:
                lost += len(names)
                shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
                lines.append(f"empty    {len(names)} {words[reason]}: {shown}")
        partly = (table["valid_share"] < 0.5) & (table["n_cells"] > 0)
        if partly.any():
            lines.append(
                f"partly   {int(partly.sum())} rows with data on less than half of the zone "
                "(valid_share)"
            )
        few = (table["n_cells"] > 0) & (table["n_cells"] < 1)
        if few.any():
            lines.append(f"small    {int(few.sum())} rows of less than one cell (n_cells)")
        if n_zones > lost:
            shares = table.loc[table["n_cells"] > 0, "valid_share"]
            cells = table.loc[table["n_cells"] > 0, "n_cells"]
            lines.append(
                f"cells    {np.median(cells):,.1f} per zone (median), data on {shares.mean():.1%} "
                "of their ground"
            )
        lines.append(f"took     {format_duration(self.wall_s)}")
        if self.path is not None:
            lines.append(f"open     {how_to_open(self.path)}")
        return "\n".join(lines)
