"""Writing shards: GeoParquet 1.1 whose fixed columns can be read by byte range."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs.codec import has_look
from bocage.errors import StoreError
from bocage.search.layout import (
    BBOX,
    BBOX_FIELDS,
    CODE,
    DATE,
    GEOMETRY,
    RERANK,
    IndexInfo,
    emb_footer,
    geo_footer,
)

if TYPE_CHECKING:
    from pathlib import Path

    from bocage.embeddings.codecs import Codec

_PLAIN = [CODE, *(f"{BBOX}.{name}" for name in BBOX_FIELDS), DATE, RERANK]


def shard_schema(code_bytes: int, rerank_bytes: int, extra: Any) -> Any:
    """Arrow schema of a shard; fixed columns first, in the order in which a query reads them."""
    import pyarrow as pa

    box = pa.struct([pa.field(name, pa.float32(), nullable=False) for name in BBOX_FIELDS])
    fields = [
        pa.field(CODE, pa.binary(code_bytes), nullable=False),
        pa.field(BBOX, box, nullable=False),
        pa.field(DATE, pa.date32(), nullable=False),
        pa.field(RERANK, pa.binary(rerank_bytes), nullable=False),
        pa.field(GEOMETRY, pa.binary(), nullable=False),
    ]
    return pa.schema(fields + list(extra or []))


def write_shard(path: Path, table: Any, info: IndexInfo, codec: Codec) -> list[dict[str, Any]]:
    """Write one shard and return the manifest rows of its row groups."""
    import pyarrow.parquet as pq

    boxes = _boxes(table)
    bounds = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    footer = {
        "geo": json.dumps(geo_footer(_geometry_types(table), bounds)),
        "emb": json.dumps(emb_footer(info)),
    }
    table = table.replace_schema_metadata(footer)
    leaves = [f.name for f in table.schema if f.name not in (CODE, BBOX, DATE, RERANK)]
    compression = {**dict.fromkeys(_PLAIN, "none"), **dict.fromkeys(leaves, "zstd")}
    with pq.ParquetWriter(
        path,
        table.schema,
        compression=compression,
        use_dictionary=[n for n in leaves if n != GEOMETRY],
        write_statistics=[*(f"{BBOX}.{name}" for name in BBOX_FIELDS), DATE],
        # One page per column and row group, so that rows have computable offsets.
        data_page_size=1 << 30,
    ) as writer:
        writer.write_table(table, row_group_size=info.rows_per_group)
    return _manifest_rows(path, table, boxes, codec)


def _manifest_rows(path: Path, table: Any, boxes: Any, codec: Codec) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    footer = pq.read_metadata(path)
    size = path.stat().st_size
    rows = []
    first = 0
    dates = np.asarray(table[DATE].cast("int32"))
    codes = _bytes_of(table[CODE])
    widths = {CODE: codes.shape[1], RERANK: table.schema.field(RERANK).type.byte_width, DATE: 4}
    widths |= {f"{BBOX}.{name}": 4 for name in BBOX_FIELDS}
    for group in range(footer.num_row_groups):
        chunk = footer.row_group(group)
        n = chunk.num_rows
        part = slice(first, first + n)
        known = dates[part][dates[part] != 0]
        row: dict[str, Any] = {
            "file": f"{path.parent.name}/{path.name}",
            "file_bytes": size,
            "group": group,
            "first_row": first,
            "n_rows": n,
            "xmin": boxes[part, 0].min(),
            "ymin": boxes[part, 1].min(),
            "xmax": boxes[part, 2].max(),
            "ymax": boxes[part, 3].max(),
            "date_first": int(known.min()) if len(known) else 0,
            "date_last": int(known.max()) if len(known) else 0,
            "n_undated": n - len(known),
        }
        for i in range(chunk.num_columns):
            column = chunk.column(i)
            if column.path_in_schema in widths:
                name = column.path_in_schema.replace(f"{BBOX}.", "")
                row[f"{name}_offset"] = _values_offset(column, n, widths[column.path_in_schema])
        if has_look(codec):
            # How often each bit is set; the majority is what the places of this group look like.
            bits, n_bits = codec.look(codes[part])
            share = np.unpackbits(bits, axis=1, count=n_bits).mean(axis=0)
            row["fingerprint"] = np.packbits(share > 0.5).tobytes()
            row["diversity"] = float(2 * (share * (1 - share)).sum())
        rows.append(row)
        first += n
    return rows


def _values_offset(column: Any, n: int, width: int) -> int:
    """Where the first value lies: the page header is what the chunk has beyond its values."""
    header = column.total_compressed_size - n * width
    if column.compression != "UNCOMPRESSED" or not 0 < header < 1024:
        raise StoreError(
            got=f"column {column.path_in_schema} written in several pages or compressed",
            expected="one plain page per row group, which this format promises",
            fix="report this with the version of pyarrow; another version may work",
        )
    return int(column.data_page_offset + header)


def _boxes(table: Any) -> Any:
    column = table[BBOX].combine_chunks()
    if hasattr(column, "chunks"):
        column = column.chunk(0)
    return np.stack([np.asarray(column.field(name)) for name in BBOX_FIELDS], axis=1)


def _bytes_of(column: Any) -> Any:
    array = column.combine_chunks()
    if hasattr(array, "chunks"):
        array = array.chunk(0)
    width = array.type.byte_width
    values = np.frombuffer(array.buffers()[1], np.uint8)
    return values[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)


def _geometry_types(table: Any) -> list[str]:
    import shapely

    names = [
        *("Point", "LineString", "LinearRing", "Polygon"),
        *("MultiPoint", "MultiLineString", "MultiPolygon", "GeometryCollection"),
    ]
    ids = np.unique(shapely.get_type_id(shapely.from_wkb(table[GEOMETRY].to_numpy())))
    return sorted(names[int(i)] for i in ids)
