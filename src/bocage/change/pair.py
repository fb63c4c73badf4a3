"""Two times of one place on one grid, read one rectangle at a time.

A pair comes from two embedding stores, from two years of one, from two scenes, or from two plain
rasters with the same bands. Cells without data at either time are NaN at both: what was seen once
has not changed and has not stayed, it is not known.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine

from bocage.contents import contents_of
from bocage.errors import BocageWarning, InputError, SourceError
from bocage.geo import Grid
from bocage.learn.raster import Raster, raster_of
from bocage.learn.source import embeddings_at

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from bocage.embeddings.lazy_raster import LazyRaster
    from bocage.types import FloatArray, PathLike

Source = "PathLike | xr.DataArray | xr.Dataset | Raster"

_SAME = 1e-3
"""Of a cell: grids that are off by less are the same."""

_COMPARED = {"model": "model", "weights_id": "weights", "patch_size": "patch size"}
"""What embeddings must share, in words."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Values of two times on one grid."""

    read: Callable[[slice, slice], tuple[FloatArray, FloatArray]]
    """Rows, columns to before and after [D, h, w]; NaN in both where either has no data."""

    grid: Grid
    features: tuple[str, ...]
    years: tuple[int, int]
    """Before, after; 0 is an unknown year."""

    names: tuple[str, str]
    """What was opened."""

    is_embeddings: bool
    contents: tuple[str, str] = ("", "")
    """Changes with what is in a store or file, where that is known."""

    attrs: dict[str, Any] = field(default_factory=dict)
    """Of the later time: model, weights_id, patch_size, codec."""

    def difference(self) -> Raster:
        """After minus before, as a raster that labels can be laid on."""

        def read(_year: int, rows: slice, cols: slice) -> FloatArray:
            before, after = self.read(rows, cols)
            return after - before

        return Raster(
            read=read,
            grid=self.grid,
            features=tuple(f"change of {name}" for name in self.features),
            years=(0,),
            attrs=dict(self.attrs),
        )


def open_pair(
    before: PathLike | xr.DataArray | xr.Dataset | Raster,
    after: PathLike | xr.DataArray | xr.Dataset | Raster | None = None,
    *,
    years: tuple[int, int] | None = None,
) -> Pair:
    """Open two times of one place.

    Args:
        before: Embeddings (a store, a GeoTIFF, or from `open_embeddings`), a scene (a folder, a
            cube, a STAC item, or from `open_stack`; the median of its dates), or any raster of
            bands.
        after: The same, later. None for two years of `before`.
        years: Which years of the embeddings, before and after; needed where there are several.

    Grids must share CRS, cell size and lattice; the pair covers what both cover.

    Raises:
        InputError: Other grids, no overlap, other bands, embeddings of two models.
    """
    if after is None:
        one = _open(before)
        first, second = _two_years(one, years)
        return _join(first, second)
    opened = [_open(before), _open(after)]
    chosen = [
        _one_year(o, None if years is None else years[n], when)
        for n, (o, when) in enumerate(zip(opened, ("before", "after"), strict=True))
    ]
    return _join(chosen[0], chosen[1])


@dataclass(frozen=True, kw_only=True)
class _Time:
    """One side of a pair."""

    raster: Raster
    index: int
    name: str
    is_embeddings: bool

    @property
    def year(self) -> int:
        return self.raster.years[self.index]

    @property
    def content(self) -> str:
        """Changes with the data, also where the path stays the same."""
        known = self.raster.attrs.get("fingerprint") or self.raster.attrs.get("reading") or ""
        return f"{known} {self.files}".strip()

    @property
    def files(self) -> str:
        """Changes with what is read from; "" in memory and in remote stores."""
        return contents_of(self.raster.attrs.get("bocage_sources") or [self.name])


def _open(source: Any) -> _Time:
    import xarray as xr

    if isinstance(source, (str, Path)):
        return _open_path(str(source))
    raster = raster_of(source)
    named = raster.attrs.get("model") or _name_of(raster.attrs.get("bocage_sources", ()))
    name = str(named or type(source).__name__)
    is_embeddings = isinstance(source, xr.DataArray) or "model" in raster.attrs
    return _Time(raster=raster, index=0, name=name, is_embeddings=is_embeddings)


