"""What a prediction wrote and what it took, as a person reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bocage.progress import format_bytes, format_duration, size_on_disk

_SHOWN_CLASSES = 12


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """The maps of a run."""

    paths: tuple[Path, ...]
    """One raster per year."""

    files: tuple[Path, ...]
    """Everything written, sidecars too."""

    tables: dict[int, Sequence[dict[str, Any]]] = field(default_factory=dict)
    """Area table by year."""

    places: str = ""
    """What the intervals of the table come from."""

    valid_fraction: float = float("nan")
    """Share of the cells that hold a value."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of embedding, scoring and writing; empty if everything was there already."""

    def __str__(self) -> str:
        lines = [f"wrote    {p}  ({format_bytes(size_on_disk(p))})" for p in self.files]
        if self.seconds:
            parts = ", ".join(f"{name} {format_duration(s)}" for name, s in self.seconds.items())
            lines.append(f"took     {parts}")
        else:
            lines.append("nothing to do: the map was finished before")
        for year, rows in self.tables.items():
            label = f"area {year} " if year else "area"
            for row in rows[:_SHOWN_CLASSES]:
                interval = ""
                if "km2_low" in row:
                    interval = (
                        f"  (adjusted {row['km2_adjusted']:,.2f}, "
                        f"95 % {row['km2_low']:,.2f} to {row['km2_high']:,.2f})"
                    )
                lines.append(
                    f"{label:<9}{row['class']}: {row['km2']:,.2f} km2, {row['share']:.1%}{interval}"
                )
                label = ""
        if self.places:
            lines.append(f"from     {self.places}")
        if not math.isnan(self.valid_fraction):
            lines.append(f"valid    {self.valid_fraction:.1%} of the cells")
        if self.paths:
            lines.append(f"open     QGIS takes {self.paths[0]} with its names and colors")
        return "\n".join(lines)
