"""run.json and the STAC item of a map: how it was made, and where it lies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bocage._version import __version__
from bocage.embeddings.atomic import write_file
from bocage.embeddings.stac import PROCESSING, PROJECTION, footprint
from bocage.geo import Grid
from bocage.learn.predict.legend import Legend
from bocage.mapping.record import path_of, read

CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"

_PACKAGES = ("numpy", "scikit-learn", "torch", "rasterio", "zarr")
_ROLES = {".tif": "data", ".png": "overview", ".csv": "metadata", ".qml": "style"}
_MEDIA = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".png": "image/png",
    ".csv": "text/csv",
    ".qml": "application/xml",
    ".xml": "application/xml",
    ".gpkg": "application/geopackage+sqlite3",
    ".parquet": "application/vnd.apache.parquet",
    ".geojson": "application/geo+json",
    ".json": "application/json",
}

__all__ = ["path_of", "read", "write", "write_item"]


def write(out: Path, identity: Mapping[str, Any], **facts: Any) -> Path:
    """Write NAME.tif.run.json in one step; its presence means that everything else is there."""
    content = {
        "bocage": __version__,
        "finished": _now(),
        "resolved": dict(identity),
        **facts,
        "versions": versions_of(_PACKAGES),
    }
    path = path_of(out)
    write_file(path, (json.dumps(content, indent=1, default=str) + "\n").encode())
    return path


def write_item(
    out: Path,
    grid: Grid,
    files: list[Path],
    *,
    year: int,
    title: str,
    legend: Legend | None = None,
    properties: Mapping[str, Any] | None = None,
) -> Path:
    """Write NAME.tif.stac.json: a STAC Item with every file of a map as an asset."""
    from rasterio.crs import CRS

    geometry, bbox = footprint(grid)
    crs, t = CRS.from_user_input(grid.crs), grid.transform
    named = re.fullmatch(r"[A-Za-z]+:\w+", grid.crs) is not None
    dates: dict[str, Any] = {"datetime": _now(), "bocage:dates": "unknown; that of processing"}
    if year:
        dates = {
            "datetime": None,
            "start_datetime": f"{year}-01-01T00:00:00Z",
            "end_datetime": f"{year}-12-31T23:59:59Z",
        }
    extensions = [PROJECTION, PROCESSING] + ([CLASSIFICATION] if legend else [])
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": extensions,
        "id": re.sub(r"[^\w.-]+", "-", out.stem),
        "geometry": geometry,
        "bbox": bbox,
        "properties": {
            **dates,
            "title": title,
            **({"proj:code": grid.crs} if named else {"proj:wkt2": crs.to_wkt()}),
            "proj:shape": list(grid.shape_yx),
            "proj:transform": [float(v) for v in tuple(t)[:6]],
            "proj:bbox": list(grid.bbox),
            "processing:software": {"bocage": __version__},
            "processing:datetime": _now(),
            **(properties or {}),
        },
        "links": [],
        "assets": {_asset_key(p, out): _asset(p, out, legend) for p in files},
    }
    path = out.with_name(f"{out.name}.stac.json")
    write_file(path, (json.dumps(item, indent=1, allow_nan=False) + "\n").encode())
    return path


def _asset_key(path: Path, out: Path) -> str:
    if path == out:
        return "map"
    return path.name.removeprefix(f"{out.stem}.").removeprefix("tif.")


def _asset(path: Path, out: Path, legend: Legend | None) -> dict[str, Any]:
    inside = path.resolve().is_relative_to(out.resolve().parent)
    href = f"./{path.resolve().relative_to(out.resolve().parent)}" if inside else path.as_uri()
    asset: dict[str, Any] = {
        "href": href,
        "type": _MEDIA.get(path.suffix.lower(), "application/octet-stream"),
        "roles": [_ROLES.get(path.suffix.lower(), "data")],
    }
    if path == out and legend is not None:
        asset["classification:classes"] = [
            {"value": c.value, "name": _word(c.name), "title": c.name, "color_hint": c.color[1:]}
            for c in legend.classes
        ]
    return asset


def _word(name: str) -> str:
    """A class name as the classification extension wants it: letters, digits, - and _."""
    return re.sub(r"[^0-9A-Za-z_-]+", "-", name) or "class"


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package that is installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
