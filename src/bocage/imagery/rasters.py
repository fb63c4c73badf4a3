"""Raster files by their headers: which band, sensor, date and place each holds; no pixels are read.

Bands become Scenes: one sensor, one date, one footprint. Scenes of the same date that lie beside
each other mosaic, the first in name order on top.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine

from bocage.errors import InputError, SourceError
from bocage.imagery import bands as names
from bocage.imagery import offsets
from bocage.imagery.dates import date_in_name, parse_date
from bocage.imagery.handles import file_stamp, keep_open, quiet_gdal, source_errors
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    from bocage.imagery.opened import OpenOptions
    from bocage.types import BboxWSEN, ShapeYX

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RasterHeader:
    """What a file says of itself."""

    path: str
    crs: str
    transform: Affine
    shape_yx: ShapeYX
    dtype: str
    nodata: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    descriptions: tuple[str | None, ...]
    stamp: tuple[int, int] = (0, 0)
    """Size and time of the file when its header was read."""
    is_plain: bool = False
    """Whether pixels lie in a local file as they are: nothing to wait for and nothing to decode."""

    @property
    def north_up(self) -> bool:
        """Whether rows and columns follow the axes of the CRS."""
        t = self.transform
        return bool(t.b == 0 and t.d == 0 and t.a > 0 and t.e < 0)

    @property
    def bounds(self) -> BboxWSEN:
        """Outer edges in the file's CRS, rotated files included."""
        rows, cols = self.shape_yx
        corners = [
            self.transform @ corner for corner in ((0, 0), (cols, 0), (0, rows), (cols, rows))
        ]
        xs, ys = [c[0] for c in corners], [c[1] for c in corners]
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def resolution(self) -> float:
        """Side of a pixel in CRS units."""
        return float(np.sqrt(abs(self.transform.determinant)))


@dataclass(frozen=True, kw_only=True)
class BandFile:
    """One band of one file, with what brings its numbers to product units."""

    header: RasterHeader
    index: int
    """Band number in the file, from 1."""
    sensor: str
    band: str
    is_cloud_mask: bool = False
    date: np.datetime64 | None = None
    nodata: float | None = None
    scale: float | str = 1.0
    offset: float = 0.0
    offset_settled: bool = False


@dataclass(kw_only=True)
class Scene:
    """The bands of one sensor at one date and footprint."""

    sensor: str
    date: np.datetime64 | None
    bands: dict[str, BandFile] = field(default_factory=dict)
    mask: BandFile | None = None
    bounds: BboxWSEN = (0.0, 0.0, 0.0, 0.0)
    crs: str = ""

    @property
    def finest(self) -> BandFile:
        """The band with the smallest pixels."""
        return min(self.bands.values(), key=lambda b: b.header.resolution)


def read_header(path: str) -> RasterHeader:
    """The header of a raster; SourceError if unreadable, InputError if it has no CRS."""
    import rasterio

    if "://" not in path and not path.startswith("/vsi") and not Path(path).exists():
        raise SourceError(
            got=f"{path}, which does not exist",
            expected="a raster file",
            fix="check the spelling of the path",
        )
    with quiet_gdal(), source_errors(path, "opened"):
        source = rasterio.open(path)
        crs = source.crs
        header = RasterHeader(
            path=path,
            crs=crs_name(crs) if crs else "",
            transform=source.transform,
            shape_yx=(source.height, source.width),
            dtype=str(source.dtypes[0]) if source.count else "",
            nodata=tuple(source.nodatavals),
            scales=tuple(source.scales),
            offsets=tuple(source.offsets),
            descriptions=tuple(source.descriptions),
            stamp=file_stamp(path),
            is_plain=Path(path).exists() and source.driver == "GTiff" and not source.compression,
        )
    keep_open(source, path, header.stamp)
    return header


def crs_name(crs: Any) -> str:
    """EPSG code where there is one, WKT otherwise, for anything rasterio takes as a CRS."""
    from rasterio.crs import CRS

    crs = CRS.from_user_input(crs)
    wkt = str(crs.to_wkt())
    code = crs.to_epsg()
    if code is None:
        # Old WKT with TOWGS84 states a code that GDAL does not dare to match.
        stated = re.search(r'(?:AUTHORITY\["EPSG","|ID\["EPSG",)(\d+)"?\]\]$', wkt)
        code = int(stated.group(1)) if stated else None
    return f"EPSG:{code}" if code else wkt


