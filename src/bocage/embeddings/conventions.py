"""Attributes of the public conventions geoemb, spatial and proj for Zarr groups.

Texts, UUIDs and URLs are fixed by the conventions' schemas (tag v1) and by the public OlmoEarth,
AlphaEarth and TESSERA stores, so they are written exactly; whatever the schemas do not know goes
under our own key "bocage".
"""

from __future__ import annotations

import re
from typing import Any

from bocage._version import __version__
from bocage.embeddings.grid import EmbeddingGrid
from bocage.geo import Grid

GEOEMB = {
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}
SPATIAL = {
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/spatial/blob/v1/README.md",
    "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    "name": "spatial:",
    "description": "Spatial coordinate information",
}
PROJ = {
    "schema_url": "https://raw.githubusercontent.com/zarr-experimental/geo-proj/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/zarr-experimental/geo-proj/blob/v1/README.md",
    "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "name": "proj:",
    "description": "Coordinate reference system information for geospatial data",
}
CONVENTIONS = (GEOEMB, SPATIAL, PROJ)

SIGNED_POWER_LINK = (
    "https://github.com/allenai/rslearn_projects/blob/master/rslp/large_scale_embeddings/README.md"
)
"""Where the quantization rule is written down; the convention cannot hold the formula itself."""

SIGNED_POWER_FORMULA = "x = sign(q) * (abs(q) / 127.5) ** 2, q = -128 is nodata"

SOURCE_DATA = {
    "sentinel2_l2a": "https://sentinel.esa.int/web/sentinel/missions/sentinel-2",
    "sentinel1": "https://sentinel.esa.int/web/sentinel/missions/sentinel-1",
    "landsat": "https://www.usgs.gov/landsat-missions",
}
UNKNOWN_SOURCE = "urn:bocage:source-data:unknown"
UNKNOWN_MODEL = "urn:bocage:model:unknown"

_OUR_NAME = re.compile(r"olmoearth-v(\d+(?:\.\d+)?)-([a-z]+)")


def model_url(model: str) -> str:
    """The URI that names a model: its page on the hub, or a urn for anything of one's own."""
    if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]*:", model):
        return model
    if match := _OUR_NAME.fullmatch(model):
        version, size = match.group(1).replace(".", "_"), match.group(2).capitalize()
        return f"https://huggingface.co/allenai/OlmoEarth-v{version}-{size}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return f"https://huggingface.co/{model}"
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-")
    return f"urn:bocage:model:{slug}" if slug else UNKNOWN_MODEL


def matryoshka_dims(model: str, dims: int) -> list[int]:
    """Prefix lengths that the model was trained to make usable alone; empty for most."""
    # Only the student of v1.3 is trained so, and only 128 of its values carry the property.
    return [128, 64] if dims == 128 and re.search(r"v1[._]3", model, re.IGNORECASE) else []


def geoemb_attributes(grid: EmbeddingGrid) -> dict[str, Any]:
    """geoemb: keys, for the root and for each zone group."""
    # "single" is not a word of the convention, which knows UTM zones and whole-globe arrays only.
    layout = {"geoemb:spatial_layout": grid.layout} if grid.layout == "utm_zones" else {}
    attributes: dict[str, Any] = {
        "zarr_conventions": [dict(c) for c in CONVENTIONS],
        "geoemb:type": "pixel",
        "geoemb:dimensions": grid.dims,
        "geoemb:model": model_url(grid.model),
        "geoemb:source_data": [SOURCE_DATA.get(s, s) for s in grid.sensors] or [UNKNOWN_SOURCE],
        "geoemb:data_type": grid.dtype,
        "geoemb:gsd": grid.ground_resolution_m,
        **layout,
        "geoemb:build_version": f"bocage {__version__}",
    }
    if grid.codec == "signed_power":
        attributes["geoemb:quantization"] = {
            "method": "signed_power",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "link": SIGNED_POWER_LINK,
        }
    if prefixes := matryoshka_dims(grid.model, grid.dims):
        attributes["geoemb:matryoshka_dims"] = prefixes
    return attributes


def spatial_attributes(grid: Grid) -> dict[str, Any]:
    """spatial: and proj: keys of a zone group."""
    t = grid.transform
    named = re.fullmatch(r"[A-Za-z]+:\w+", grid.crs) is not None
    return {
        "proj:code" if named else "proj:wkt2": grid.crs,
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": [float(v) for v in (t.a, t.b, t.c, t.d, t.e, t.f)],
        "spatial:shape": list(grid.shape_yx),
        "spatial:bbox": list(grid.bbox),
        "spatial:registration": "pixel",
    }


def bocage_attributes(grid: EmbeddingGrid) -> dict[str, Any]:
    """What the conventions have no room for: our own provenance."""
    return {
        **dict(grid.attrs),
        "model": grid.model,
        "patch_size": grid.patch_size,
        "codec": grid.codec,
        **({} if grid.value_scale == 1 else {"value_scale": grid.value_scale}),
        "shard_cells": grid.shard_cells,
        "source_crs": grid.crs,
        "sensors": list(grid.sensors),
    }
