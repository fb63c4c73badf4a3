"""From scores to the files of a map: classes, probabilities or values, table, style, picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.cog import own_grid
from bocage.errors import InputError
from bocage.geo import Grid
from bocage.learn.predict.area import AreaTable, CellAreas, write_table
from bocage.learn.predict.config import PredictConfig
from bocage.learn.predict.intervals import estimate, interval_columns
from bocage.learn.predict.layer import Layer, LayerWriter, tiles
from bocage.learn.predict.legend import Legend
from bocage.learn.predict.picture import draw
from bocage.learn.predict.polygons import write_polygons
from bocage.learn.predict.predictor import Predictor
from bocage.learn.predict.style import write_class_style, write_ramp_style

if TYPE_CHECKING:
    from bocage.embeddings.lazy_raster import LazyRaster
    from bocage.types import FloatArray

PROBABILITY_STEP = 1 / 250
"""Probabilities are stored as whole numbers from 0 to 250 of this; 255 is nodata."""

PROBABILITY_NODATA = 255

PRESENCE = Legend.of([{"value": 0, "name": "absent"}, {"value": 1, "name": "present"}])
"""Of each band of a multi-label map."""


@dataclass(kw_only=True)
class MapFiles:
    """What was written for one year."""

    files: list[Path] = field(default_factory=list)
    table: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the area table; empty for regression."""

    places: str = ""
    """Where the intervals of the table come from."""

    n_valid: int = 0
    n_cells: int = 0
    n_polygons: int = 0
    limits: tuple[float, float] | None = None
    """Smallest and largest value of a regression."""


def write_map(
    scores: LazyRaster,
    year_index: int,
    predictor: Predictor,
    out: Path,
    config: PredictConfig,
    *,
    tags: Mapping[str, str],
    advance: Callable[[float], None],
) -> MapFiles:
    """Write every file of one year's map; scores are read tile by tile, once.

    InputError if no cell has a score.
    """
    grid = own_grid(scores)
    layers = _layers(predictor, out, grid, config, tags)
    found = MapFiles()
    legend = predictor.legend
    tables = _tables(predictor, grid)
    with ExitStack() as stack:
        writers = [stack.enter_context(LayerWriter(layer)) for layer in layers]
        for rows, cols in tiles(grid.shape_yx):
            x = scores[year_index, :, rows, cols]
            values = _values(predictor, x, config)
            for writer, part in zip(writers, values, strict=False):
                writer.write((rows, cols), part)
            valid = ~np.isnan(values[0][0])
            found.n_valid += int(valid.sum())
            found.n_cells += valid.size
            for band, table in enumerate(tables):
                codes = np.where(valid, values[0][band], -1).astype(np.int32)
                table.add(rows, cols, codes)
            if legend is None and valid.any():
                low, high = found.limits or (np.inf, -np.inf)
                found.limits = (
                    min(low, float(np.nanmin(values[0]))),
                    max(high, float(np.nanmax(values[0]))),
                )
            advance(1)
        if found.n_valid == 0:
            raise InputError(
                got=f"nothing but nodata in the year {scores.years[year_index] or 'unknown'}",
                expected="at least one cell with a score",
                fix="check the embeddings with `bocage info`, or choose another of --years",
            )
        found.files += [writer.finish() for writer in writers]
    _write_sidecars(predictor, out, config, tables, found)
    return found


def _layers(
    predictor: Predictor, out: Path, grid: Grid, config: PredictConfig, tags: Mapping[str, str]
) -> list[Layer]:
    legend = predictor.legend
    if legend is None:
        return [Layer(path=out, grid=grid, bands=predictor.outputs, tags=tags)]
    classes = {"BOCAGE_CLASSES": json.dumps(legend.as_json(), ensure_ascii=False)}
    is_multilabel = predictor.task == "multilabel"
    first = PRESENCE if is_multilabel else legend
    layers = [
        Layer(
            path=out,
            grid=grid,
            bands=predictor.outputs if is_multilabel else ("class",),
            dtype="uint8" if first.dtype == "uint8" else "uint16",
            nodata=first.nodata,
            legend=first,
            tags={**tags, **classes},
        )
    ]
    if config.probability:
        layers.append(
            Layer(
                path=probability_path(out),
                grid=grid,
                bands=predictor.outputs,
                dtype="uint8",
                scale=PROBABILITY_STEP,
                nodata=PROBABILITY_NODATA,
                tags={
                    **tags,
                    **classes,
                    "SCALE": f"probability = stored number x {PROBABILITY_STEP:g}, 255 = no data",
                },
            )
        )
    return layers


def probability_path(out: Path) -> Path:
    """NAME.probability.tif beside NAME.tif."""
    return out.with_name(f"{out.stem}.probability.tif")


def _tables(predictor: Predictor, grid: Grid) -> list[AreaTable]:
    """One table, or one per class of a multi-label map, whose classes overlap."""
    if predictor.legend is None:
        return []
    areas = CellAreas(grid)
    if predictor.task == "multilabel":
        return [AreaTable(legend=PRESENCE, areas=areas) for _ in predictor.outputs]
    return [AreaTable(legend=predictor.legend, areas=areas)]


def _values(predictor: Predictor, x: FloatArray, config: PredictConfig) -> list[FloatArray]:
    """What each layer holds of a tile of scores [K, h, w]."""
    if predictor.legend is None:
        return [x]
    missing = np.isnan(x[0])
    if predictor.task == "multilabel":
        present = np.where(missing, np.nan, x >= config.threshold).astype(np.float32)
        return [present, x]
    # Blended windows of probabilities sum to one up to rounding.
    p = x / np.maximum(x.sum(axis=0), np.float32(1e-12))
    values = np.asarray(predictor.legend.values, np.float32)
    classes = np.where(missing, np.float32(np.nan), values[np.nan_to_num(p).argmax(axis=0)])
    return [classes[None], p]


def _write_sidecars(
    predictor: Predictor,
    out: Path,
    config: PredictConfig,
    tables: list[AreaTable],
    found: MapFiles,
) -> None:
    legend = predictor.legend
    if legend is None:
        low, high = found.limits or (0.0, 1.0)
        found.files.append(write_ramp_style(out, low, high))
    elif predictor.task == "multilabel":
        found.files += write_class_style(out, PRESENCE, n_bands=len(predictor.outputs))
        rows = []
        for c, table in zip(legend.classes, tables, strict=True):
            present = table.rows()[1]
            rows.append({**present, "value": c.value, "class": c.name})
        found.table = rows
    else:
        found.files += write_class_style(out, legend)
        km2 = np.array([tables[0].km2[value] for value in legend.values])
        areas, found.places = estimate(
            predictor.scorer,
            legend,
            km2,
            raster=out,
            reference=config.reference,
            column=config.reference_label,
        )
        found.table = tables[0].rows(None if areas is None else interval_columns(areas))
    if legend is not None and config.probability:
        path = probability_path(out)
        found.files.append(write_ramp_style(path, 0.0, 1.0))
    if found.table:
        found.files.append(write_table(out.with_suffix(".area.csv"), found.table))
    if config.polygons is not None and legend is not None:
        found.n_polygons = write_polygons(out, config.polygons, legend, min_cells=config.min_cells)
        found.files.append(config.polygons)
    if config.picture:
        shown = None if legend is None else (PRESENCE if len(tables) > 1 else legend)
        found.files.append(draw(out, out.with_suffix(".png"), legend=shown))
