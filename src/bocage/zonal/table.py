"""The table of zones: one row per zone and year, with every column of the file of zones.

Columns of ours are n_cells, zone_ha, map_share, valid_share, and then the statistics: mean_000 of
embeddings, mean or mean_BAND of numbers, ha_NAME and share_NAME of classes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageWarning, InputError
from bocage.learn.pooling import recommended_pooling
from bocage.zonal.config import ZonalConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.zonal.layers import Layers
    from bocage.zonal.sums import YearSums
    from bocage.zonal.zones import Zones

_FULL = 1e-5
"""A zone on the map but for this part is on the map: two ways to measure an area never agree."""

Columns = dict[str, "NDArray[Any]"]


def make_table(
    zones: Zones,
    layers: Layers,
    sums: Sequence[YearSums],
    on_map_ha: NDArray[np.float64],
    config: ZonalConfig,
) -> Any:
    """A GeoDataFrame with a row per zone and year."""
    zone_ha = zones.hectares()
    for value in sorted({v for year in sums for v in year.classes}):
        for year in sums:  # a class that one year lacks covers nothing of it
            year.classes.setdefault(value, np.zeros(len(zones)))
    per_year = [_columns(layers, year, zone_ha, on_map_ha, config) for year in sums]
    if config.deltas:
        for before, after in zip([None, *per_year[:-1]], [*per_year], strict=True):
            _add_deltas(before, after)
    own = _own_columns(zones, [*per_year[0], *(["year"] if layers.years != (0,) else [])])
    return _stack(own, per_year, layers.years)


def _columns(
    layers: Layers,
    year: YearSums,
    zone_ha: NDArray[np.float64],
    on_map_ha: NDArray[np.float64],
    config: ZonalConfig,
) -> Columns:
    map_share = _share(on_map_ha, zone_ha)
    found: Columns = {
        "n_cells": year.n_cells,
        "zone_ha": zone_ha,
        "map_share": map_share,
        "valid_share": map_share * np.nan_to_num(_divide(year.hectares, on_map_ha)),
    }
    stats = dict(year.stats)
    if config.is_auto(layers.kind):
        operators = [recommended_pooling(n, len(layers.features)) for n in year.n_cells]
        found["operator"] = np.array(
            [o if n > 0 else "" for o, n in zip(operators, year.n_cells, strict=True)], object
        )
        for name, values in stats.items():
            used = np.array([name in o.split("+") for o in operators])
            stats[name] = np.where(used[:, None], values, np.nan)
    for name in config.names(layers.kind):
        for band, feature in enumerate(layers.features):
            shown = "median" if name == "p50" else name
            column = shown if _is_single(layers) else f"{shown}_{feature}"
            values = stats[name][:, band]
            found[column] = values.astype(np.float32) if layers.kind == "embeddings" else values
    if layers.kind == "classes":
        _add_classes(found, layers, year)
    if year.yes is not None:
        for band, feature in enumerate(layers.features):
            word = feature if layers.kind == "presence" else "above"
            if layers.kind != "presence" and not _is_single(layers):
                word = f"above_{feature}"
            found[f"ha_{word}"] = _known(year.yes[:, band], year)
            found[f"share_{word}"] = _divide(year.yes[:, band], year.hectares)
    return found


def _add_classes(found: Columns, layers: Layers, year: YearSums) -> None:
    words = class_words(list(year.classes), layers)
    hectares = np.stack([*year.classes.values(), np.zeros(len(year.n_cells))], axis=1)
    names = np.array([*(layers.classes.get(v, str(v)) for v in year.classes), ""], object)
    largest = np.where(year.n_cells > 0, hectares.argmax(axis=1), len(names) - 1)
    found["majority"] = names[largest]
    for word, area in zip(words, year.classes.values(), strict=True):
        found[f"ha_{word}"] = _known(area, year)
        found[f"share_{word}"] = _divide(area, year.hectares)


def class_words(values: Sequence[int], layers: Layers) -> list[str]:
    """Words of columns for class values: the name, with the value where two look the same."""
    unnamed = {v: f"class {v}" if v >= 0 else f"class minus {-v}" for v in values}
    raw = [re.sub(r"\W+", "_", layers.classes.get(v, unnamed[v])).strip("_") for v in values]
    low = [word.lower() for word in raw]
    return [
        word if word and low.count(word.lower()) == 1 else f"{word or 'class'}_{value}"
        for word, value in zip(raw, values, strict=True)
    ]


def _add_deltas(before: Columns | None, after: Columns) -> None:
    """Differences to the year before; NaN in the first year."""
    for name in [n for n in after if _is_statistic(n)]:
        if before is None:
            after[f"delta_{name}"] = np.full(len(after[name]), np.nan, after[name].dtype)
        elif name in before:
            after[f"delta_{name}"] = after[name] - before[name]


def _is_statistic(name: str) -> bool:
    return name not in _FACTS and not name.startswith("delta_")


_FACTS = {"n_cells", "zone_ha", "map_share", "valid_share", "operator", "majority"}


def _own_columns(zones: Zones, ours: Sequence[str]) -> Any:
    """The zones' own columns, the identifier first, without those whose names are taken."""
    frame = zones.frame
    taken = {name.lower() for name in ours}
    if frame.geometry.name != "geometry":
        taken.add("geometry")
    doubled = [c for c in frame.columns if c != frame.geometry.name and str(c).lower() in taken]
    doubled += [c for c in frame.columns if str(c).startswith("delta_") and c not in doubled]
    if zones.id_column in doubled:
        raise InputError(
            got=f"zones named by the column {zones.id_column!r}",
            expected="another name: the table has a column of that name of its own",
            fix="rename the column, or name another with --id",
        )
    if doubled:
        warnings.warn(
            f"{len(doubled)} columns of {zones.name} give way to statistics of the same name: "
            + ", ".join(map(str, doubled[:5]))
            + (", ..." if len(doubled) > 5 else ""),
            BocageWarning,
            stacklevel=4,
        )
        frame = frame.drop(columns=doubled)
    geometry = frame.geometry.name
    rest = [c for c in frame.columns if c not in {zones.id_column, geometry}]
    frame = frame[[zones.id_column, *rest, geometry]]
    return frame if geometry == "geometry" else frame.rename_geometry("geometry")


def _stack(own: Any, per_year: list[Columns], years: Sequence[int]) -> Any:
    """Rows of all years, zone by zone within a year; shapes stand last."""
    import pandas

    parts = []
    for year, columns in zip(years, per_year, strict=True):
        facts: Columns = {"year": np.full(len(own), year)} if tuple(years) != (0,) else {}
        facts |= columns
        parts.append(
            pandas.concat(
                [
                    own.drop(columns="geometry"),
                    pandas.DataFrame(facts, index=own.index),
                    own[["geometry"]],
                ],
                axis=1,
            )
        )
    import geopandas

    joined = pandas.concat(parts, ignore_index=True)
    return geopandas.GeoDataFrame(joined, geometry="geometry", crs=own.crs)


def _is_single(layers: Layers) -> bool:
    return layers.kind == "values" and len(layers.features) == 1


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Between 0 and 1; what is missing by less than two ways of measuring differ is nothing."""
    share = np.nan_to_num(_divide(part, whole))
    return np.asarray(np.where(share > 1 - _FULL, 1.0, share))


def _known(values: NDArray[np.float64], year: YearSums) -> NDArray[np.float64]:
    return np.asarray(np.where(year.n_cells > 0, values, np.nan))


def _divide(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan))
