"""Which share of each cell of a tile a zone covers, exactly.

The shares come from exactextract (Baston 2023), which follows the border through every cell; zones
are given in cells, so that tiles meet on whole numbers and their size changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError
from bocage.zonal.zones import areas_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAIRS_AT_ONCE = 2**20
"""Pairs of a zone and a cell that are held together: 12 MiB, and some times that while summing."""

_MANY_VERTICES = 500
"""Shapes with more are prepared for questions, at kilobytes each; small ones gain little."""

Tile = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class Covered:
    """Cells of a tile that some zones touch, zone after zone."""

    zone: NDArray[np.int64]
    """Position of each zone [n] among all zones."""

    start: NDArray[np.int64]
    """Where the cells of each zone begin in `cell` [n + 1]."""

    cell: NDArray[np.int32]
    """Cell [P], counted row by row within the tile."""

    share: NDArray[np.float64]
    """Share of the cell that the zone covers [P], above 0 up to 1."""

    def where(self, keep: NDArray[np.bool_]) -> Covered:
        """Without the pairs [P] that are not to be kept, and without zones that have none left."""
        kept = np.concatenate([[0], np.cumsum(keep)])[self.start]
        some = np.diff(kept) > 0
        return Covered(
            zone=self.zone[some],
            start=np.concatenate([kept[:-1][some], kept[-1:]]),
            cell=self.cell[keep],
            share=self.share[keep],
        )

    def matrix(self, n_cells: int, weight: NDArray[np.float64] | None = None) -> Any:
        """Sparse matrix [n, cells] of shares, or of shares times a weight of each cell."""
        from scipy.sparse import csr_array

        values = self.share if weight is None else self.share * weight[self.cell]
        return csr_array((values, self.cell, self.start), shape=(len(self.zone), n_cells))


class Coverage:
    """Zones laid on the cells of a map, asked tile by tile."""

    def __init__(self, shapes: NDArray[Any]) -> None:
        """Shapes [Z] in cells, x to the right and y downwards; None is nowhere."""
        import shapely

        import_exactextract()
        self.shapes = shapes
        self._tree = shapely.STRtree(shapes)
        self._bounds = shapely.bounds(shapes)
        shapely.prepare(shapes[shapely.get_num_coordinates(shapes) > _MANY_VERTICES])

    def touching(self, tile: Tile) -> NDArray[np.int64]:
        """Zones that meet a tile, in their order."""
        import shapely

        rows, cols = tile
        box = shapely.box(cols.start, rows.start, cols.stop, rows.stop)
        return np.sort(np.asarray(self._tree.query(box, predicate="intersects"), np.int64))

    def of_tile(self, tile: Tile) -> Iterator[Covered]:
        """Cells under each zone that meets the tile, so many zones at a time as memory allows."""
        zones = self.touching(tile)
        if not len(zones):
            return
        rows, cols = tile
        left, top, right, bottom = self._bounds[zones].T
        width = np.minimum(right, cols.stop) - np.maximum(left, cols.start) + 2
        height = np.minimum(bottom, rows.stop) - np.maximum(top, rows.start) + 2
        size = (cols.stop - cols.start) * (rows.stop - rows.start)
        batch = np.cumsum(np.minimum(width * height, size)) // PAIRS_AT_ONCE
        for part in np.split(zones, np.flatnonzero(np.diff(batch)) + 1):
            found = self._cover(part, tile)
            if len(found.zone):
                yield found

    def _cover(self, zones: NDArray[np.int64], tile: Tile) -> Covered:
        rows, cols = tile
        n_cells = (rows.stop - rows.start) * (cols.stop - cols.start)
        shapes, full = self._cut(zones, tile)
        partly = np.array([s is not None for s in shapes], bool)
        found = iter(_shares(shapes[partly], tile))
        cells, shares = [], []
        for is_full, is_partly in zip(full, partly, strict=True):
            cell, share = np.empty(0, np.int32), np.empty(0)
            if is_full:
                cell, share = np.arange(n_cells, dtype=np.int32), np.ones(n_cells)
            elif is_partly:
                cell, share = next(found)
            cells.append(cell)
            shares.append(share)
        covered = Covered(
            zone=zones,
            start=np.concatenate([[0], np.cumsum([len(c) for c in cells])]).astype(np.int64),
            cell=np.concatenate(cells),
            share=np.concatenate(shares),
        )
        return covered.where(covered.share > 0)

    def _cut(self, zones: NDArray[np.int64], tile: Tile) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """What of each zone lies in the tile (None: nothing that is an area), and which fill it.

        exactextract 0.3 would cut them too, but ends the process with a segmentation fault where a
        hole outside touches the tile's border, as holes along cells do.
        """
        import shapely

        rows, cols = tile
        box = shapely.box(cols.start, rows.start, cols.stop, rows.stop)
        shapes = self.shapes[zones]
        full = np.asarray(shapely.covers(shapes, box))
        left, top, right, bottom = self._bounds[zones].T
        inside = (left >= cols.start) & (right <= cols.stop)
        inside &= (top >= rows.start) & (bottom <= rows.stop)
        cut = ~(full | inside)
        shapes[cut] = [areas_of(part) for part in shapely.intersection(shapes[cut], box)]
        shapes[full] = None
        return shapes, full


def _shares(shapes: NDArray[Any], tile: Tile) -> list[tuple[NDArray[np.int32], NDArray[Any]]]:
    """Cells and shares of each shape."""
    import shapely
    from exactextract import exact_extract
    from exactextract.feature import Feature, FeatureSource
    from exactextract.operation import Operation
    from exactextract.raster import NumPyRasterSource
    from exactextract.writer import Writer

    if not len(shapes):
        return []
    # To exactextract y rises.
    upright = shapely.transform(shapes, lambda xy: xy * (1, -1))
    known = [bytes(wkb) for wkb in shapely.to_wkb(upright)]

    class OneZone(Feature):  # type: ignore[misc]  # untyped package
        def __init__(self, wkb: bytes = b"") -> None:
            super().__init__()
            self.wkb = wkb
            self.values: dict[str, NDArray[Any]] = {}

        def geometry(self) -> bytes:
            return self.wkb

        def set(self, name: str, value: NDArray[Any]) -> None:
            self.values[name] = np.array(value)

        def set_geometry(self, _geometry: Any) -> None:
            pass

        def set_geometry_format(self) -> str:
            return "wkb"

        def fields(self) -> list[str]:
            return []

    class AllZones(FeatureSource):  # type: ignore[misc]  # untyped package
        def __iter__(self) -> Iterator[OneZone]:
            return (OneZone(wkb) for wkb in known)

        def count(self) -> int:
            return len(known)

        def srs_wkt(self) -> None:
            return None

    found: list[tuple[NDArray[np.int32], NDArray[Any]]] = []

    class Kept(Writer):  # type: ignore[misc]  # untyped package
        def add_operation(self, _operation: Any) -> None:
            pass

        def add_column(self, _name: str) -> None:
            pass

        def write(self, feature: Any) -> None:
            copy = OneZone()
            feature.copy_to(copy)
            cell, share = copy.values["cell_id"], copy.values["coverage"]
            found.append((cell.astype(np.int32), share.astype(np.float64)))

        def finish(self) -> None:
            pass

        def features(self) -> None:
            return None

    rows, cols = tile
    # Only the lattice of the tile is asked for, but the C++ side reads the values too.
    lattice = np.zeros((rows.stop - rows.start, cols.stop - cols.start), np.uint8)
    raster = NumPyRasterSource(lattice, cols.start, -rows.stop, cols.stop, -rows.start)
    # Objects that the C++ side looks at have to outlive it, so each has a name here.
    operations = [Operation(name, name, raster) for name in ("cell_id", "coverage")]
    zones, kept = AllZones(), Kept()
    exact_extract(raster, zones, operations, output=kept)
    return found


def import_exactextract() -> None:
    """The package exactextract, or how to install it."""
    try:
        import exactextract  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            got="zones without the package exactextract",
            expected="the extra zonal",
            fix='pip install "bocage[zonal]"',
        ) from error
