"""A STAC Item beside an output, with the fields of the embedding extension (emb v0.0.1).

The item stands alone: nobody has to make a collection for one map. So the fields that the extension
asks of a collection (type, dimensions, data type, model and source links) are on the item too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage._version import __version__
from bocage.embeddings.atomic import write_file
from bocage.embeddings.conventions import (
    SIGNED_POWER_LINK,
    SOURCE_DATA,
    UNKNOWN_SOURCE,
    matryoshka_dims,
    model_url,
)
from bocage.embeddings.lazy_raster import LazyRaster
from bocage.geo import Grid

if TYPE_CHECKING:
    from bocage.types import PathLike

EMB = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"

_MEDIA = {
    "zarr": "application/vnd.zarr; version=3",
    "tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    "png": "image/png",
}


def write_stac_item(
    uri: PathLike,
    path: PathLike | None = None,
    *,
    item_id: str | None = None,
    zone: int | str | None = None,
    properties: Mapping[str, Any] | None = None,
    previews: Mapping[str, PathLike] | None = None,
) -> Path:
    """Write a STAC Item for a store or COG of embeddings; returns its path.

    By default `emb.zarr` gets `emb.zarr.stac.json` beside it. Asset links are relative where the
    files are in the same folder. `properties` adds or replaces fields, for example
    `{"emb:energy": {...}}`; `previews` maps asset keys such as "overview" to pictures.
    """
    from bocage.embeddings.open import open_raster
    from bocage.embeddings.zarr_layout import is_zarr

    source = str(uri)
    target = Path(path) if path is not None else Path(f"{source.rstrip('/')}.stac.json")
    raster = open_raster(uri, zone=zone)
    item = stac_item(
        raster,
        href=_href(source, target.parent),
        media_type=_MEDIA["zarr" if is_zarr(source) else "tif"],
        item_id=item_id or Path(source).stem,
    )
    item["properties"] |= dict(properties or {})
    for key, picture in (previews or {}).items():
        item["assets"][key] = {
            "href": _href(str(picture), target.parent),
            "type": _MEDIA["png" if str(picture).endswith(".png") else "tif"],
            "title": "Principal components as RGB: for looking, not measuring",
            "roles": ["overview", "visual"],
        }
    write_file(target, (json.dumps(item, indent=1, allow_nan=False) + "\n").encode())
    return target


def stac_item(raster: LazyRaster, *, href: str, media_type: str, item_id: str) -> dict[str, Any]:
    """The item as a dictionary."""
    codec, dims = str(raster.attrs.get("codec", "")), raster.shape[1]
    model = str(raster.attrs.get("model", ""))
    geometry, bbox = footprint(raster.grid)
    asset = {
        "href": href,
        "type": media_type,
        "title": f"{dims}-dimensional embeddings by {model or 'an unknown model'}",
        "roles": ["data", "embeddings"],
        "gsd": _gsd_m(raster.grid),
        "data_type": "int8" if codec == "signed_power" else "float32",
        "nodata": -128 if codec == "signed_power" else "nan",
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [EMB, PROJECTION, PROCESSING],
        "id": re.sub(r"[^\w.-]+", "-", item_id),
        "geometry": geometry,
        "bbox": bbox,
        "properties": {
            **_dates(raster),
            "gsd": _gsd_m(raster.grid),
            **_embedding_fields(raster, codec, model),
            **_projection_fields(raster.grid),
            "processing:software": {"bocage": __version__},
            "processing:version": __version__,
            "processing:datetime": _now(),
        },
        "links": _links(raster, model),
        "assets": {"embeddings": asset},
    }


def footprint(grid: Grid) -> tuple[dict[str, Any], list[float]]:
    """Outline in longitude and latitude, with points along the edges, and its bounding box."""
    import numpy as np
    from rasterio.warp import transform

    w, s, e, n = grid.bbox
    steps = np.linspace(0, 1, 9)[:-1]
    xs = np.concatenate([w + (e - w) * steps, np.full(8, e), e + (w - e) * steps, np.full(8, w)])
    ys = np.concatenate([np.full(8, s), s + (n - s) * steps, np.full(8, n), n + (s - n) * steps])
    lons, lats = transform(grid.crs, "EPSG:4326", xs.tolist(), ys.tolist())
    ring = [[round(x, 7), round(y, 7)] for x, y in zip(lons, lats, strict=True)]
    ring.append(ring[0])
    lats_only = [p[1] for p in ring]
    lons_only = [p[0] for p in ring]
    bbox = [min(lons_only), min(lats_only), max(lons_only), max(lats_only)]
    if bbox[2] - bbox[0] > 180:
        # Across the antimeridian: GeoJSON wants west > east here, and one polygon on each side.
        east = [[x if x > 0 else 180.0, y] for x, y in ring]
        west = [[x if x < 0 else -180.0, y] for x, y in ring]
        bbox[0] = min(x for x in lons_only if x > 0)
        bbox[2] = max(x for x in lons_only if x < 0)
        return {"type": "MultiPolygon", "coordinates": [[east], [west]]}, bbox
    return {"type": "Polygon", "coordinates": [ring]}, bbox


def _embedding_fields(raster: LazyRaster, codec: str, model: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "emb:type": "pixel",
        "emb:dimensions": raster.shape[1],
        "data_type": "int8" if codec == "signed_power" else "float32",
        "emb:runtime_parameters": {
            key: raster.attrs[key]
            for key in ("model", "patch_size", "weights_id", "sensors", "sources")
            if key in raster.attrs
        },
    }
    if codec == "signed_power":
        # The extension can write linear scale and offset only; they would be wrong here.
        fields["emb:quantization"] = {
            "method": "signed_power",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "link": SIGNED_POWER_LINK,
        }
    if prefixes := matryoshka_dims(model, raster.shape[1]):
        fields["bocage:matryoshka_dims"] = prefixes
    return fields


def _projection_fields(grid: Grid) -> dict[str, Any]:
    from rasterio.crs import CRS

    t = grid.transform
    named = re.fullmatch(r"[A-Za-z]+:\w+", grid.crs) is not None
    code = {"proj:code": grid.crs} if named else {"proj:wkt2": CRS.from_wkt(grid.crs).to_wkt()}
    return {
        **code,
        "proj:shape": list(grid.shape_yx),
        "proj:transform": [float(v) for v in (t.a, t.b, t.c, t.d, t.e, t.f)],
        "proj:bbox": list(grid.bbox),
    }


def _dates(raster: LazyRaster) -> dict[str, Any]:
    """The range of the images that went in, or of the calendar years, or an admitted gap."""
    stated = raster.attrs.get("dates")
    days = sorted(str(d)[:10] for d in stated) if isinstance(stated, (list, tuple)) else []
    days = [d for d in days if re.fullmatch(r"\d{4}-\d\d-\d\d", d)]
    years = [y for y in raster.years if y]
    if days:
        first, last = days[0], days[-1]
    elif years:
        first, last = f"{min(years)}-01-01", f"{max(years)}-12-31"
    else:
        return {"datetime": _now(), "bocage:dates": "unknown; datetime is that of processing"}
    start, end = f"{first}T00:00:00Z", f"{last}T23:59:59Z"
    return {"datetime": None, "start_datetime": start, "end_datetime": end}


def _links(raster: LazyRaster, model: str) -> list[dict[str, Any]]:
    sensors = raster.attrs.get("sensors", ())
    sensors = sensors if isinstance(sensors, (list, tuple)) else ()
    links = [
        {
            "rel": "emb:model",
            "href": model_url(model),
            "type": "text/html",
            "title": model or "unknown model",
            "mlm:name": model or "unknown",
        }
    ]
    for sensor in sensors or [None]:
        title = sensor or "unknown"
        href = SOURCE_DATA.get(sensor, UNKNOWN_SOURCE) if sensor else UNKNOWN_SOURCE
        links.append(
            {
                "rel": "emb:source-data",
                "href": href,
                "type": "text/html",
                "title": title,
            }
        )
    return links


def _gsd_m(grid: Grid) -> float:
    from rasterio.crs import CRS

    crs = CRS.from_user_input(grid.crs)
    if crs.is_geographic:
        return round(grid.resolution * 111_319.49, 3)  # metres per degree at the equator
    return float(grid.resolution * crs.linear_units_factor[1])


def _href(uri: str, folder: Path) -> str:
    """Relative to the item's own folder where the file is inside it."""
    if "://" in uri:
        return uri
    try:
        return f"./{Path(uri).resolve().relative_to(folder.resolve())}"
    except ValueError:
        return Path(uri).resolve().as_uri()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
