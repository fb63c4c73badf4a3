"""Which statistics: their names, and what is asked for when nothing is said."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bocage.errors import ConfigError

if TYPE_CHECKING:
    from bocage.zonal.layers import Kind

MOMENTS = ("mean", "std", "min", "max", "sum")

GROUPS = {
    "stats": ("min", "max", "mean", "std"),
    "quartiles": ("p25", "p50", "p75"),
    "percentiles": ("p10", "p25", "p50", "p75", "p90"),
}
"""Names for several at once, as the pooling operators of `bocage.learn.pooling`."""

AUTO = "auto"
"""Of embeddings: what so many cells can fill; see `recommended_pooling`."""

_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True)
class ZonalConfig:
    """What is computed per zone."""

    stats: tuple[str, ...] | str = ()
    """mean, std, min, max, sum, median, p5 (any percentile), stats, quartiles, percentiles, or auto
    (embeddings: by how many cells a zone has). Empty: auto for embeddings, and mean, std, min,
    median and max for numbers. Class maps have areas and shares instead."""

    above: float | None = None
    """Also hectares and share of the ground where a number is at least this: the area of change,
    of a probability."""

    deltas: bool = False
    """Of several years: also the difference to the year before, from the cells that have data in
    all of them."""

    tile_cells: int | None = None
    """Side of the tiles that are read; by default by memory. It changes no result."""

    def __post_init__(self) -> None:
        if isinstance(self.stats, str):
            object.__setattr__(self, "stats", tuple(n.strip() for n in self.stats.split(",")))
        if self.above is not None and not math.isfinite(self.above):
            raise ConfigError(
                got=f"--above {self.above}", expected="a number", fix="leave --above out"
            )
        for name in self.stats:
            if name not in {AUTO, "median", *MOMENTS, *GROUPS} and not _PERCENTILE.fullmatch(name):
                raise ConfigError(
                    got=f"statistic {name!r}",
                    expected=f"one of {', '.join([*MOMENTS, 'median', *GROUPS, AUTO])}, or a "
                    "percentile such as p10",
                    fix="check --stats",
                )
            match = _PERCENTILE.fullmatch(name)
            if match and not 0 < float(match[1]) < 100:
                raise ConfigError(
                    got=f"statistic {name!r}",
                    expected="a percentile above 0 and below 100",
                    fix="use min or max for the ends",
                )
        if AUTO in self.stats and len(self.stats) > 1:
            raise ConfigError(
                got=f"--stats {','.join(self.stats)}",
                expected="auto alone, or names",
                fix="leave auto out, or the others",
            )
        if self.tile_cells is not None and self.tile_cells < 1:
            raise ConfigError(
                got=f"tiles of {self.tile_cells} cells",
                expected="one cell at least",
                fix="leave tile_cells out",
            )

    def check_kind(self, kind: Kind, n_years: int, name: str) -> None:
        """Refuse options that a kind of raster has no use for."""
        if kind in {"classes", "presence"} and (self.stats or self.above is not None):
            option = f"--stats {','.join(self.stats)}" if self.stats else f"--above {self.above:g}"
            raise ConfigError(
                got=f"{option} with {name}, a map of classes",
                expected="nothing more: a class map has areas and shares",
                fix="leave it out, or use --kind values if the numbers are no classes",
            )
        if kind == "embeddings" and self.above is not None:
            raise ConfigError(
                got=f"--above {self.above:g} with the embeddings {name}",
                expected="a map of numbers",
                fix="map them first with bocage predict or bocage change",
            )
        if kind != "embeddings" and AUTO in self.stats:
            raise ConfigError(
                got=f"--stats auto with {name}",
                expected="embeddings, or names such as mean,std",
                fix="leave --stats out",
            )
        if self.deltas and n_years < 2:
            raise ConfigError(
                got=f"--deltas with one year of {name}",
                expected="two years at least",
                fix="name the raster of another year too, or leave --deltas out",
            )

    def is_auto(self, kind: Kind) -> bool:
        """Whether each zone gets the operator that its cells can fill."""
        return kind == "embeddings" and self.stats in {(), (AUTO,)}

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Statistics in the order of the columns, each once; percentiles as p50."""
        if kind in {"classes", "presence"}:
            return ()
        if self.is_auto(kind):
            return ("mean", "std", "min", "max")
        chosen = self.stats or ("mean", "std", "min", "median", "max")
        single: list[str] = []
        for name in chosen:
            single += GROUPS.get(name, (name,))
        return tuple(dict.fromkeys("p50" if name == "median" else name for name in single))


def share_of(name: str) -> float | None:
    """The share of a percentile, p10 to 0.1; None for other names."""
    match = _PERCENTILE.fullmatch(name)
    return float(match[1]) / 100 if match else None
