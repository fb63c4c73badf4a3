"""The files of a search index, as written down in docs/search-format.md.

    index.json          what the index is: model, dims, codes, rows, bounds
    manifest.parquet    one row per row group: file, rows, bounds, dates, byte offsets, fingerprint
    codec/              the codec of the first stage (codec.json, codec.npz)
    shards/NNNNN.parquet  GeoParquet 1.1, rows in Hilbert order

Columns of fixed width (codes, bounds, date, rerank) are required, plain, uncompressed, and one page
per row group, so row i of a group lies at a byte offset that anyone can compute: a browser reads
codes without a Parquet library, and the second stage reads single rows by range request.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "bocage-search"
VERSION = 2

INDEX_FILE = "index.json"
MANIFEST_FILE = "manifest.parquet"
CODEC_FOLDER = "codec"
SHARD_FOLDER = "shards"

CODE, BBOX, DATE, RERANK, GEOMETRY = "code", "bbox", "date", "rerank", "geometry"
BBOX_FIELDS = ("xmin", "ymin", "xmax", "ymax")
RESERVED = (CODE, BBOX, DATE, RERANK, GEOMETRY)

UNKNOWN_DATE = 0
"""1970-01-01, in days since 1970, stands for an unknown date; no date filter matches it."""


@dataclass(frozen=True, kw_only=True)
class IndexInfo:
    """Everything index.json says; read it first."""

    n_rows: int
    dims: int
    """Dimensions of the embeddings."""

    code: dict[str, Any]
    """Codec of the first stage, as `codecs.registry.describe` gives it."""

    rerank_dims: int
    """Leading dimensions kept in `rerank`; fewer than `dims` for a Matryoshka prefix."""

    offset: tuple[float, ...]
    """What code 0 of the second stage stands for, per dimension [rerank_dims]."""

    scale: tuple[float, ...]
    """Step from one code to the next, per dimension [rerank_dims]."""

    bbox_wsen: tuple[float, float, float, float]
    """Bounds of all rows, degrees."""

    dates: tuple[str, str] | None
    """First and last known date, ISO; None if no row has one."""

    model: str = ""
    rows_per_group: int = 4096
    columns: tuple[str, ...] = ()
    """Further columns carried from the source."""

    n_dropped: int = 0
    """Rows of the source left out for having no data."""

    attrs: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of index.json."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        content["rerank"] = {
            "method": "linear",
            "formula": "offset + scale * q per dimension; of vectors of length one",
        }
        # One line each: they have a number per dimension.
        lines = [f'  "{name}": {json.dumps(content.pop(name))}' for name in ("offset", "scale")]
        text = json.dumps(content, indent=2)
        return text[:-2] + ",\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> IndexInfo:
        """Read index.json; StoreError for other files and newer versions."""
        try:
            content = json.loads(text)
            if content.get("format") != FORMAT or content["version"] != VERSION:
                raise StoreError(
                    got=f"{where} of format {content.get('format')} {content.get('version')}",
                    expected=f"{FORMAT} version {VERSION}",
                    fix="build it again with bocage index; upgrade bocage if its version is higher",
                )
            known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
            known["bbox_wsen"] = tuple(known["bbox_wsen"])
            known["dates"] = tuple(known["dates"]) if known.get("dates") else None
            known["columns"] = tuple(known.get("columns", ()))
            known["offset"], known["scale"] = tuple(known["offset"]), tuple(known["scale"])
            return cls(**known)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                got=f"an unreadable {where} ({error})",
                expected="the index.json that bocage index writes",
                fix="copy the index again, or build it again",
            ) from error


def emb_footer(info: IndexInfo) -> dict[str, Any]:
    """What stands under the footer key `emb` of every shard."""
    return {
        "emb:type": "chip",
        "emb:dimensions": info.dims,
        "emb:model": info.model,
        "data_type": "int8",
        "emb:quantization": {
            "method": "linear",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "scale": list(info.scale),
            "offset": list(info.offset),
            "column": RERANK,
        },
        "code": {"column": CODE, **info.code},
    }


def geo_footer(types: list[str], bbox_wsen: tuple[float, ...]) -> dict[str, Any]:
    """What stands under the footer key `geo` of every shard: GeoParquet 1.1 with bbox covering."""
    return {
        "version": "1.1.0",
        "primary_column": GEOMETRY,
        "columns": {
            GEOMETRY: {
                "encoding": "WKB",
                "geometry_types": types,
                "bbox": list(bbox_wsen),  # no crs member: OGC:CRS84 is the default
                "covering": {"bbox": {name: [BBOX, name] for name in BBOX_FIELDS}},
            }
        },
    }


def cell_polygons(corners: NDArray[np.float64]) -> NDArray[np.uint8]:
    """WKB polygons [N, 93 bytes] of quadrilaterals given by corners [N, 4, 2] in lon, lat."""
    record = np.dtype(
        [("order", "u1"), ("type", "<u4"), ("rings", "<u4"), ("n", "<u4"), ("xy", "<f8", (5, 2))]
    )
    shapes = np.zeros(len(corners), record)
    shapes["order"], shapes["type"], shapes["rings"], shapes["n"] = 1, 3, 1, 5
    shapes["xy"][:, :4] = corners
    shapes["xy"][:, 4] = corners[:, 0]
    return shapes.view(np.uint8).reshape(len(corners), record.itemsize)


def float32_outward(bbox: NDArray[np.float64]) -> NDArray[np.float32]:
    """Bounds [N, 4] w s e n as float32 that still cover the float64 ones."""
    rounded = bbox.astype(np.float32)
    low, high = rounded[:, :2], rounded[:, 2:]
    low[low > bbox[:, :2]] = np.nextafter(low[low > bbox[:, :2]], np.float32(-np.inf))
    high[high < bbox[:, 2:]] = np.nextafter(high[high < bbox[:, 2:]], np.float32(np.inf))
    return rounded
