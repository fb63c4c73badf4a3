"""The grid of a stack: the finest band's grid at 10 m, or a lattice in another CRS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from affine import Affine

from bocage.errors import InputError
from bocage.geo import Grid

if TYPE_CHECKING:
    from bocage.types import BboxWSEN


class Footprint(Protocol):
    """A source's grid: a raster header or a cube."""

    @property
    def path(self) -> str:
        """Name for messages."""

    @property
    def crs(self) -> str:
        """EPSG code or WKT."""

    @property
    def transform(self) -> Affine:
        """Pixel to CRS units."""

    @property
    def north_up(self) -> bool:
        """Whether rows and columns follow the axes of the CRS."""

    @property
    def bounds(self) -> BboxWSEN:
        """Outer edges."""

    @property
    def resolution(self) -> float:
        """Side of a pixel in CRS units."""


_SAME_RESOLUTION = 0.01
"""Pixels within 1 % of the wanted size stay as they are (EuroSAT has 10.003 m)."""


def choose_grid(headers: Sequence[Footprint], *, crs: str | None, resolution_m: float) -> Grid:
    """The union of the files on the grid of the finest; InputError for two CRS without crs=.

    A pixel belongs to the grid when its centre lies inside a file. Without ``crs`` the files keep
    their own CRS; with it the grid is a lattice of multiples of the resolution, as UTM products.
    """
    names = list(dict.fromkeys(h.crs for h in headers))
    target = crs
    if crs is not None and crs.strip().lower() == "utm":
        target = utm_crs(headers[0].crs, headers[0].bounds)
    if target is None:
        if len(names) > 1:
            first = [next(h.path for h in headers if h.crs == name) for name in names[:2]]
            raise InputError(
                got=f"two CRS: {_short(names[0])} ({first[0]}) and {_short(names[1])} ({first[1]})",
                expected="one CRS for the whole stack",
                fix='choose one: open_stack(crs="utm") or crs="EPSG:..." (--crs utm), or open the '
                "files apart",
            )
        target = names[0]
    else:
        target = _known_crs(target)
    _require_meters(target, given=crs is not None)
    finest = min(headers, key=lambda h: h.resolution)
    if names == [target] and finest.north_up:
        return _same_crs_grid(headers, finest, resolution_m)
    return _lattice(headers, target, resolution_m)


_SPARSE = 100
"""Refused when the grid has this many times the pixels of the imagery: years of a tile overlap, and
tiles of one region leave gaps, but a factor of 100 is two regions in one folder."""


def check_compact(headers: Sequence[Footprint], grid: Grid) -> None:
    """InputError when files lie so far apart that nearly all of the common grid is empty."""
    from rasterio.warp import transform_bounds

    boxes = [transform_bounds(h.crs, grid.crs, *h.bounds, densify_pts=21) for h in headers]
    rows, cols = grid.shape_yx
    filled = sum((e - w) * (n - s) for w, s, e, n in boxes) / grid.resolution**2
    if rows * cols < _SPARSE * filled:
        return
    centers = [((w + e) / 2, (s + n) / 2) for w, s, e, n in boxes]
    far = max(range(len(boxes)), key=lambda i: math.dist(centers[0], centers[i]))
    distance_km = math.dist(centers[0], centers[far]) / 1000
    raise InputError(
        got=f"imagery {distance_km:,.0f} km apart: {headers[0].path} and {headers[far].path}",
        expected="one area: a common grid would be almost empty "
        f"({cols:,} x {rows:,} pixels, {filled / (rows * cols):.2%} with imagery)",
        fix="open the areas apart, or pass bbox= (--bbox) for one of them",
    )


def _known_crs(crs: str) -> str:
    from rasterio.errors import CRSError

    from bocage.imagery.rasters import crs_name

    try:
        return crs_name(crs)
    except CRSError as error:
        raise InputError(
            got=f"crs={crs!r}", expected='"utm", an EPSG code or WKT', fix='pass crs="utm"'
        ) from error


def _require_meters(crs: str, *, given: bool) -> None:
    from rasterio.crs import CRS

    if CRS.from_user_input(crs).is_geographic:
        raise InputError(
            got=f"a CRS in degrees ({_short(crs)})",
            expected="a projected CRS in metres, as the models read 10 m pixels",
            fix='pass crs="utm" (--crs utm)' + ("" if not given else " instead"),
        )


def _same_crs_grid(headers: Sequence[Footprint], finest: Footprint, resolution_m: float) -> Grid:
    step = finest.transform.a
    square = abs(step + finest.transform.e) < _SAME_RESOLUTION * step
    keep = square and abs(step - resolution_m) <= _SAME_RESOLUTION * resolution_m
    dx, dy = (step, finest.transform.e) if keep else (resolution_m, -resolution_m)
    west, south, east, north = _union([h.bounds for h in headers])
    # The origin moves from the finest file's corner by whole pixels.
    x0 = finest.transform.c + _whole((west - finest.transform.c) / dx) * dx
    y0 = finest.transform.f + _whole((north - finest.transform.f) / dy) * dy
    shape = (_whole((south - y0) / dy), _whole((east - x0) / dx))
    return Grid(crs=finest.crs, transform=Affine(dx, 0, x0, 0, dy, y0), shape_yx=shape)


def _whole(pixels: float) -> int:
    """Pixels whose centres lie inside, counted from a corner."""
    return math.floor(pixels + 0.5 - 1e-6)


def _lattice(headers: Sequence[Footprint], crs: str, resolution_m: float) -> Grid:
    from rasterio.warp import transform_bounds

    bounds = _union([transform_bounds(h.crs, crs, *h.bounds, densify_pts=21) for h in headers])
    west, north = math.floor(bounds[0] / resolution_m), math.ceil(bounds[3] / resolution_m)
    east, south = math.ceil(bounds[2] / resolution_m), math.floor(bounds[1] / resolution_m)
    return Grid(
        crs=crs,
        transform=Affine(
            resolution_m, 0, west * resolution_m, 0, -resolution_m, north * resolution_m
        ),
        shape_yx=(north - south, east - west),
    )


def utm_crs(crs: str, bounds: BboxWSEN) -> str:
    """The WGS 84 UTM zone of the centre of bounds."""
    from rasterio.warp import transform_bounds

    west, south, east, north = transform_bounds(crs, "EPSG:4326", *bounds)
    lon, lat = (west + east) / 2, (south + north) / 2
    zone = min(60, int((lon + 180) // 6) + 1)
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"


def crop_ranges(grid: Grid, bbox: BboxWSEN, bbox_crs: str) -> tuple[slice, slice]:
    """Rows and columns of a grid inside a bounding box; InputError if they do not meet."""
    from rasterio.errors import CRSError
    from rasterio.warp import transform_bounds

    west, south, east, north = bbox
    if not (west < east and south < north):
        raise InputError(
            got=f"bbox {tuple(bbox)}",
            expected="west, south, east, north with west < east and south < north",
            fix="check the order of the four numbers",
        )
    try:
        box = bbox if bbox_crs == grid.crs else transform_bounds(bbox_crs, grid.crs, *bbox)
        outer = transform_bounds(grid.crs, bbox_crs, *grid.bbox)
    except CRSError as error:
        raise InputError(
            got=f"bbox_crs={bbox_crs!r}", expected="an EPSG code or WKT", fix="leave it out"
        ) from error
    t = grid.transform
    rows_n, cols_n = grid.shape_yx
    r0, r1 = _whole((box[3] - t.f) / t.e), _whole((box[1] - t.f) / t.e)
    c0, c1 = _whole((box[0] - t.c) / t.a), _whole((box[2] - t.c) / t.a)
    rows, cols = slice(max(r0, 0), min(r1, rows_n)), slice(max(c0, 0), min(c1, cols_n))
    if rows.start >= rows.stop or cols.start >= cols.stop:
        edges = ", ".join(f"{v:.5g}" for v in outer)
        raise InputError(
            got=f"bbox {tuple(bbox)} ({bbox_crs}) outside the imagery, which spans {edges}",
            expected="a bounding box that meets the imagery",
            fix="check the order (west, south, east, north) and bbox_crs=",
        )
    return rows, cols


def _union(boxes: Sequence[BboxWSEN]) -> BboxWSEN:
    return (
        min(b[0] for b in boxes),
        min(b[1] for b in boxes),
        max(b[2] for b in boxes),
        max(b[3] for b in boxes),
    )


def _short(crs: str) -> str:
    return crs if len(crs) < 40 else crs[:37] + "..."
