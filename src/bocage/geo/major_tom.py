"""Names of Major TOM grid cells in closed form.

Source: Major TOM (Francis and Czerkawski 2024, arXiv:2402.12095); ESA's grid code names the
same cells.
"""

from __future__ import annotations

from math import ceil, cos, floor, pi, radians

from bocage.errors import InputError

EARTH_RADIUS_KM = 6378.137
LATITUDE_LIMIT_DEG = 85.0


def major_tom_name(lat_deg: float, lon_deg: float, spacing_km: float = 10.0) -> str:
    """Name of the cell that holds a point, such as ``529U_920L``.

    A cell is named by its south-west corner. Rows are ``180/N`` degrees high with
    ``N = ceil(pi R / spacing)``; a row has ``ceil(2 pi R cos(latitude of its lower edge) /
    spacing)`` columns from Greenwich. A point exactly on a corner belongs to the cell it is the
    corner of (ESA's search puts it one cell below-left).
    Raises InputError beyond 85 degrees of latitude.
    """
    if abs(lat_deg) > LATITUDE_LIMIT_DEG or abs(lon_deg) > 180:
        raise InputError(
            got=f"latitude {lat_deg}, longitude {lon_deg}",
            expected="latitude within 85 and longitude within 180 degrees",
            fix="pass degrees in the order latitude, longitude",
        )
    n_rows = ceil(pi * EARTH_RADIUS_KM / spacing_km)
    row = floor(lat_deg / (180 / n_rows))
    lower_edge_rad = radians(row * 180 / n_rows)
    n_cols = ceil(2 * pi * EARTH_RADIUS_KM * cos(lower_edge_rad) / spacing_km)
    col = floor(lon_deg / (360 / n_cols))
    row_name = f"{row}U" if row >= 0 else f"{-row}D"
    col_name = f"{col}R" if col >= 0 else f"{-col}L"
    return f"{row_name}_{col_name}"
