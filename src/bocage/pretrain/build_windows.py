"""Where samples lie in a source, and cutting one out of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageError
from bocage.pretrain.build_config import BuildConfig
from bocage.pretrain.build_maps import read_map
from bocage.pretrain.sample import Sample
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    import xarray as xr

    from bocage.types import FloatArray

logger = logging.getLogger(__name__)

CutWindow = tuple[int, int, int, int]
"""First row, first column, first timestep, timesteps; rows and columns may begin outside."""


def plan_windows(
    shape_yx: tuple[int, int], n_times: int, config: BuildConfig
) -> tuple[CutWindow, ...]:
    """Windows (first row, first column, first timestep, timesteps) of a source of that size."""
    rows, cols = (_starts(extent, config) for extent in shape_yx)
    runs = [
        (first, min(config.max_steps, n_times - first))
        for first in range(0, n_times, config.max_steps)
    ]
    return tuple((row, col, *run) for row in rows for col in cols for run in runs)


def _starts(extent: int, config: BuildConfig) -> list[int]:
    """First pixels of windows along one axis.

    Without a stride, as many as fill the extent about once, spread from edge to edge: 257 pixels
    give 0 and 129, 200 give 0 and 72. A smaller source has one window, padded around with NaN.
    """
    size = config.size_px
    if extent <= size:
        return [-((size - extent) // 2)]
    if config.stride_px is not None:
        return list(range(0, extent - size + 1, config.stride_px))
    n = max(1, round(extent / size))
    return [round(i * (extent - size) / max(1, n - 1)) for i in range(n)]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a window gave."""

    sample: Sample | None
    """None if nothing in it was usable."""

    left_out: tuple[str, ...] = ()
    """Sensors that were left out, in a few words each."""


def cut_window(stack: xr.Dataset, name: str, config: BuildConfig, window: CutWindow) -> Cut:
    """Read a window, blank its poor timesteps, and lay the maps on it."""
    from bocage.imagery import read_window, timestamps
    from bocage.imagery.stack import stack_sensors

    row, col, first, n_steps = window
    size = config.size_px
    small = min(stack.sizes["y"], stack.sizes["x"])
    hint = f" (source of {small} pixels, --size {small // 8 * 8} fits)" if small < size else ""
    inside = min(stack.sizes["y"], size) * min(stack.sizes["x"], size) / size**2
    if inside < config.min_valid_share:  # known before anything is read, or memory taken
        few = f"less than {config.min_valid_share:.0%} valid pixels{hint}"
        return Cut(sample=None, left_out=tuple(f"{name} {few}" for name in stack_sensors(stack)))
    piece = stack.isel(time=slice(first, first + n_steps))
    try:
        data = read_window(piece, slice(row, row + size), slice(col, col + size))
    except BocageError as error:
        logger.warning("%s: %s", name, error)
        return Cut(sample=None, left_out=("unreadable",))
    values: dict[str, FloatArray] = {}
    reasons: list[str] = []
    for sensor, x in data.values.items():
        cleaned = _clean(sensor, x, config)
        if isinstance(cleaned, str):
            reasons.append(f"{sensor} {cleaned}{hint}")
        else:
            values[sensor] = cleaned
    if not values:
        return Cut(sample=None, left_out=tuple(reasons))
    for layer, path in config.maps.items():
        map_values = read_map(path, layer, stack, (row, col), size)
        if map_values is not None:
            values[layer] = map_values
    sample = Sample(
        id=f"{name}#{row},{col},{first}",
        values=values,
        timestamps=timestamps(data.dates),
        latlon=_center(stack, row + size / 2, col + size / 2),
    )
    return Cut(sample=sample, left_out=tuple(reasons))


def _clean(sensor: str, x: FloatArray, config: BuildConfig) -> FloatArray | str:
    """Values [H, W, T, C] of [T, C, H, W] with poor timesteps blanked, or why there are none."""
    steps = _valid_steps(x, config.min_valid_share)
    if not steps.any():
        return f"less than {config.min_valid_share:.0%} valid pixels"
    filled = _fill_bands(sensor, x) if config.fill_bands else x
    absent = ~np.isfinite(filled[steps]).any(axis=(0, 2, 3))
    if absent.any():
        bands = " ".join(np.asarray(SENSORS[sensor].band_names)[absent])
        return f"lacking {bands} (--fill-bands copies the nearest)"
    moved = np.moveaxis(filled, (2, 3), (0, 1)).copy()
    moved[:, :, ~steps] = np.nan
    return moved


def _valid_steps(x: FloatArray, min_share: float) -> Any:
    """Timesteps of [T, C, H, W] whose pixels are valid in every band that has data at all."""
    finite: Any = np.isfinite(x)
    has_band = finite.any(axis=(2, 3))  # [T, C]
    usable = (finite | ~has_band[:, :, None, None]).all(axis=1) & has_band.any(axis=1)[
        :, None, None
    ]
    return usable.mean(axis=(1, 2)) >= min_share


def _fill_bands(sensor: str, x: FloatArray) -> FloatArray:
    """Bands without any data become copies of the present band of nearest wavelength."""
    from bocage.models.missing import nearest_bands

    has_band: Any = np.isfinite(x).any(axis=(2, 3))  # [T, C]
    filled = x.copy()
    for band, candidates in enumerate(nearest_bands(SENSORS[sensor])):
        for step in np.flatnonzero(~has_band[:, band]):
            nearest = next((c for c in candidates if has_band[step, c]), None)
            if nearest is not None:
                filled[step, band] = x[step, nearest]
    return filled


def _center(stack: xr.Dataset, row: float, col: float) -> tuple[float, float]:
    """Latitude and longitude of a pixel position."""
    from rasterio.warp import transform

    from bocage.imagery import stack_grid

    grid = stack_grid(stack)
    x, y = grid.transform @ (col, row)
    lon, lat = transform(grid.crs, "EPSG:4326", [x], [y])
    return float(lat[0]), float(lon[0])
