"""From measured strengths to files: the map, the binary map, areas, style, picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.change.config import ChangeConfig
from bocage.change.measure import Measure
from bocage.change.moments import nothing_shared
from bocage.change.result import ChangeResult
from bocage.embeddings.atomic import write_file
from bocage.embeddings.cog import own_grid
from bocage.geo import Grid
from bocage.learn.baselines import otsu
from bocage.learn.predict.area import AreaTable, CellAreas, write_table
from bocage.learn.predict.layer import Layer, LayerWriter, tiles
from bocage.learn.predict.legend import Legend
from bocage.learn.predict.picture import draw
from bocage.learn.predict.style import write_class_style, write_ramp_style
from bocage.progress import progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.embeddings.lazy_raster import LazyRaster
    from bocage.types import FloatArray

CHANGED = Legend.of(
    [
        {"value": 0, "name": "no change", "color": "#d9d9d9"},
        {"value": 1, "name": "change", "color": "#d7301f"},
    ]
)
"""Of the binary map; nodata is 255 there, and is neither."""

STRENGTH_COLORS = ("#f7f7f7", "#fdd49e", "#fc8d59", "#d7301f", "#7f0000")
"""From no change to much; ColorBrewer's OrRd (Apache-2.0) with a light start."""

SAMPLE_CELLS = 200_000
"""Cells that the threshold and the scale of int8 are chosen from."""

SAMPLE_VALUES = 2**24
"""No more values than this are sampled, where a cell has many."""

_BEYOND = 1e-4
"""Share of sampled values that int8 may clip; the rest of the range is spent on them."""


def write_outputs(
    strengths: LazyRaster,
    measure: Measure,
    out: Path,
    config: ChangeConfig,
    *,
    tags: Mapping[str, str],
    show_progress: bool = False,
) -> ChangeResult:
    """Write every file but the record, tile by tile.

    The threshold and the scale of int8 come from a sample of the map; InputError if it has no cell
    with data.
    """
    sampled = sample_strengths(strengths)
    if not sampled.size:
        raise nothing_shared((tags["BEFORE"], tags["AFTER"]))
    grid = own_grid(strengths)
    threshold = _threshold(measure, config, sampled)
    layers = _layers(grid, measure, out, config, tags, sampled, threshold)
    table = AreaTable(legend=CHANGED, areas=CellAreas(grid))
    n_valid = n_cells = 0
    with ExitStack() as stack:
        total = len(list(tiles(grid.shape_yx)))
        writers = [stack.enter_context(LayerWriter(layer)) for layer in layers]
        advance = stack.enter_context(
            progress("writing", total, unit="tiles", enabled=show_progress)
        )
        for rows, cols in tiles(grid.shape_yx):
            x = strengths[0, :, rows, cols]
            valid = ~np.isnan(x[0])
            values = [x]
            if threshold is not None:
                values.append(np.where(valid, x[:1] >= threshold, np.nan).astype(np.float32))
                table.add(rows, cols, np.where(valid, values[1][0], -1).astype(np.int8))
            for writer, part in zip(writers, values, strict=False):
                writer.write((rows, cols), part)
            n_valid, n_cells = n_valid + int(valid.sum()), n_cells + valid.size
            advance(1)
        files = [writer.finish() for writer in writers]
    found = ChangeResult(
        path=out,
        files=(),
        measure=measure,
        threshold=threshold,
        table=table.rows() if threshold is not None else [],
        valid_fraction=n_valid / n_cells,
    )
    found.files = (*files, *_sidecars(files, measure, config, sampled, found))
    return found


def sample_strengths(strengths: LazyRaster) -> FloatArray:
    """Some cells with data [B, n], drawn evenly over the map; all if they are few."""
    _, n_bands, n_rows, n_cols = strengths.shape
    limit = min(SAMPLE_CELLS, SAMPLE_VALUES // n_bands)
    share = min(1.0, limit / (n_rows * n_cols))
    rng = np.random.default_rng(1)
    parts = []
    for rows, cols in tiles((n_rows, n_cols)):
        x = strengths[0, :, rows, cols].reshape(n_bands, -1)
        keep = ~np.isnan(x[0])
        if share < 1:
            keep &= rng.random(keep.size) < share
        parts.append(x[:, keep])
    return np.concatenate(parts, axis=1)


def _threshold(measure: Measure, config: ChangeConfig, sampled: FloatArray) -> float | None:
    if not measure.has_strength:
        return None
    if config.threshold is not None:
        return config.threshold
    if measure.name == "logistic":
        return 0.5
    strength = sampled[0].astype(np.float64)
    if measure.name == "irmad":
        # A chi-square number has a tail without end; its root is a length, like other magnitudes.
        return otsu(np.sqrt(strength)) ** 2
    return otsu(strength)


def _layers(  # noqa: PLR0917 - what one map consists of
    grid: Grid,
    measure: Measure,
    out: Path,
    config: ChangeConfig,
    tags: Mapping[str, str],
    sampled: FloatArray,
    threshold: float | None,
) -> list[Layer]:
    first = Layer(path=out, grid=grid, bands=measure.bands, tags=tags)
    if config.is_int8:
        scale = linear_scale(sampled)
        words = f"value = stored number x {scale:.9g}, -128 = no data"
        first = Layer(
            path=out,
            grid=grid,
            bands=measure.bands,
            dtype="int8",
            scale=scale,
            nodata=-128,
            tags={**tags, "SCALE": words},
        )
    if threshold is None or not config.binary:
        return [first]
    binary = Layer(
        path=out.with_name(f"{out.stem}.binary.tif"),
        grid=grid,
        bands=("change",),
        dtype="uint8",
        nodata=CHANGED.nodata,
        legend=CHANGED,
        tags={**tags, "THRESHOLD": f"{measure.bands[0]} >= {threshold:.9g}"},
    )
    return [first, binary]


def linear_scale(sampled: FloatArray) -> float:
    """One step of int8 for all bands: the largest values but one in ten thousand fit into 127.

    All bands share it, so that distances between codes are distances between values.
    """
    largest = float(np.quantile(np.abs(sampled), 1 - _BEYOND))
    return max(largest, 1e-12) / 127


def _sidecars(
    files: list[Path],
    measure: Measure,
    config: ChangeConfig,
    sampled: FloatArray,
    found: ChangeResult,
) -> list[Path]:
    out = files[0]
    low, high = (float(v) for v in np.quantile(sampled[0], [0.02, 0.98]))
    if measure.has_strength:
        low = 0.0
    high = max(high, low + 1e-9)
    written = [write_ramp_style(out, low, high, colors=STRENGTH_COLORS)]
    if len(files) > 1:
        written += write_class_style(files[1], CHANGED)
    if found.table:
        written.append(write_table(out.with_suffix(".area.csv"), found.table))
    if arrays := measure.arrays():
        written.append(save_arrays(out.with_suffix(".npz"), arrays))
    if config.picture:
        picture = out.with_suffix(".png")
        written.append(draw(out, picture, limits=(low, high), colors=STRENGTH_COLORS))
    return written


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Write arrays by name in one step."""
    stored = io.BytesIO()
    np.savez(stored, **arrays)  # type: ignore[arg-type]
    write_file(path, stored.getbuffer())
    return path
