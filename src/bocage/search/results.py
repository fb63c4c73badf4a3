"""Results of a search, and how they leave the house: GeoParquet, GeoJSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError
from bocage.search.layout import BBOX, BBOX_FIELDS, GEOMETRY, geo_footer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray, PathLike


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Rows found, best first."""

    row: list[str]
    """Row ids "shard/row", good as exemplars of the next search."""

    score: FloatArray
    """Higher is better; cosine for one exemplar."""

    bbox: FloatArray
    """West, south, east, north in degrees [k, 4]."""

    date: NDArray[np.int32]
    """Days since 1970-01-01; 0 is unknown."""

    attributes: Any
    """Geometry (WKB) and the columns carried from the source, a pyarrow table."""

    n_searched: int
    """Rows that the first stage compared."""

    index: str = ""

    def __len__(self) -> int:
        return len(self.row)

    @property
    def lonlat(self) -> NDArray[np.float64]:
        """Centers [k, 2]."""
        return (self.bbox[:, :2].astype(np.float64) + self.bbox[:, 2:]) / 2

    @property
    def dates(self) -> list[str | None]:
        """ISO dates; None where unknown."""
        return [str(np.datetime64(int(d), "D")) if d else None for d in self.date]

    def to_table(self) -> Any:
        """A pyarrow table: row, score, date, bbox, geometry and the carried columns."""
        import pyarrow as pa

        box = pa.StructArray.from_arrays(
            [pa.array(np.ascontiguousarray(self.bbox[:, i])) for i in range(4)],
            names=list(BBOX_FIELDS),
        )
        columns = {
            "rank": np.arange(1, len(self) + 1, dtype=np.int32),
            "row": self.row,
            "score": self.score,
            "date": pa.array(self.dates).cast(pa.date32()),
            BBOX: box,
        }
        for name in self.attributes.column_names:
            columns[name if name not in columns else f"source_{name}"] = self.attributes[name]
        return pa.table(columns)

    def write(self, path: PathLike) -> Path:
        """Write GeoParquet or GeoJSON, by the ending of the name, in one step."""
        from bocage.embeddings.atomic import write_file

        target = check_ending(path)
        if target.suffix in _TABLES:
            content = self._geoparquet()
        else:
            content = json.dumps(self.to_geojson(), ensure_ascii=False).encode()
        write_file(target, content)
        return target

    def to_geojson(self) -> dict[str, Any]:
        """A FeatureCollection in lon/lat with scores as properties."""
        import shapely

        shapes = shapely.from_wkb(self.attributes[GEOMETRY].to_numpy(zero_copy_only=False))
        table = self.to_table().drop_columns([BBOX, GEOMETRY])
        features = []
        for shape, properties in zip(shapes, table.to_pylist(), strict=True):
            geometry = json.loads(shapely.to_geojson(shape))
            plain = {k: _json_value(v) for k, v in properties.items()}
            features.append({"type": "Feature", "geometry": geometry, "properties": plain})
        return {"type": "FeatureCollection", "features": features}

    def _geoparquet(self) -> bytes:
        import io

        import pyarrow.parquet as pq
        import shapely

        table = self.to_table()
        shapes = shapely.from_wkb(self.attributes[GEOMETRY].to_numpy(zero_copy_only=False))
        types = sorted({shape.geom_type for shape in shapes})
        bounds = tuple(float(v) for v in shapely.total_bounds(shapes))
        footer = {"geo": json.dumps(geo_footer(types, bounds))}
        file = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(footer), file, compression="zstd")
        return file.getvalue()


_TABLES, _SHAPES = (".parquet", ".geoparquet"), (".geojson", ".json")


def check_ending(path: PathLike) -> Path:
    """The path of results; ConfigError for a format that they are not written in."""
    target = Path(path)
    if target.suffix not in (*_TABLES, *_SHAPES):
        raise ConfigError(
            got=f"results to {target.name}",
            expected="a name ending in .parquet, .geoparquet, .geojson or .json",
            fix="change the ending",
        )
    return target


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
