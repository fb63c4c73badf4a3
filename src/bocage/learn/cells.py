"""Which cells of a grid a label means."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.geo import Grid
from bocage.learn.labels import Labels, Task
from bocage.learn.vector_file import import_geopandas

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.learn.mask import Mask
    from bocage.learn.raster import Raster

SHARE_STEPS = 8
"""With min_share a cell is looked at on this many by this many points."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Labelled cells of one grid, each at most once per year."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    value: NDArray[Any]
    group: NDArray[np.int64]
    """Index of the shape; for masks the cell itself."""

    year_index: NDArray[np.int64]

    def take(self, keep: NDArray[Any]) -> Cells:
        """Some of the cells, by a mask or by indices."""
        return Cells(**{name: getattr(self, name)[keep] for name in self.__dataclass_fields__})


def locate(
    labels: Labels | Mask, raster: Raster, *, year: int | None, min_share: float | None
) -> tuple[Cells, dict[str, int]]:
    """Cells of all labels, and how many labels were left out and why."""
    if min_share is not None and not 0 < min_share <= 1:
        raise ConfigError(
            got=f"min_share={min_share}", expected="a share above 0, at most 1", fix="try 0.5"
        )
    if not isinstance(labels, Labels):
        return labels.cells(raster.grid, _index_of_year(labels.year, raster, year)), {}
    labels = _on_grid(labels, raster.grid)
    years = _year_indices(labels, raster, year)
    inside = _inside(labels, raster.grid)
    dropped = {"outside the map": int((~inside).sum())}
    if not inside.any():
        raise _all_outside(labels, raster.grid)
    cells = _merge(list(_shapes(labels, raster, years, inside, min_share)))
    if not len(cells.row):
        raise InputError(
            got=f"{int(inside.sum())} shapes that hold no center of a cell of "
            f"{raster.grid.resolution:g}",
            expected="shapes at least as large as a cell",
            fix="use min_share (--min-share 0.3), points, or a map with smaller cells",
        )
    n_lost = int(inside.sum()) - len(np.unique(cells.group))
    if n_lost:
        warnings.warn(
            f"{n_lost} shapes hold no center of a cell and give no sample; use points, or "
            "min_share, to keep small shapes",
            BocageWarning,
            stacklevel=4,
        )
    return _once(cells, labels.task, dropped, raster.grid.shape_yx)


def _on_grid(labels: Labels, grid: Grid) -> Labels:
    geopandas = import_geopandas()
    shapes = geopandas.GeoSeries(labels.geometry, crs=labels.crs).to_crs(grid.crs)
    return replace(labels, geometry=np.asarray(shapes.values, dtype=object), crs=grid.crs)


def _inside(labels: Labels, grid: Grid) -> NDArray[np.bool_]:
    import shapely

    west, south, east, north = grid.bbox
    bounds = shapely.bounds(labels.geometry)  # NaN of a place that cannot be projected is outside
    found = (bounds[:, 0] < east) & (bounds[:, 2] >= west)
    return np.asarray(found & (bounds[:, 1] <= north) & (bounds[:, 3] > south))


def _all_outside(labels: Labels, grid: Grid) -> InputError:
    import shapely

    west, south, east, north = grid.bbox
    box = shapely.total_bounds(labels.geometry)
    return InputError(
        got=f"{len(labels)} labels, all outside the map (labels {_box(box)}, map "
        f"{_box((west, south, east, north))} in {grid.crs})",
        expected="labels on the map",
        fix="check the CRS of the labels and the order of longitude and latitude",
    )


def _box(bounds: Any) -> str:
    west, south, east, north = bounds
    return f"{west:.0f}..{east:.0f} x {south:.0f}..{north:.0f}"


def _year_indices(labels: Labels, raster: Raster, year: int | None) -> NDArray[np.int64]:
    if not labels.year.any():
        return np.full(len(labels), _index_of_year(0, raster, year), np.int64)
    found = np.array(
        [_index_of_year(int(y), raster, year) for y in np.unique(labels.year)], np.int64
    )
    return found[np.unique(labels.year, return_inverse=True)[1].reshape(-1)]


def _index_of_year(stated: int, raster: Raster, year: int | None) -> int:
    wanted = year or stated
    if len(raster.years) == 1 and raster.years[0] == 0:
        return 0  # a map whose year nobody knows: the user has chosen it
    if not wanted:
        if len(raster.years) == 1:
            return 0
        raise InputError(
            got=f"labels without a year on a map of {', '.join(map(str, raster.years))}",
            expected="to be told which year the labels describe",
            fix=f"use --year {raster.years[-1]}, or a column of years",
        )
    if wanted not in raster.years:
        raise InputError(
            got=f"labels of {wanted}",
            expected=f"a year of the map: {', '.join(map(str, raster.years))}",
            fix=f"use --year {raster.years[-1]} if the labels hold for that year too",
        )
    return raster.years.index(wanted)


def _shapes(
    labels: Labels,
    raster: Raster,
    years: NDArray[np.int64],
    inside: NDArray[np.bool_],
    min_share: float | None,
) -> Iterator[Cells]:
    import shapely

    kinds = shapely.get_dimensions(labels.geometry)
    points = np.flatnonzero(inside & (kinds == 0))
    if len(points):
        yield _points(labels, raster.grid, years, points)
    rest = np.flatnonzero(inside & (kinds > 0))
    if not len(rest):
        return
    for index in np.unique(years[rest]):
        chosen = rest[years[rest] == index]
        tree = shapely.STRtree(labels.geometry[chosen])
        for rows, cols in raster.blocks():
            part = raster.grid.crop(rows, cols)
            hits = np.sort(chosen[tree.query(shapely.box(*part.bbox))])
            if len(hits):
                found = _burn(labels, part, hits, kinds, min_share)
                row, col, group = found
                yield Cells(
                    row=row + rows.start,
                    col=col + cols.start,
                    value=labels.value[group],
                    group=group,
                    year_index=np.full(len(row), index, np.int64),
                )