def _name_of(sources: Sequence[str]) -> str:
    """A scene by its file, or by the folder of its files."""
    if len(sources) < 2 or any("://" in source for source in sources):
        return f"{sources[0]} and {len(sources) - 1} more" if len(sources) > 1 else "".join(sources)
    return os.path.commonpath(sources) or sources[0]


def _open_path(path: str) -> _Time:
    found = embeddings_at(path)
    if found is not None:
        return _embeddings(found, path)
    if not is_imagery(path):
        return _Time(raster=_bands(path), index=0, name=path, is_embeddings=False)
    from bocage.imagery import open_stack

    with silent_about_models():
        raster = raster_of(open_stack(path))
    return _Time(raster=raster, index=0, name=path, is_embeddings=False)


def is_imagery(path: str) -> bool:
    """Whether a path that holds no embeddings is read as imagery: all but single rasters."""
    from bocage.imagery.netcdf import is_netcdf, is_zarr

    return Path(path).is_dir() or path.endswith(".json") or is_zarr(path) or is_netcdf(path)


@contextmanager
def silent_about_models() -> Iterator[None]:
    """What a model makes of an unknown date or of few bands is not said: no model reads these."""
    with warnings.catch_warnings():
        for words in ("the imagery has no date", ".*the models fill them by rule"):
            warnings.filterwarnings("ignore", words, BocageWarning)
        yield


def _embeddings(lazy: LazyRaster, path: str) -> _Time:
    from bocage.embeddings.cog import own_grid

    def read(year: int, rows: slice, cols: slice) -> FloatArray:
        return lazy[year, :, rows, cols]

    raster = Raster(
        read=read,
        grid=own_grid(lazy),
        features=tuple(f"{i}" for i in range(lazy.shape[1])),
        years=lazy.years,
        attrs=dict(lazy.attrs),
    )
    return _Time(raster=raster, index=0, name=path, is_embeddings=True)


def _bands(path: str) -> Raster:
    """Any raster: bands as they are, its nodata as NaN."""
    import rasterio
    from rasterio.enums import ColorInterp
    from rasterio.windows import Window

    from bocage.imagery.rasters import crs_name

    try:
        with rasterio.open(path) as file:
            if file.crs is None:
                raise InputError(
                    got=f"{path} without a CRS",
                    expected="a georeferenced raster",
                    fix="set it with gdal_edit.py -a_srs EPSG:...",
                )
            if ColorInterp.palette in file.colorinterp or "BOCAGE_CLASSES" in file.tags():
                raise InputError(
                    got=f"{path}, a map of classes",
                    expected="embeddings, a scene or bands, whose values can be subtracted",
                    fix="compare what the classes were mapped from, or count where the maps differ",
                )
            grid = Grid(crs=crs_name(file.crs), transform=file.transform, shape_yx=file.shape)
            names = tuple(d or f"band {i}" for i, d in enumerate(file.descriptions, start=1))
    except rasterio.errors.RasterioIOError as error:
        raise SourceError(
            got=f"{path}, which GDAL cannot open ({error})",
            expected="embeddings, a scene or a raster",
            fix="check the path, and that the file is complete",
        ) from error

    def read(_year: int, rows: slice, cols: slice) -> FloatArray:
        try:
            with rasterio.open(path) as file:
                q = file.read(window=Window.from_slices(rows, cols), masked=True)
        except rasterio.errors.RasterioIOError as error:
            raise SourceError(
                got=f"{path}, unreadable at rows {rows.start}-{rows.stop} ({error})",
                expected="a complete file",
                fix="copy or make it again",
            ) from error
        return np.ma.filled(q.astype(np.float32), np.nan)

    return Raster(read=read, grid=grid, features=names, years=(0,))