def find_bands(
    headers: Sequence[RasterHeader],
    options: OpenOptions,
    *,
    roots: Sequence[str] = (),
    dates: Sequence[Any] | None = None,
) -> tuple[list[BandFile], str]:
    """The bands in files, and why they look like Sentinel-2 Level-1C ("" if they do not).

    Files without a recognised band are skipped, unless none is recognised: then InputError.
    """
    tokens = [_file_tokens(h, options.bands) for h in headers]
    by_folder: dict[str, set[str]] = {}
    for header, found in zip(headers, tokens, strict=True):
        folder = str(Path(header.path).parent)
        by_folder.setdefault(folder, set()).update(t for t in found if t)
    result: list[BandFile] = []
    unnamed: list[str] = []
    level_1c = ""
    for number, (header, found) in enumerate(zip(headers, tokens, strict=True)):
        if not any(found):
            unnamed.append(header.path)
            continue
        neighbours = frozenset(by_folder[str(Path(header.path).parent)])
        given = dates[number] if dates is not None else options.date
        date = parse_date(given) if given is not None else _date_of(header.path, roots)
        bands = _bands_of_file(header, found, neighbours, date, options)
        sensors = {b.sensor for b in bands} or {names.product_sensor(header.path) or ""}
        if "sentinel2_l2a" in sensors and options.sensor in (None, "sentinel2_l2a"):
            level_1c = level_1c or _level_1c(header, found)
        result += bands
    if not any(not b.is_cloud_mask for b in result):
        _raise_no_bands(headers, unnamed, options)
    _say_left_out(unnamed, len(headers))
    return result, level_1c


def _say_left_out(unnamed: Sequence[str], count: int) -> None:
    """One line however many files there are: a folder of other things must not hide the rest."""
    if len(unnamed) == 1:
        log.warning(
            "%s is left out: neither its name nor its band descriptions name a band", unnamed[0]
        )
    elif unnamed:
        log.warning(
            "%d of %d files are left out, such as %s: neither their names nor their band "
            "descriptions name a band",
            len(unnamed),
            count,
            unnamed[0],
        )


def _level_1c(header: RasterHeader, tokens: Sequence[str | None]) -> str:
    if names.is_level_1c(header.path):
        return f"the name of {header.path} says so"
    return f"{header.path} has band B10, which L2A has not" if "B10" in tokens else ""


def _raise_no_bands(
    headers: Sequence[RasterHeader], unnamed: Sequence[str], options: OpenOptions
) -> None:
    wanted = [options.sensor] if options.sensor else list(SENSORS)
    example = unnamed[0] if unnamed else headers[0].path
    count = max(len(h.descriptions) for h in headers)
    raise InputError(
        got=f"{len(headers)} file(s) such as {example} with {count} band(s), none of which is "
        f"named as a band of {' or '.join(wanted)}",
        expected="bands named in file names (..._B02.jp2) or in GDAL band descriptions",
        fix='pass the names in file order: open_stack(bands=["B02", "B03", ...]) or '
        "--bands B02,B03,...",
    )


def _file_tokens(header: RasterHeader, bands: Any) -> list[str | None]:
    """One token per band of the file, None where a band is not recognised."""
    count = len(header.descriptions)
    stem = Path(header.path).name.rsplit(".", 1)[0]
    if isinstance(bands, dict):
        keys = [stem, *(d or "" for d in header.descriptions)]
        if stem in bands and count == 1:
            return [str(bands[stem]).upper()]
        return [str(bands[k]).upper() if k in bands else None for k in keys[1:]]
    if bands is not None:
        given = [bands] if isinstance(bands, str) else list(bands)
        if len(given) == count:
            return [str(b).strip().upper() if b else None for b in given]
        if count > 1:
            raise InputError(
                got=f"{len(given)} names in bands= for {header.path}, which has {count} bands",
                expected=f"{count} names in file order",
                fix='name every band, "" for one to skip',
            )
    described = [names.band_token(d) if d else None for d in header.descriptions]
    if any(described):
        return described
    return [names.band_token(stem)] if count == 1 else [None] * count


def _bands_of_file(
    header: RasterHeader,
    tokens: Sequence[str | None],
    neighbours: frozenset[str],
    date: np.datetime64 | None,
    options: OpenOptions,
) -> list[BandFile]:
    stated = names.product_sensor(header.path)
    if options.sensor and stated and stated != options.sensor and options.bands is None:
        return []
    sensor = options.sensor or stated
    result: list[BandFile] = []
    seen: set[tuple[str, str]] = set()
    for index, token in enumerate(tokens, start=1):
        if token is None:
            continue
        named = names.name_band(
            token,
            sensor=sensor,
            neighbours=neighbours,
            resolution_m=header.resolution,
            where=header.path,
        )
        if named is None and options.bands is not None and options.sensor is None:
            # Names that the user gives outrank what the path of the file looks like.
            named = names.name_band(token, neighbours=neighbours, where=header.path)
        if named is None:
            log.info("%s: %s is not a band the models read; left out", header.path, token)
            continue
        if (named.sensor, named.band) in seen:
            raise InputError(
                got=f"band {named.band} twice in {header.path}",
                expected="every band once",
                fix='name the bands in file order with bands= (--bands), "" for one to skip',
            )
        seen.add((named.sensor, named.band))
        result.append(_band_file(header, index, named, date, options))
    return result