def _points(labels: Labels, grid: Grid, years: NDArray[np.int64], which: NDArray[np.intp]) -> Cells:
    import shapely

    xy, index = shapely.get_coordinates(labels.geometry[which], return_index=True)
    group = which[index].astype(np.int64)
    t = grid.transform
    col = np.floor((xy[:, 0] - t.c) / t.a).astype(np.int64)
    row = np.floor((xy[:, 1] - t.f) / t.e).astype(np.int64)
    rows, cols = grid.shape_yx
    on = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
    return Cells(
        row=row[on],
        col=col[on],
        value=labels.value[group[on]],
        group=group[on],
        year_index=years[group[on]],
    )


def _burn(
    labels: Labels,
    grid: Grid,
    hits: NDArray[np.intp],
    kinds: NDArray[Any],
    min_share: float | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows, columns and shapes of the cells of one block; a cell of two shapes appears twice."""
    lines, areas = hits[kinds[hits] == 1], hits[kinds[hits] == 2]
    found = []
    if len(areas):
        # Burnt in both orders: where shapes overlap, the two disagree.
        for order in (areas, areas[::-1]):
            if min_share is None:
                found.append(_rasterize(labels, order, grid, False))
            else:
                found.append(_by_share(labels, order, grid, min_share))
    if len(lines):
        found += [_rasterize(labels, order, grid, True) for order in (lines, lines[::-1])]
    rows, cols, groups = [], [], []
    for burnt in found:
        row, col = np.nonzero(burnt)
        rows.append(row)
        cols.append(col)
        groups.append(burnt[row, col].astype(np.int64) - 1)
    return np.concatenate(rows), np.concatenate(cols), np.concatenate(groups)


def _rasterize(
    labels: Labels, order: NDArray[np.intp], grid: Grid, touched: bool
) -> NDArray[np.int32]:
    """Number of the shape, from 1, in each cell; 0 where there is none; later shapes win."""
    from rasterio.features import rasterize

    burnt: NDArray[np.int32] = rasterize(
        [(labels.geometry[i], int(i) + 1) for i in order],
        out_shape=grid.shape_yx,
        transform=grid.transform,
        fill=0,
        all_touched=touched,
        dtype="int32",
    )
    return burnt


def _by_share(
    labels: Labels, areas: NDArray[np.intp], grid: Grid, min_share: float
) -> NDArray[np.int32]:
    rows, cols = grid.shape_yx
    s = SHARE_STEPS
    finer = Grid(
        crs=grid.crs,
        transform=grid.transform @ Affine.scale(1 / s),
        shape_yx=(rows * s, cols * s),
    )
    fine = _rasterize(labels, areas, finer, False)
    points = fine.reshape(rows, s, cols, s).swapaxes(1, 2).reshape(rows, cols, s * s)
    # The middle value of the sorted points need not be the mode, so count runs of equal values.
    points = np.sort(points, axis=2)
    best = np.zeros((rows, cols), np.int32)
    most = np.zeros((rows, cols), np.int32)
    run = np.zeros((rows, cols), np.int32)
    for i in range(s * s):
        same = points[..., i] == points[..., i - 1] if i else np.zeros((rows, cols), bool)
        run = np.where(same, run + 1, 1)
        better = (run > most) & (points[..., i] > 0)
        best = np.where(better, points[..., i], best)
        most = np.where(better, run, most)
    return np.where(most >= min_share * s * s, best, 0).astype(np.int32)


def _merge(parts: list[Cells]) -> Cells:
    names = Cells.__dataclass_fields__
    return Cells(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def _once(
    cells: Cells, task: Task, dropped: dict[str, int], shape_yx: tuple[int, int]
) -> tuple[Cells, dict[str, int]]:
    """Each cell once: equal labels merged, numbers averaged, contradictions left out."""
    rows, cols = shape_yx
    key = (cells.year_index * rows + cells.row) * cols + cells.col
    _, first, inverse, counts = np.unique(
        key, return_index=True, return_inverse=True, return_counts=True
    )
    if len(first) == len(key):
        return cells, dropped
    inverse = inverse.reshape(-1)
    n_pairs = len(np.unique(np.stack([key, cells.group]), axis=1)[0])
    dropped["repeated"] = n_pairs - len(first)
    if task == "regression":
        mean = np.bincount(inverse, cells.value) / counts
        merged = cells.take(first)
        return replace(merged, value=mean.astype(np.float32)), dropped
    differs = cells.value != cells.value[first][inverse]
    if differs.ndim == 2:
        differs = differs.any(axis=1)
    bad = np.zeros(len(first), bool)
    bad[inverse[differs]] = True
    dropped["on cells with contradicting labels"] = int(bad.sum())
    if bad.all():
        raise InputError(
            got=f"{len(bad)} labelled cells, each with labels that contradict each other",
            expected="one label per cell",
            fix="check whether the labels are much denser than the cells",
        )
    return cells.take(first[~bad]), dropped
