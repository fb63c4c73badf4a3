"""What a map of change found and wrote, as a person reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bocage.change.clicked import LogisticChange
from bocage.change.measure import Measure
from bocage.progress import format_bytes, format_duration, size_on_disk


@dataclass(kw_only=True)
class ChangeResult:
    """What was written and found."""

    path: Path
    files: tuple[Path, ...]
    measure: Measure | None = None
    threshold: float | None = None
    table: list[dict[str, Any]] = field(default_factory=list)
    """Area of change and no change."""

    valid_fraction: float = math.nan
    wall_s: float = 0.0

    def __str__(self) -> str:
        lines = [f"wrote    {p}  ({format_bytes(size_on_disk(p))})" for p in self.files]
        if self.measure is None:
            return "\n".join([*lines, "nothing to do: the map was finished before"])
        lines.append(f"took     {format_duration(self.wall_s)}")
        if self.threshold is not None:
            changed = self.table[1]
            lines.append(
                f"change   {changed['km2']:,.2f} km2, {changed['share']:.1%} of what both times "
                f"show, from {self.measure.bands[0]} >= {self.threshold:.4g}"
            )
        if isinstance(self.measure, LogisticChange):
            lines += ["", self.measure.report.table(), self.measure.report.leakage]
        lines.append(f"valid    {self.valid_fraction:.1%} of the cells")
        return "\n".join(lines)
