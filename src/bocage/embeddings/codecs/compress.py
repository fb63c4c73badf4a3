"""Compressing what exists: grids of embeddings and tables of them, streaming, in bounded memory.

A grid becomes a Zarr v3 group of codes with the codec beside them:

    codes   (time, code, y, x)   rows of codes; one chunk per block of cells
    valid   (time, y, x)         1 where there is data; for codecs without a nodata code
    codec/  what the codec learned, an array each; its description is in the attributes
    done    one entry per finished block: a killed run goes on where it stopped

Tables: see compress_table.

A codec is fitted once, before the first block, on cells drawn from the whole grid, and is the same
for every block. `open_compressed` reads the result back as float32.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.contents import contents_of
from bocage.embeddings.codecs.codec import Codec, valid_rows
from bocage.embeddings.codecs.compress_result import CompressResult
from bocage.embeddings.codecs.compress_table import compress_table
from bocage.embeddings.codecs.registry import describe, make_codec, restore_codec
from bocage.errors import InputError, StoreError
from bocage.progress import progress, size_on_disk

if TYPE_CHECKING:
    from bocage.embeddings.lazy_raster import LazyRaster
    from bocage.types import FloatArray, PathLike

_log = logging.getLogger(__name__)

FORMAT = "bocage-codes"
_BLOCK_CELLS = 256
_SAMPLE_ROWS = 50_000


def compress(
    source: PathLike,
    out: PathLike,
    *,
    codec: str | Codec = "signed_power_gain",
    embedding_column: str = "embedding",
    seed: int = 0,
    show_progress: bool = False,
) -> CompressResult:
    """Compress a grid (Zarr, COG) or a GeoParquet table of embeddings with a codec.

    `codec` is a name, fitted here on a sample of the source, or a fitted Codec (of the same model).
    A killed run goes on when the same command is run again; a finished one does nothing. StoreError
    if `out` holds other codes, or codes of what the source held before it was written anew. Tables
    keep their other columns and get a column `code` in place of the embedding.
    """
    path = Path(source)
    if path.suffix in (".parquet", ".geoparquet", ".gpq"):
        return compress_table(
            path,
            Path(out),
            codec=codec,
            embedding_column=embedding_column,
            seed=seed,
            show_progress=show_progress,
        )
    return _compress_grid(source, Path(out), codec, seed, show_progress=show_progress)


# -- grids ----------------------------------------------------------------------------------------


def _compress_grid(
    source: PathLike, out: Path, codec: str | Codec, seed: int, *, show_progress: bool
) -> CompressResult:
    from bocage.embeddings.open import open_raster

    raster = open_raster(source)
    name = codec if isinstance(codec, str) else codec.name
    contents = contents_of([source])
    if (out / "zarr.json").exists():
        fitted = _resumable(out, name, raster, contents)
    else:
        fitted = _fit_on_grid(raster, codec, seed)
        _create(out, fitted, raster, str(source), contents)
    import zarr

    group = zarr.open_group(str(out), mode="r+")
    n_vectors = n_skipped = 0
    blocks = list(_blocks(raster.shape))
    with progress("compress", len(blocks), unit="blocks", enabled=show_progress) as advance:
        done = np.asarray(group["done"][:])
        for i, block in enumerate(blocks):
            if done[i]:
                n_skipped += 1
            else:
                n_vectors += _write_block(group, fitted, raster, block)
                group["done"][i] = 1  # after its codes: a chunk of its own, one file
            advance(1)
    return CompressResult(
        path=out,
        codec=fitted.name,
        n_vectors=n_vectors,
        n_bytes=size_on_disk(out),
        float_bytes=4 * int(np.prod(raster.shape)),
        n_skipped=n_skipped,
    )


def _write_block(
    group: Any, codec: Codec, raster: LazyRaster, block: tuple[int, slice, slice]
) -> int:
    year, rows, cols = block
    values = raster[year, :, rows, cols]  # [D, h, w]
    shape = values.shape[1:]
    x = np.ascontiguousarray(values.reshape(len(values), -1).T)
    valid = valid_rows(x)
    if not valid.any():
        return 0
    fill = _fill_value(codec)
    q = np.full((len(x), codec.code_width), fill, codec.code_dtype)
    q[valid] = codec.encode(x[valid])
    group["codes"][year, :, rows, cols] = q.T.reshape(codec.code_width, *shape)
    if codec.nodata is None:
        group["valid"][year, rows, cols] = valid.reshape(shape).astype(np.uint8)
    return int(valid.sum())


def _blocks(shape: tuple[int, int, int, int]) -> Iterator[tuple[int, slice, slice]]:
    years, _, n_rows, n_cols = shape
    for year in range(years):
        for row in range(0, n_rows, _BLOCK_CELLS):
            for col in range(0, n_cols, _BLOCK_CELLS):
                rows = slice(row, min(row + _BLOCK_CELLS, n_rows))
                yield year, rows, slice(col, min(col + _BLOCK_CELLS, n_cols))


def _fit_on_grid(raster: LazyRaster, codec: str | Codec, seed: int) -> Codec:
    model = str(raster.attrs.get("model", ""))
    if isinstance(codec, Codec):
        codec.check_model(model)
        if codec.dims != raster.shape[1]:
            raise InputError(
                got=f"a codec for {codec.dims} dimensions",
                expected=f"{raster.shape[1]}, the dimensions of the grid",
                fix="fit a codec on this grid",
            )
        return codec
    rng = np.random.default_rng(seed)
    blocks = list(_blocks(raster.shape))
    parts: list[FloatArray] = []
    n_found = 0
    # A few cells of many blocks: the sample must not be one landscape.
    per_block = max(256, _SAMPLE_ROWS // len(blocks))
    for i in rng.permutation(len(blocks)):
        year, rows, cols = blocks[i]
        x = raster[year, :, rows, cols].reshape(raster.shape[1], -1).T
        x = x[valid_rows(np.ascontiguousarray(x))]
        if len(x):
            parts.append(x[rng.choice(len(x), min(per_block, len(x)), replace=False)])
            n_found += len(parts[-1])
        if n_found >= _SAMPLE_ROWS:
            break
    if not parts:
        raise InputError(
            got="a grid without a single cell with data",
            expected="embeddings",
            fix="check it with bocage info",
        )
    return make_codec(codec, seed=seed).fit(np.concatenate(parts), model=model)


def _create(out: Path, codec: Codec, raster: LazyRaster, source: str, contents: str) -> None:
    import zarr

    from bocage.embeddings.atomic import directory_in_place
    from bocage.embeddings.lazy_raster import spatial_ref

    years, _, n_rows, n_cols = raster.shape
    chunk = (min(_BLOCK_CELLS, n_rows), min(_BLOCK_CELLS, n_cols))
    with directory_in_place(out) as folder:
        group = zarr.open_group(str(folder), mode="w", zarr_format=3)
        t = raster.grid.transform
        group.attrs.update(
            {
                "format": FORMAT,
                "codec": describe(codec),
                "source": source,
                "contents": contents,
                "crs": raster.grid.crs,
                "transform": [t.a, t.b, t.c, t.d, t.e, t.f],
                "years": list(raster.years),
                "embeddings": {k: v for k, v in raster.attrs.items() if _is_json(v)},
            }
        )
        group.create_array(
            "codes",
            shape=(years, codec.code_width, n_rows, n_cols),
            chunks=(1, codec.code_width, *chunk),
            dtype=codec.code_dtype,
            fill_value=_fill_value(codec),
            dimension_names=("time", "code", "y", "x"),
            attributes={"grid_mapping": "spatial_ref"},
        )
        if codec.nodata is None:
            group.create_array(
                "valid",
                shape=(years, n_rows, n_cols),
                chunks=(1, *chunk),
                dtype=np.uint8,
                dimension_names=("time", "y", "x"),
            )
        for axis, values in (
            ("time", np.asarray(raster.years, np.int32)),
            ("y", np.asarray(raster.grid.y)),
            ("x", np.asarray(raster.grid.x)),
        ):
            coordinate = group.create_array(
                axis, shape=values.shape, dtype=values.dtype, dimension_names=(axis,)
            )
            coordinate[:] = values
        mapping = group.create_array("spatial_ref", shape=(), dtype=np.int8)
        mapping.attrs.update(spatial_ref(raster.grid))
        learned = group.create_group("codec")
        for name, values in codec.arrays().items():
            learned.create_array(name, data=np.ascontiguousarray(values))
        n_blocks = len(list(_blocks(raster.shape)))
        group.create_array(
            "done", shape=(n_blocks,), chunks=(1,), dtype=np.uint8, dimension_names=("block",)
        )


def _resumable(out: Path, name: str, raster: LazyRaster, contents: str) -> Codec:
    stored = open_compressed(out)
    same_shape = (stored.shape[0], *stored.shape[2:]) == (raster.shape[0], *raster.shape[2:])
    if stored.codec.name != name or not same_shape or stored.codec.dims != raster.shape[1]:
        raise StoreError(
            got=f"{out}, which holds {stored.codec.name} codes of a grid of {stored.shape}",
            expected=f"the unfinished result of the same command ({name}, {raster.shape})",
            fix="choose another output, or delete this one",
        )
    if stored.group.attrs.get("contents", contents) != contents:
        raise StoreError(
            got=f"{out}, made of {stored.group.attrs['source']} before it was written anew",
            expected="the unfinished or finished result of this source",
            fix="choose another output, or delete this one",
        )
    return stored.codec


def _fill_value(codec: Codec) -> float | int:
    return 0 if codec.nodata is None else codec.nodata


@dataclass(frozen=True, kw_only=True)
class CompressedGrid:
    """A compressed grid, decoded window by window."""

    codec: Codec
    shape: tuple[int, int, int, int]
    """Years, dimensions, rows, columns of what it decodes to."""

    years: tuple[int, ...]
    crs: str
    transform: tuple[float, ...]
    group: Any

    def read(self, year: int, rows: slice, cols: slice) -> FloatArray:
        """Float32 [D, h, w] of a window of one year (an index), NaN where there is no data."""
        q = np.asarray(self.group["codes"][year, :, rows, cols])
        shape = q.shape[1:]
        x = self.codec.decode(np.ascontiguousarray(q.reshape(len(q), -1).T))
        if self.codec.nodata is None:
            x[np.asarray(self.group["valid"][year, rows, cols]).reshape(-1) == 0] = np.nan
        return np.ascontiguousarray(x.T).reshape(-1, *shape)


def open_compressed(path: PathLike) -> CompressedGrid:
    """Open a grid that `compress` wrote."""
    import zarr

    if not (Path(path) / "zarr.json").exists():
        raise StoreError(
            got=f"{path}, which is not a Zarr group",
            expected="a grid written by bocage compress",
            fix="check the path",
        )
    group = zarr.open_group(str(path), mode="r")
    attrs = dict(group.attrs)
    if attrs.get("format") != FORMAT:
        raise StoreError(
            got=f"{path} without the mark {FORMAT}",
            expected="a grid written by bocage compress",
            fix="open embeddings with bocage.open_embeddings",
        )
    learned = {name: np.asarray(array[...]) for name, array in group["codec"].arrays()}
    codec = restore_codec(dict(attrs["codec"]), learned, where=str(path))
    years, _, n_rows, n_cols = group["codes"].shape
    return CompressedGrid(
        codec=codec,
        shape=(years, codec.dims, n_rows, n_cols),
        years=tuple(attrs["years"]),
        crs=attrs["crs"],
        transform=tuple(attrs["transform"]),
        group=group,
    )


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
