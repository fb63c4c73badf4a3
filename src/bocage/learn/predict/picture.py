"""A map as a small PNG, for looking: classes in their colors beside names, or numbers on a ramp."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bocage.embeddings.atomic import flush_to_disk, naming_failures, scratch_beside
from bocage.learn.predict.legend import Legend
from bocage.learn.predict.style import RAMP

MAX_PX = 1024
_VISIBLE_PX = 512
"""A map of a few dozen cells is drawn with whole pixels per cell, up to about this side."""

_LEGEND_ROW_PX = 20
"""Height of a name in a legend."""

_RAMP_PX = 90
"""Width of a ramp with its numbers."""

_LEAST_RAMP_PX = 120

Ends = Literal["neither", "both", "min", "max"]
"""Ends of a ramp, in matplotlib's words."""


def draw(
    raster: Path,
    png: Path,
    *,
    legend: Legend | None = None,
    limits: tuple[float, float] | None = None,
    band: int = 1,
    colors: Sequence[str] = RAMP,
    max_px: int = MAX_PX,
) -> Path:
    """Draw a band of a raster; transparent where there is no data.

    With a legend in its colors, else on a ramp between the limits (by default the 2nd and 98th
    percentile of what is drawn). The names of the colors, or the ramp with its numbers, stand
    beside it where matplotlib is installed (the extra learn).
    """
    import rasterio
    from rasterio.enums import Resampling

    with rasterio.open(raster) as file:
        factor = max(1, -(-max(file.shape) // max_px))
        shape_yx = tuple(-(-n // factor) for n in file.shape)
        # Reading smaller than stored takes the overviews, which are true summaries.
        how = Resampling.nearest if legend else Resampling.average
        x = file.read(band, out_shape=shape_yx, resampling=how, masked=True)
        values = np.ma.filled(x.astype(np.float32), np.nan) * np.float32(file.scales[band - 1])
    there = values[~np.isnan(values)]
    span = limits or _stretch(there)
    rgba = _classes(values, legend) if legend else _ramp(values, span, colors)
    times = max(1, min(_VISIBLE_PX, max_px) // max(shape_yx))
    rgba = rgba.repeat(times, axis=1).repeat(times, axis=2)
    if find_spec("matplotlib") is not None:
        height = rgba.shape[1]
        beside = (
            _legend_panel(legend, height)
            if legend
            else _ramp_panel(span, colors, height, _beyond(span, there))
        )
        rgba = _side_by_side(rgba, beside)
    with naming_failures(png), scratch_beside(png) as folder:
        made = folder / "picture.png"
        _write_png(made, rgba)
        flush_to_disk(made)
        made.replace(png)
    return png


def _classes(values: NDArray[np.float32], legend: Legend) -> NDArray[np.uint8]:
    rgba = np.zeros((4, *values.shape), np.uint8)
    for c in legend.classes:
        rgba[:, values == c.value] = np.array([*c.rgb, 255], np.uint8)[:, None]
    return rgba


def _legend_panel(legend: Legend, height_px: int) -> NDArray[np.uint8]:
    """Colors and names [4, h, w] on white, in as many columns as the height asks for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    # A dollar sign would begin a formula.
    handles = [
        Patch(facecolor=c.color, edgecolor="gray", linewidth=0.5, label=c.name.replace("$", r"\$"))
        for c in legend.classes
    ]
    per_column = max(1, height_px // _LEGEND_ROW_PX)
    n_columns = -(-len(handles) // per_column)
    n_rows = -(-len(handles) // n_columns)
    figure = Figure(figsize=(30, n_rows * _LEGEND_ROW_PX / 100 + 0.4), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    shown = figure.legend(
        handles=handles, loc="upper left", frameon=False, fontsize=9, ncols=n_columns
    )
    canvas.draw()
    box = shown.get_window_extent()
    whole = np.asarray(canvas.buffer_rgba())
    panel = whole[: int(whole.shape[0] - box.y0) + 1, : int(box.x1) + 1]
    return np.ascontiguousarray(panel.transpose(2, 0, 1))


def _ramp_panel(
    span: tuple[float, float], colors: Sequence[str], height_px: int, beyond: Ends
) -> NDArray[np.uint8]:
    """The ramp with its numbers [4, h, w] on white; pointed where the map goes beyond."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure

    height_px = min(max(height_px, _LEAST_RAMP_PX), _VISIBLE_PX)
    figure = Figure(figsize=(_RAMP_PX / 100, height_px / 100), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    Colorbar(
        figure.add_axes((0.12, 0.06, 0.16, 0.88)),
        cmap=LinearSegmentedColormap.from_list("ramp", list(colors)),
        norm=Normalize(span[0], span[1] if span[1] > span[0] else span[0] + 1e-12),
        extend=beyond,
    ).ax.tick_params(labelsize=8)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba()).transpose(2, 0, 1))


def _beyond(span: tuple[float, float], values: NDArray[np.float32]) -> Ends:
    """At which ends of a span values lie beyond it."""
    below = bool((values < span[0]).any())
    if (values > span[1]).any():
        return "both" if below else "max"
    return "min" if below else "neither"


def _side_by_side(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two pictures [4, h, w] from the same top; what is below the shorter one is transparent."""
    height = max(left.shape[1], right.shape[1])
    padded = [np.pad(x, ((0, 0), (0, height - x.shape[1]), (0, 0))) for x in (left, right)]
    return np.concatenate(padded, axis=2)


def _ramp(
    values: NDArray[np.float32], span: tuple[float, float], colors: Sequence[str]
) -> NDArray[np.uint8]:
    valid = ~np.isnan(values)
    low, high = span
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colors], np.float64)
    where = np.clip((np.where(valid, values, low) - low) / max(high - low, 1e-12), 0, 1)
    at = np.linspace(0, 1, len(stops))
    rgba = np.empty((4, *values.shape), np.uint8)
    for i in range(3):
        rgba[i] = np.where(valid, np.rint(np.interp(where, at, stops[:, i])), 0)
    rgba[3] = np.where(valid, 255, 0)
    return rgba


def _stretch(values: NDArray[np.float32]) -> tuple[float, float]:
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, [2, 98]))
    return low, high


def _write_png(path: Path, rgba: NDArray[Any]) -> None:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with (
            rasterio.Env(GDAL_PAM_ENABLED=False),
            rasterio.open(
                path,
                "w",
                driver="PNG",
                dtype="uint8",
                count=4,
                height=rgba.shape[1],
                width=rgba.shape[2],
            ) as file,
        ):
            file.write(rgba)
