"""What can be chosen about a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bocage.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Options of `predict`."""

    years: tuple[int, ...] | None = None
    """Years of the embeddings to map, one file each; None is all of them."""

    probability: bool = True
    """Also write NAME.probability.tif, one band per class."""

    threshold: float = 0.5
    """Probability from which a class of a multi-label map counts as present."""

    polygons: Path | None = None
    """Also write the classes as polygons: NAME.gpkg, .geojson or .parquet (GeoParquet)."""

    min_cells: int = 1
    """Smallest polygon, in cells."""

    reference: Path | None = None
    """Places with known classes, drawn at random inside the map: areas then get intervals."""

    reference_label: str | None = None
    """Column of their class; by default that of the probe's labels, or the only one."""

    picture: bool = True
    """Also write NAME.png."""

    keep_embeddings: bool = False
    """Keep the embeddings of a scene, as NAME.embeddings.zarr, after the map is made from them."""

    embed: Mapping[str, Any] = field(default_factory=dict)
    """For scenes: options of `EmbedConfig`, such as window_px, halo_px, period."""

    def check_task(self, task: str) -> None:
        """Refuse what needs one class per cell where there is none."""
        for name in ("polygons", "reference"):
            if getattr(self, name) is not None and task != "classification":
                raise ConfigError(
                    got=f"--{name} for a map of task {task}",
                    expected="a map with one class per cell",
                    fix=f"leave out --{name}",
                )

    def __post_init__(self) -> None:
        if self.min_cells < 1:
            raise ConfigError(
                got=f"min_cells={self.min_cells}",
                expected="a number from 1",
                fix="leave out --min-cells for all polygons",
            )
        if not 0 < self.threshold < 1:
            raise ConfigError(
                got=f"threshold={self.threshold}",
                expected="a probability between 0 and 1",
                fix="use --threshold 0.5",
            )
        if self.polygons is not None:
            from bocage.learn.predict.polygons import check_polygon_path

            check_polygon_path(Path(self.polygons))
