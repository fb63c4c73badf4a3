"""The UTM lattice of the public embedding archives.

Archives keep one group per UTM zone in the northern CRS of the zone (EPSG:326zz), also south of the
equator, where northing is negative: the southern false northing of 10,000 km is taken off.
"""

from __future__ import annotations

import re

from affine import Affine

from bocage.errors import InputError
from bocage.geo.grid import Grid

SOUTHERN_FALSE_NORTHING_M = 10_000_000.0


def utm_zone(crs: str) -> tuple[int, bool]:
    """Zone 1..60 and whether the CRS is the southern one; InputError if it is not WGS 84 UTM."""
    match = re.fullmatch(r"EPSG:32([67])(\d\d)", crs.strip(), flags=re.IGNORECASE)
    zone = int(match.group(2)) if match else 0
    if match is None or not 1 <= zone <= 60:
        raise InputError(
            got=f"CRS {crs if len(crs) < 40 else crs[:40] + '...'}",
            expected="a WGS 84 UTM zone (EPSG:32601-32660 or EPSG:32701-32760)",
            fix="open the imagery with crs='utm' (--crs utm), or write a GeoTIFF (--out NAME.tif)",
        )
    return zone, match.group(1) == "7"


def northern_grid(grid: Grid) -> Grid:
    """The same pixels in the northern CRS of their UTM zone (northing negative in the south)."""
    zone, south = utm_zone(grid.crs)
    shift = -SOUTHERN_FALSE_NORTHING_M if south else 0.0
    t = grid.transform
    return Grid(
        crs=f"EPSG:{32600 + zone}",
        transform=Affine(t.a, t.b, t.c, t.d, t.e, t.f + shift),
        shape_yx=grid.shape_yx,
    )
