"""One lazy array [time, band, y, x] over any layout, and the DataArray users see.

The layout's file says how its own axes are called and which way they run; here rows fall, bands
are a prefix, and values are real. Reading, decoding and flipping happen in one step, so that
selecting a pixel of a country reads one chunk and not a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine

from bocage.errors import InputError
from bocage.geo import Grid

if TYPE_CHECKING:
    import xarray as xr

    from bocage.types import FloatArray

DIMENSIONS = ("time", "band", "y", "x")

# Dask plans within a second up to some ten thousand chunks; a whole zone of the public archive has
# eight million, and larger pieces would be read whole for a single pixel.
_MAX_CHUNKS = 20_000

Read = Callable[[slice, slice, slice, slice], "FloatArray"]
"""Real values of slices (time, band, rows, columns) of the stored array; steps are 1."""


@dataclass(frozen=True, kw_only=True)
class LazyRaster:
    """Behaves like a numpy array of float32 that is read when indexed."""

    read: Read
    """Reads stored slices, in the stored direction of y."""

    shape: tuple[int, int, int, int]
    """Years, dims (after the prefix), rows, columns."""

    grid: Grid
    """North-up grid of the rows as they are given out."""

    years: tuple[int, ...]
    bottom_up: bool = False
    """Stored rows rise: the first stored row is the southern one."""

    chunk_yx: tuple[int, int] = (256, 256)
    """Cells that are cheap to read together."""

    attrs: Mapping[str, Any] = field(default_factory=dict)

    dtype = np.dtype(np.float32)
    ndim = 4

    def __getitem__(self, key: Any) -> FloatArray:
        slices: list[slice] = []
        steps: list[Any] = []
        keys = key if isinstance(key, tuple) else (key,)
        if Ellipsis in [k for k in keys if k is Ellipsis]:
            i = next(i for i, k in enumerate(keys) if k is Ellipsis)
            keys = (*keys[:i], *[slice(None)] * (self.ndim - len(keys) + 1), *keys[i + 1 :])
        keys = (*keys, *[slice(None)] * (self.ndim - len(keys)))
        for k, length in zip(keys, self.shape, strict=True):
            if isinstance(k, (int, np.integer)):
                i = int(k) % length
                slices.append(slice(i, i + 1))
                steps.append(0)
            else:
                start, stop, step = k.indices(length)
                if step < 1:
                    raise IndexError("negative steps are not supported")
                slices.append(slice(start, max(start, stop)))
                steps.append(slice(None, None, step))
        time, band, rows, cols = slices
        if self.bottom_up:
            n = self.shape[2]
            stored = self.read(time, band, slice(n - rows.stop, n - rows.start), cols)
            values = stored[:, :, ::-1, :]
        else:
            values = self.read(time, band, rows, cols)
        return np.ascontiguousarray(values[tuple(steps)])

    @property
    def n_chunks(self) -> int:
        """How many pieces a dask array of whole stored chunks would have."""
        rows, cols = self.chunk_yx
        return self.shape[0] * -(-self.shape[2] // rows) * -(-self.shape[3] // cols)

    def to_dataarray(self) -> xr.DataArray:
        """Lazy DataArray (time, band, y, x) with coordinates, CRS and provenance."""
        import xarray as xr

        data = self._dask() if self.n_chunks <= _MAX_CHUNKS else self._indexed()
        array = xr.DataArray(
            data,
            dims=DIMENSIONS,
            name="embeddings",
            coords={
                "time": ("time", np.asarray(self.years, np.int32), {"long_name": "year"}),
                "band": ("band", np.arange(self.shape[1])),
                "y": ("y", self.grid.y, _axis(self.grid.crs, "y")),
                "x": ("x", self.grid.x, _axis(self.grid.crs, "x")),
                "spatial_ref": ((), 0, spatial_ref(self.grid)),
            },
            attrs={"long_name": "embedding", "units": "1", **self.attrs},
        )
        array.encoding["grid_mapping"] = "spatial_ref"
        return array

    def _dask(self) -> Any:
        """One year, all bands and one stored chunk per piece."""
        import dask.array as da

        rows, cols = self.chunk_yx
        return da.from_array(
            self,
            chunks=(1, self.shape[1], min(rows, self.shape[2]), min(cols, self.shape[3])),
            name=False,
            fancy=False,
            asarray=True,
            meta=np.empty((0, 0, 0, 0), np.float32),
        )

    def _indexed(self) -> Any:
        """Xarray's own laziness, which remembers selections and has no graph to plan."""
        from xarray.backends import BackendArray
        from xarray.core import indexing

        raster = self

        class Selected(BackendArray):
            shape = raster.shape
            dtype = raster.dtype

            def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
                basic = indexing.IndexingSupport.BASIC
                return indexing.explicit_indexing_adapter(
                    key, raster.shape, basic, raster.__getitem__
                )

        return indexing.LazilyIndexedArray(Selected())


def spatial_ref(grid: Grid) -> dict[str, Any]:
    """CF grid mapping attributes that rioxarray, odc-geo and GDAL understand."""
    from rasterio.crs import CRS

    t = grid.transform
    wkt = CRS.from_user_input(grid.crs).to_wkt()
    return {
        "spatial_ref": wkt,
        "crs_wkt": wkt,
        "GeoTransform": " ".join(repr(float(v)) for v in (t.c, t.a, t.b, t.f, t.d, t.e)),
    }


def north_up(crs: str, transform: Affine, shape_yx: tuple[int, int]) -> tuple[Grid, bool]:
    """The falling-y grid of a stored transform, and whether its rows have to be turned."""
    if transform.e <= 0:
        return Grid(crs=crs, transform=transform, shape_yx=shape_yx), False
    top = transform.f + transform.e * shape_yx[0]
    t = Affine(transform.a, transform.b, transform.c, transform.d, -transform.e, top)
    return Grid(crs=crs, transform=t, shape_yx=shape_yx), True


def plain_values(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What an attribute of an xarray object may hold: numbers, texts and lists of them."""

    def plain(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return bool(value) and all(isinstance(v, (str, int, float)) for v in value)
        return isinstance(value, (str, int, float)) and value != ""

    return {k: v for k, v in attributes.items() if plain(v)}


def prefix_length(dims: int | None, available: int, trained: tuple[int, ...], where: str) -> int:
    """Bands to give out for `dims`; InputError if there are not so many.

    Any prefix may be asked for, but only of a model trained for it is a prefix a good embedding.
    """
    import warnings

    from bocage.errors import BocageWarning

    if dims is None or dims == available:
        return available
    if not 1 <= dims <= available:
        raise InputError(
            got=f"dims={dims} of {where}",
            expected=f"1 to {available}",
            fix="leave dims away for all of them",
        )
    if dims not in trained:
        usable = f"dims {list(trained)}" if trained else "all dims"
        warnings.warn(
            f"the first {dims} of {available} dims of {where} are not an embedding by themselves: "
            f"the model was trained for {usable}; expect worse results than with PCA",
            BocageWarning,
            stacklevel=4,
        )
    return dims


def _axis(crs: str, name: str) -> dict[str, str]:
    from rasterio.crs import CRS

    if CRS.from_user_input(crs).is_geographic:
        kind = ("longitude", "degrees_east") if name == "x" else ("latitude", "degrees_north")
        return {"standard_name": kind[0], "units": kind[1]}
    return {"standard_name": f"projection_{name}_coordinate", "units": "m"}
