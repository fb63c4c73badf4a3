"""Reading GeoTIFFs of embeddings: ours, and AlphaEarth's with its rising rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.lazy_raster import LazyRaster, north_up, plain_values, prefix_length
from bocage.embeddings.quantization import Quantization, own_scale
from bocage.errors import SourceError, StoreError

if TYPE_CHECKING:
    from bocage.types import FloatArray

ALPHAEARTH_BANDS = tuple(f"A{i:02d}" for i in range(64))

QUANTIZATION_TAG = "QUANTIZATION"
FORMULA_TAG = "QUANTIZATION_FORMULA"
YEAR_TAG = "YEAR"
PROVENANCE_TAG = "BOCAGE"


def open_cog(uri: str, *, dims: int | None = None) -> LazyRaster:
    """The embeddings of a GeoTIFF as real values with falling y."""
    from rasterio.errors import RasterioIOError

    try:
        with open_quietly(uri) as source:
            tags = source.tags()
            names = tuple(d or "" for d in source.descriptions)
            dtypes, nodata = set(source.dtypes), source.nodata
            crs, transform = source.crs, source.transform
            shape_yx, n_bands = (source.height, source.width), source.count
            block = source.block_shapes[0]
    except RasterioIOError as error:
        raise SourceError(
            got=f"{uri}, which GDAL cannot open ({error})",
            expected="a Zarr store or a GeoTIFF of embeddings",
            fix="check the path, and that the file is complete",
        ) from error
    if crs is None:
        raise StoreError(
            got=f"{uri} without a CRS",
            expected="a georeferenced raster",
            fix="set it with gdal_edit.py -a_srs EPSG:...",
        )
    quantization = _quantization(uri, tags, names, dtypes, nodata)
    provenance = read_provenance(tags)
    quantization = own_scale(provenance, quantization)
    trained = tuple(provenance.get("matryoshka_dims", ()))
    n_dims = prefix_length(dims, n_bands, trained, uri)
    code = crs.to_epsg()
    grid, bottom_up = north_up(f"EPSG:{code}" if code else crs.to_wkt(), transform, shape_yx)
    alphaearth = names == ALPHAEARTH_BANDS
    return LazyRaster(
        read=_Reader(uri, quantization),
        shape=(1, n_dims, *shape_yx),
        grid=grid,
        years=(_year(uri, tags),),
        bottom_up=bottom_up,
        chunk_yx=_square(block, shape_yx),
        attrs={
            "model": provenance.get("model") or ("AlphaEarth" if alphaearth else ""),
            **plain_values(provenance),
            "codec": "float32" if quantization.method == "none" else quantization.method,
            "dates": provenance.get("dates", "known" if _year(uri, tags) else "unknown"),
            "unit_norm": int(alphaearth),
        },
    )


@contextmanager
def open_quietly(uri: str, **options: Any) -> Iterator[Any]:
    """The raster, opened without asking a remote folder for its listing or writing sidecars."""
    import rasterio

    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED=False),
        rasterio.open(uri, **options) as source,
    ):
        yield source


def read_provenance(tags: Mapping[str, str]) -> dict[str, Any]:
    """Our own JSON in the GDAL metadata, or nothing."""
    import json

    try:
        found = json.loads(tags.get(PROVENANCE_TAG, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class _Reader:
    """Opens the file for each read: GDAL handles may not be shared between threads."""

    def __init__(self, uri: str, quantization: Quantization) -> None:
        self.uri, self.quantization = uri, quantization

    def __call__(self, time: slice, band: slice, rows: slice, cols: slice) -> FloatArray:
        from rasterio.errors import RasterioIOError
        from rasterio.windows import Window

        window = Window.from_slices(rows, cols)
        shape = (band.stop - band.start, rows.stop - rows.start, cols.stop - cols.start)
        if time.stop <= time.start or 0 in shape:
            return np.empty((max(0, time.stop - time.start), *shape), np.float32)
        try:
            with open_quietly(self.uri) as source:
                q = source.read(list(range(band.start + 1, band.stop + 1)), window=window)
        except RasterioIOError as error:
            raise SourceError(
                got=f"{self.uri}, unreadable at rows {rows.start}-{rows.stop} ({error})",
                expected="a complete file",
                fix="copy or make it again",
            ) from error
        return self.quantization.decode(q[None])


def _quantization(
    uri: str, tags: Mapping[str, str], names: Sequence[str], dtypes: set[str], nodata: float | None
) -> Quantization:
    if len(dtypes) == 1 and next(iter(dtypes)).startswith("float"):
        finite = nodata if nodata is not None and not math.isnan(nodata) else None
        return Quantization(method="none", nodata=finite)
    method = tags.get(QUANTIZATION_TAG)
    if dtypes == {"int8"} and (
        method in {"signed_power", "signed_square"}
        or (method is None and names == ALPHAEARTH_BANDS)
    ):
        return Quantization(method="signed_power", nodata=-128)
    raise StoreError(
        got=f"{uri} of type {', '.join(sorted(dtypes))} with quantization {method!r}",
        expected=f"float32, or int8 with {QUANTIZATION_TAG}=signed_power in the GDAL metadata",
        fix=f"if the rule is known, set it with gdal_edit.py -mo {QUANTIZATION_TAG}=signed_power",
    )


def _year(uri: str, tags: Mapping[str, str]) -> int:
    if str(tags.get(YEAR_TAG, "")).isdigit():
        return int(tags[YEAR_TAG])
    # AlphaEarth's archive carries the year in the path only.
    match = re.search(r"/annual/(\d{4})/", uri)
    return int(match.group(1)) if match else 0


def _square(block: tuple[int, int], shape_yx: tuple[int, int]) -> tuple[int, int]:
    """Whole stored blocks, about 256 cells to a side (strips of an untiled file are thin)."""
    rows, cols = block
    return (
        min(shape_yx[0], rows * max(1, 256 // rows)),
        min(shape_yx[1], cols * max(1, 256 // cols)),
    )