def _band_file(
    header: RasterHeader,
    index: int,
    named: names.NamedBand,
    date: np.datetime64 | None,
    options: OpenOptions,
) -> BandFile:
    if not header.crs:
        raise InputError(
            got=f"{header.path} without a CRS",
            expected="a georeferenced raster",
            fix="write its CRS into the file, for example: rio edit-info --crs EPSG:32618 FILE",
        )
    nodata = header.nodata[index - 1]
    if named.is_cloud_mask:
        return BandFile(
            header=header,
            index=index,
            sensor=named.sensor,
            band=named.band,
            is_cloud_mask=True,
            date=date,
            nodata=nodata,
        )
    stored = offsets.from_scale_and_offset(
        named.sensor, header.scales[index - 1], header.offsets[index - 1]
    )
    scale: float | str = 1.0
    offset, settled = 0.0, False
    if stored is not None:
        scale, offset = stored
        settled = offset != 0
    elif named.sensor == "sentinel2_l2a":
        from_product = offsets.from_product(header.path, named.band)
        offset, settled = from_product or 0.0, from_product is not None
    given_scale, given_offset = options.scale_of(named.sensor), options.offset_of(named.sensor)
    if given_scale is not None:
        scale = given_scale
    if given_offset is not None:
        offset, settled = given_offset, True
    return BandFile(
        header=header,
        index=index,
        sensor=named.sensor,
        band=named.band,
        date=date,
        nodata=nodata,
        scale=scale,
        offset=offset,
        offset_settled=settled,
    )


def _date_of(path: str, roots: Sequence[str]) -> np.datetime64 | None:
    """A date in the file name, else in the nearest folder name up to and with the given root."""
    found = date_in_name(Path(path).name.rsplit(".", 1)[0])
    if found is not None:
        return found
    stop = {str(Path(root)) for root in roots}
    for parent in Path(path).parents:
        found = date_in_name(parent.name)
        if found is not None:
            return found
        if str(parent) in stop:
            break
    return None


def make_scenes(found: Sequence[BandFile]) -> list[Scene]:
    """Bands of one sensor, date and footprint together; InputError where a band comes twice."""
    scenes: list[Scene] = []
    # Finest first: a SAFE folder repeats bands at coarser resolutions.
    ordered = sorted(found, key=lambda b: (b.is_cloud_mask, b.header.resolution, b.header.path))
    for band in ordered:
        home = _home_of(band, scenes)
        if home is None:
            if band.is_cloud_mask:
                log.info("%s has no image bands beside it; left out", band.header.path)
                continue
            home = Scene(
                sensor=band.sensor, date=band.date, bounds=band.header.bounds, crs=band.header.crs
            )
            scenes.append(home)
        if band.is_cloud_mask:
            if home.mask is None:
                home.mask = band
        else:
            home.bands.setdefault(band.band, band)
    return sorted(scenes, key=lambda s: s.finest.header.path)


def _home_of(band: BandFile, scenes: Sequence[Scene]) -> Scene | None:
    for scene in scenes:
        if (scene.sensor, scene.date, scene.crs) != (band.sensor, band.date, band.header.crs):
            continue
        if _shared_part(scene.bounds, band.header.bounds) < 0.7:
            continue
        if band.is_cloud_mask or band.band not in scene.bands:
            return scene
        other = scene.bands[band.band]
        if band.header.resolution > 1.5 * other.header.resolution:
            log.info("%s repeats %s at a coarser resolution", band.header.path, other.header.path)
            return scene
        # Two products of one day may cover a place; two files of one folder are a mistake.
        beside = Path(band.header.path).parent == Path(other.header.path).parent
        same_place = _shared_part(other.header.bounds, band.header.bounds) > 0.99
        if band.date is None or (beside and same_place):
            dated = "without dates" if band.date is None else f"on {band.date}"
            raise InputError(
                got=f"band {band.band} twice for the same place {dated}: "
                f"{other.header.path} and {band.header.path}",
                expected="one file per band and date",
                fix="put the dates in the names or folders, pass date= (--date) with one date per "
                "file, or leave one file out",
            )
    return None


def _shared_part(a: BboxWSEN, b: BboxWSEN) -> float:
    """Shared area over the smaller area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller
