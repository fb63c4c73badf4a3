"""The Stack (docs/architecture.md, Contract 1): an xarray Dataset, one lazy variable per sensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine

from bocage.errors import InputError
from bocage.geo import Grid
from bocage.imagery.reader import lazy_array
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr

    from bocage.imagery.reader import Reader


def make_stack(
    readers: Mapping[str, Reader],
    *,
    grid: Grid,
    dates: Sequence[np.datetime64] | np.ndarray[Any, Any],
    sources: Sequence[str],
    dates_known: bool,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """A Stack over readers that share a grid and a time axis."""
    import xarray as xr

    coords: dict[str, Any] = {
        "time": ("time", np.asarray(dates, dtype="datetime64[ns]")),
        "y": ("y", grid.y, {"standard_name": "projection_y_coordinate", "units": "metre"}),
        "x": ("x", grid.x, {"standard_name": "projection_x_coordinate", "units": "metre"}),
        "spatial_ref": ((), np.int32(0), grid_mapping(grid)),
    }
    variables: dict[str, Any] = {}
    for name, table in SENSORS.items():
        if name not in readers:
            continue
        band = f"{name}_band"
        coords[band] = (band, list(table.band_names))
        variables[name] = (
            ("time", band, "y", "x"),
            lazy_array(readers[name], name),
            {"long_name": table.title, "units": table.units, "grid_mapping": "spatial_ref"},
        )
    return xr.Dataset(
        variables,
        coords,
        {
            "bocage_sources": list(sources),
            "bocage_dates": "known" if dates_known else "unknown",
            **(attrs or {}),
        },
    )


def grid_mapping(grid: Grid) -> dict[str, Any]:
    """CF attributes of the grid mapping variable, as rioxarray and odc-geo read them."""
    from rasterio.crs import CRS

    wkt = CRS.from_user_input(grid.crs).to_wkt()
    t = grid.transform
    return {
        "crs_wkt": wkt,
        "spatial_ref": wkt,
        "GeoTransform": " ".join(repr(float(v)) for v in (t.c, t.a, t.b, t.f, t.d, t.e)),
    }


def stack_sensors(stack: xr.Dataset) -> list[str]:
    """The sensors of a stack, in the order of sensors.py; InputError if there is none."""
    found = [name for name in SENSORS if name in stack.data_vars]
    if not found:
        raise InputError(
            got=f"a Dataset with variables {', '.join(map(str, stack.data_vars)) or '(none)'}",
            expected=f"a Stack with {' or '.join(SENSORS)}",
            fix="make it with open_stack(dataset)",
        )
    return found


def stack_grid(stack: xr.Dataset) -> Grid:
    """CRS, transform and shape of a stack, also after it was cropped with isel or sel."""
    stack_sensors(stack)
    attrs = stack["spatial_ref"].attrs if "spatial_ref" in stack.coords else {}
    wkt = attrs.get("crs_wkt") or attrs.get("spatial_ref")
    if not wkt:
        raise InputError(
            got="a stack without spatial_ref",
            expected="a CF grid mapping with crs_wkt",
            fix="keep the coordinate spatial_ref, or open the imagery again with open_stack",
        )
    from bocage.imagery.rasters import crs_name

    y, x = np.asarray(stack["y"].values, float), np.asarray(stack["x"].values, float)
    stated = _stated_transform(attrs.get("GeoTransform"))
    transform = transform_of_centers(y, x, stated)
    return Grid(crs=crs_name(wkt), transform=transform, shape_yx=(len(y), len(x)))


def transform_of_centers(
    y: np.ndarray[Any, Any], x: np.ndarray[Any, Any], stated: Affine | None = None
) -> Affine:
    """The transform of evenly spaced pixel centres; a stated one wins where it agrees."""
    if not (len(y) and len(x)):
        raise InputError(
            got=f"a stack of {len(y)} x {len(x)} pixels",
            expected="at least one pixel",
            fix="check the area that was selected",
        )
    dx = _step(x, "x", stated.a if stated else None)
    dy = _step(y, "y", stated.e if stated else None)
    derived = Affine(dx, 0, x[0] - dx / 2, 0, dy, y[0] - dy / 2)
    if stated is None:
        return derived
    ends = [
        (stated @ (0.5, 0.5), (x[0], y[0])),
        (stated @ (len(x) - 0.5, len(y) - 0.5), (x[-1], y[-1])),
    ]
    close = all(abs(a - b) < 1e-3 * abs(dx) for s, c in ends for a, b in zip(s, c, strict=True))
    return stated if close else derived


def _step(centers: np.ndarray[Any, Any], name: str, stated: float | None) -> float:
    if len(centers) == 1:
        if stated is None:
            raise InputError(
                got=f"a single pixel along {name} without a GeoTransform",
                expected="a grid whose pixel size is known",
                fix="give spatial_ref a GeoTransform, or select at least two pixels",
            )
        return float(stated)
    step = float(centers[-1] - centers[0]) / (len(centers) - 1)
    if step == 0 or np.abs(np.diff(centers) - step).max() > 1e-2 * abs(step):
        raise InputError(
            got=f"unevenly spaced {name} coordinates",
            expected="a regular grid",
            fix="resample to a regular grid first, for example with odc.geo's reproject",
        )
    return step


def _stated_transform(text: Any) -> Affine | None:
    try:
        c, a, b, f, d, e = (float(v) for v in str(text).split())
    except ValueError:
        return None
    return Affine(a, b, c, d, e, f)
