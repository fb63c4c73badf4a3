"""The Zarr v3 store: group utmNN, array embeddings (time, band, y, x), one file per shard.

The layout is that of the public OlmoEarth archive, so its readers read ours. All metadata is
written once, before any value; after that, workers only add whole shards, and two workers never
need to talk to each other.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.atomic import directory_in_place, write_file
from bocage.embeddings.conventions import (
    bocage_attributes,
    geoemb_attributes,
    spatial_attributes,
)
from bocage.embeddings.grid import EmbeddingGrid
from bocage.errors import InputError
from bocage.geo import Grid, northern_grid, utm_zone

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import PathLike

ARRAY = "embeddings"
DIMENSIONS = ("time", "band", "y", "x")
ZSTD_LEVEL = 3

_COORDINATE_CHUNK = 65_536


def zone_name(crs: str) -> str:
    """Group of a UTM CRS: "utm18" for EPSG:32618 and EPSG:32718; InputError for others."""
    return f"utm{utm_zone(crs)[0]:02d}"


def group_name(grid: EmbeddingGrid) -> str:
    """Path of the group that holds the array: the zone's, or "" for the root."""
    return zone_name(grid.crs) if grid.layout == "utm_zones" else ""


def create_store(path: PathLike, grid: EmbeddingGrid) -> Path:
    """Make an empty store that says everything about itself and holds nodata everywhere.

    The metadata appears in one step. InputError if the layout is utm_zones and the CRS is not
    WGS 84 UTM, StoreError if the path exists (write to it with write_shard) or cannot be
    written.
    """
    target = Path(path)
    stored = northern_grid(grid.grid) if grid.layout == "utm_zones" else grid.grid
    with directory_in_place(target) as folder:
        _write_metadata(folder, grid, stored)
    return target


def write_shard(  # noqa: PLR0917 - year, row, col is the order of the file's own path
    path: PathLike, grid: EmbeddingGrid, year: int, row: int, col: int, x: NDArray[Any]
) -> int:
    """Write one whole shard of one year, in one step; returns its bytes on disk (0 if all nodata).

    `x` is float32 [D, h, w] with NaN for nodata, or the int8 codes themselves; h, w are
    `grid.shard_shape(row, col)`. The same values give the same bytes, and a killed process leaves
    either no shard or a whole one.
    """
    return put_shard(path, grid, year, row, col, shard_bytes(grid, row, col, x))


def shard_bytes(grid: EmbeddingGrid, row: int, col: int, x: NDArray[Any]) -> bytes | None:
    """What `write_shard` would put into the file; None where every value is nodata."""
    return _encode_shard(grid, _codes(grid, x, grid.shard_shape(row, col)))


def put_shard(  # noqa: PLR0917 - year, row, col is the order of the file's own path
    path: PathLike, grid: EmbeddingGrid, year: int, row: int, col: int, data: bytes | None
) -> int:
    """Put the bytes of a shard in place in one step, which waits for the disk."""
    target = shard_path(path, grid, year, row, col)
    if data is None:
        target.unlink(missing_ok=True)
        return 0
    write_file(target, data)
    return len(data)


def shard_path(path: PathLike, grid: EmbeddingGrid, year: int, row: int, col: int) -> Path:
    """The file of one shard; it does not exist while the shard is all nodata."""
    key = f"c/{grid.year_index(year)}/0/{row}/{col}"
    return Path(path) / group_name(grid) / ARRAY / key


def _write_metadata(folder: Path, grid: EmbeddingGrid, stored: Grid) -> None:
    import zarr
    from zarr.storage import MemoryStore

    # Into memory first: zarr goes to the disk and back for each of a dozen small files.
    documents: dict[str, Any] = {}
    with warnings.catch_warnings():
        # Consolidated metadata is what the public store has; one request opens it over HTTP.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        shared = geoemb_attributes(grid)
        own = {"bocage": bocage_attributes(grid)}
        root = zarr.create_group(
            MemoryStore(documents), zarr_format=3, attributes={**shared, **own}
        )
        name = group_name(grid)
        attributes = {**shared, **spatial_attributes(stored), **own}
        if name:
            group = root.create_group(name, attributes=attributes)
        else:
            group = root.update_attributes(attributes)
        group.create_array(ARRAY, shape=_array_shape(grid), **_array_options(grid))
        for axis, values in (
            ("time", np.asarray(grid.years, np.int32)),
            ("y", stored.y),
            ("x", stored.x),
        ):
            coordinate = group.create_array(
                axis,
                shape=values.shape,
                dtype=values.dtype,
                chunks=(min(values.size, _COORDINATE_CHUNK),),
                compressors=[_zstd()],
                dimension_names=(axis,),
            )
            coordinate[:] = values
        zarr.consolidate_metadata(root.store)
    for key, document in documents.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.to_bytes())


def _encode_shard(grid: EmbeddingGrid, codes: NDArray[Any]) -> bytes | None:
    """Bytes of one shard file; None where every value is nodata.

    zarr would write the file itself, but it reads the old shard first and does not wait for the
    disk; so it encodes into memory and write_file does the rest.
    """
    import zarr
    from zarr.storage import MemoryStore

    chunks: dict[str, Any] = {}
    shard = zarr.create_array(
        MemoryStore(chunks),
        name=ARRAY,
        shape=(1, *codes.shape),
        zarr_format=3,
        **_array_options(grid),
    )
    shard[0] = codes
    data = chunks.get(f"{ARRAY}/c/0/0/0/0")
    return None if data is None else data.to_bytes()


def _array_shape(grid: EmbeddingGrid) -> tuple[int, int, int, int]:
    return (len(grid.years), grid.dims, *grid.shape_yx)


def _zstd() -> Any:
    """Zstandard with a checksum per chunk: without one, rotten bytes decode to other numbers."""
    from zarr.codecs import ZstdCodec

    return ZstdCodec(level=ZSTD_LEVEL, checksum=True)


def _array_options(grid: EmbeddingGrid) -> dict[str, Any]:
    side, inner = grid.shard_cells, grid.inner_cells
    return {
        "dtype": grid.dtype,
        "chunks": (1, grid.inner_bands, inner, inner),
        "shards": (1, grid.dims, side, side),
        "fill_value": grid.nodata,
        "compressors": [_zstd()],
        "dimension_names": DIMENSIONS,
    }


def _codes(grid: EmbeddingGrid, x: NDArray[Any], shape_yx: tuple[int, int]) -> NDArray[Any]:
    from bocage.embeddings.codecs import signed_power

    if x.shape != (grid.dims, *shape_yx):
        raise InputError(
            got=f"values of shape {x.shape}",
            expected=f"one whole shard [D, h, w] = {(grid.dims, *shape_yx)}",
            fix="write whole shards only; parts of a shard would race with other workers",
        )
    if x.dtype == np.int8 and grid.codec == "signed_power":
        return x
    if x.dtype.kind != "f":
        raise InputError(
            got=f"values of type {x.dtype} for codec {grid.codec}",
            expected="float32 values" + (" or int8 codes" * (grid.dtype == "int8")),
            fix="convert with astype('float32'), with NaN for nodata",
        )
    if grid.codec == "signed_power":
        return signed_power.encode(x if grid.value_scale == 1 else x / np.float32(grid.value_scale))
    return np.ascontiguousarray(x, np.float32)