def _one_year(time: _Time, year: int | None, when: str) -> _Time:
    years = time.raster.years
    if year is None:
        if len(years) > 1:
            raise InputError(
                got=f"{time.name} with the years {', '.join(map(str, years))} as {when}",
                expected="one year",
                fix=f"pass --years {years[0]},{years[-1]}",
            )
        return time
    if year not in years:
        if years == (0,):
            return time  # a raster that does not say its year is what the user says it is
        raise InputError(
            got=f"year {year} of {time.name}",
            expected=f"one of {', '.join(map(str, years))}",
            fix="see the years with `bocage info`",
        )
    return replace(time, index=years.index(year))


def _two_years(time: _Time, years: tuple[int, int] | None) -> tuple[_Time, _Time]:
    have = time.raster.years
    if years is None and len(have) == 2:
        years = (min(have), max(have))
    if years is None or years[0] == years[1] or len(have) < 2:
        raise InputError(
            got=f"{time.name} with the year(s) {', '.join(map(str, have))} alone",
            expected="two times",
            fix="give a second path"
            + (f", or --years {have[0]},{have[-1]}" if len(have) > 1 else ""),
        )
    return _one_year(time, years[0], "before"), _one_year(time, years[1], "after")


def _join(before: _Time, after: _Time) -> Pair:
    _check_kinds(before, after)
    shift, grid = _overlap(before, after)
    columns = _features(before, after)
    offsets = (np.maximum(shift, 0), np.maximum(-shift, 0))

    def read(rows: slice, cols: slice) -> tuple[FloatArray, FloatArray]:
        first, second = (
            time.raster.read(
                time.index,
                slice(rows.start + offset[0], rows.stop + offset[0]),
                slice(cols.start + offset[1], cols.stop + offset[1]),
            )
            for time, offset in zip((before, after), offsets, strict=True)
        )
        a, b = first[columns[0]], second[columns[1]]
        missing = np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0)
        nan = np.float32(np.nan)
        return np.where(missing, nan, a), np.where(missing, nan, b)

    return Pair(
        read=read,
        grid=grid,
        features=tuple(before.raster.features[i] for i in columns[0]),
        years=(before.year, after.year),
        names=(before.name, after.name),
        is_embeddings=before.is_embeddings,
        contents=(before.content, after.content),
        attrs=dict(after.raster.attrs),
    )


def _check_kinds(before: _Time, after: _Time) -> None:
    is_same = (before.index, before.content) == (after.index, after.content)
    if before.files and is_same:
        raise InputError(
            got=f"{before.name} at both times",
            expected="two times of one place",
            fix="give the other time, or tell dates apart with --dates before=X,after=Y",
        )
    if before.is_embeddings != after.is_embeddings:
        kinds = ["embeddings" if t.is_embeddings else "bands" for t in (before, after)]
        raise InputError(
            got=f"{before.name} ({kinds[0]}) and {after.name} ({kinds[1]})",
            expected="two maps of embeddings, or two images",
            fix="embed the image with the model of the other, then compare",
        )
    if not before.is_embeddings:
        return
    for key, words in _COMPARED.items():
        a, b = before.raster.attrs.get(key), after.raster.attrs.get(key)
        if a not in (None, "") and b not in (None, "") and str(a) != str(b):
            raise InputError(
                got=f"{words} {a} in {before.name} and {b} in {after.name}",
                expected=f"the same {words} at both times",
                fix=f"embed both with the same {words}; other vectors have nothing in common",
            )
    a, b = (side.raster.attrs.get("precision") for side in (before, after))
    if a and b and a != b:
        warnings.warn(
            f"{before.name} was embedded in {a} and {after.name} in {b}: without any change they "
            "still differ by rounding; embed both with the same --precision",
            BocageWarning,
            stacklevel=4,
        )
    a, b = len(before.raster.features), len(after.raster.features)
    if a != b:
        raise InputError(
            got=f"{a} dims in {before.name} and {b} in {after.name}",
            expected="vectors of the same length",
            fix="embed both with the same model and output",
        )


def _overlap(before: _Time, after: _Time) -> tuple[NDArray[np.int64], Grid]:
    """Rows and columns by which `after` starts below and right of `before`; what both cover."""
    from rasterio.crs import CRS

    a, b = before.raster.grid, after.raster.grid
    same_crs = a.crs == b.crs or CRS.from_user_input(a.crs) == CRS.from_user_input(b.crs)
    size = np.array([[a.transform.a, a.transform.e], [b.transform.a, b.transform.e]])
    longest = max(*a.shape_yx, *b.shape_yx)
    same_size = np.abs(size[0] - size[1]).max() * longest < _SAME * abs(a.transform.a) + 1e-9
    if not (same_crs and same_size):
        raise InputError(
            got=f"cells of {a.resolution:g} in {_short(a.crs)} ({before.name}) and of "
            f"{b.resolution:g} in {_short(b.crs)} ({after.name})",
            expected="one CRS and one cell size",
            fix="embed both years with the same --crs and --patch-size"
            if before.is_embeddings
            else f"pass --crs {_short(a.crs)} to read both as scenes, or warp one image with "
            f"gdalwarp -t_srs {_short(a.crs)} -tr {a.resolution:g} {a.resolution:g} -tap",
        )
    cols = (b.transform.c - a.transform.c) / a.transform.a
    rows = (b.transform.f - a.transform.f) / a.transform.e
    shift = np.rint([rows, cols]).astype(np.int64)
    off = np.abs(np.array([rows, cols]) - shift).max()
    if off > _SAME:
        raise InputError(
            got=f"grids that are {off:.2f} cells off each other ({before.name}, {after.name})",
            expected="cells that lie on each other",
            fix="embed both years from images on one grid (gdalwarp -tap, or the same --bbox)",
        )
    start = np.maximum(shift, 0)
    stop = np.minimum(np.array(a.shape_yx), np.array(b.shape_yx) + shift)
    if (stop <= start).any():
        raise InputError(
            got=f"{before.name} at {_box(a)} and {after.name} at {_box(b)}",
            expected="maps that overlap",
            fix="check that both show the same place",
        )
    t = a.transform @ Affine.translation(int(start[1]), int(start[0]))
    shape = (int(stop[0] - start[0]), int(stop[1] - start[1]))
    return shift, Grid(crs=a.crs, transform=t, shape_yx=shape)


def _features(before: _Time, after: _Time) -> tuple[list[int], list[int]]:
    """Positions of the features that both times have data for, in the order of `before`."""
    if before.is_embeddings:
        every = list(range(len(before.raster.features)))
        return every, every
    known = [_with_data(time.raster, time.index) for time in (before, after)]
    names = [time.raster.features for time in (before, after)]
    later = {names[1][i]: i for i in known[1]}
    both = [i for i in known[0] if names[0][i] in later]
    places = both, [later[names[0][i]] for i in both]
    if not set(names[0]) & set(names[1]) and len(names[0]) == len(names[1]):
        # Some files write their date into every band's name.
        warnings.warn(
            f"the bands of {before.name} and {after.name} have no name in common ({names[0][0]}, "
            f"{names[1][0]}): they are compared in their order, which is wrong if it differs",
            BocageWarning,
            stacklevel=5,
        )
        shared = sorted(set(known[0]) & set(known[1]))
        places = shared, shared
    if not places[0]:
        raise InputError(
            got=f"{before.name} with data in {_list(before, known[0])} and {after.name} in "
            f"{_list(after, known[1])}",
            expected="at least one band that both have",
            fix="give the bands the same names",
        )
    return places


def _with_data(raster: Raster, index: int) -> list[int]:
    """Features that are not NaN everywhere, in a few rectangles spread over the grid."""
    blocks = list(raster.blocks())
    found = np.zeros(len(raster.features), bool)
    for rows, cols in blocks[:: max(1, len(blocks) // 8)]:
        x = raster.read(index, rows, cols)
        found |= ~np.isnan(x).all(axis=(1, 2))
    return [int(i) for i in np.flatnonzero(found)]


def _list(time: _Time, columns: list[int]) -> str:
    names = [time.raster.features[i] for i in columns]
    return (", ".join(names[:6]) + (", ..." if len(names) > 6 else "")) or "no band"


def _short(crs: str) -> str:
    return crs if len(crs) < 40 else crs[:37] + "..."


def _box(grid: Grid) -> str:
    w, s, e, n = grid.bbox
    return f"{w:.6g},{s:.6g} to {e:.6g},{n:.6g}"
