"""Exemplars: vectors, places and rows that a query is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError

if TYPE_CHECKING:
    from bocage.search.opened import OpenedIndex
    from bocage.types import FloatArray

Exemplar = Any
"""A vector [D]; a place (lon, lat); a row id "shard/row"; or a place as text "lon,lat"."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """Exemplars as the two stages need them, positives first."""

    vectors: FloatArray
    """Of length one [E, D]."""

    coarse: Any
    """What the first stage compares with codes: codes [E, bytes] for Hamming, else vectors."""

    n_positives: int
    rows: list[tuple[int, int]]
    """Row group and row of exemplars that are rows of the index."""

    def cosines(self, vectors: FloatArray) -> FloatArray:
        """Cosine of rows [n, d] of length one to each exemplar [n, E], over the d dimensions."""
        mine = self.vectors[:, : vectors.shape[1]]
        length = np.linalg.norm(mine, axis=1, keepdims=True).astype(np.float32)
        mine = mine / np.maximum(length, np.float32(1e-30))
        return np.asarray(vectors @ mine.T, np.float32)


def resolve(
    opened: OpenedIndex, positives: Sequence[Exemplar] | Exemplar, negatives: Sequence[Exemplar]
) -> Query:
    """Look every exemplar up; InputError for vectors of another length and for unknown places."""
    good = _as_list(positives)
    bad = _as_list(negatives)
    if not good:
        raise InputError(
            got="a search without a positive exemplar",
            expected="at least one vector, place or row",
            fix="to find what is unlike something, pass it as positive with invert=True",
        )
    vectors, coarse, rows = [], [], []
    for exemplar in [*good, *bad]:
        vector, first, row = _one(opened, exemplar)
        vectors.append(vector)
        coarse.append(first)
        if row is not None:
            rows.append(row)
    return Query(
        vectors=np.stack(vectors), coarse=np.stack(coarse), n_positives=len(good), rows=rows
    )


def _as_list(exemplars: Any) -> list[Any]:
    if isinstance(exemplars, str):
        return [exemplars]
    if isinstance(exemplars, np.ndarray):
        return [exemplars] if exemplars.ndim == 1 else list(exemplars)
    if isinstance(exemplars, tuple) and len(exemplars) == 2 and _is_place(exemplars):
        return [exemplars]
    return list(exemplars)


def _one(opened: OpenedIndex, exemplar: Exemplar) -> tuple[Any, Any, tuple[int, int] | None]:
    if isinstance(exemplar, str):
        if "," in exemplar:
            exemplar = _parse_place(exemplar)
        else:
            return _row(opened, *opened.find_row(exemplar))
    if isinstance(exemplar, tuple) and len(exemplar) == 2 and _is_place(exemplar):
        return _row(opened, *nearest_row(opened, float(exemplar[0]), float(exemplar[1])))
    return _vector(opened, exemplar)


def _row(opened: OpenedIndex, group: int, row: int) -> tuple[Any, Any, tuple[int, int]]:
    at = np.array([group]), np.array([row])
    stored = opened.read_vectors(*at)[0]
    vector = np.zeros(opened.info.dims, np.float32)
    vector[: len(stored)] = stored
    coarse = vector
    if opened.compares_bits:
        coarse = opened.read_row_codes(*at)[0]
    elif len(stored) < opened.info.dims:
        # The second stage keeps a prefix only; the code knows something of all dimensions.
        coarse = opened.codec.decode(opened.read_row_codes(*at))[0]
    return vector, coarse, (group, row)


def _vector(opened: OpenedIndex, values: Any) -> tuple[Any, Any, None]:
    try:
        vector = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(
            got=f"exemplar {str(values)[:60]!r}",
            expected='a vector, (lon, lat), or a row id such as "3/1024"',
            fix="see the exemplars of search() in docs/search-format.md",
        ) from error
    if vector.shape != (opened.info.dims,):
        raise InputError(
            got=f"an exemplar vector of shape {vector.shape}",
            expected=f"({opened.info.dims},), the dimensions of this index",
            fix=f"embed it with the model of the index ({opened.info.model or 'not recorded'})",
        )
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise InputError(
            got="an exemplar vector that holds NaN or is all zero",
            expected="a finite vector with a direction",
            fix="choose a place with data",
        )
    vector = vector / np.float32(length)
    coarse = opened.codec.encode(vector[None])[0] if opened.compares_bits else vector
    return vector, coarse, None


def nearest_row(opened: OpenedIndex, lon: float, lat: float) -> tuple[int, int]:
    """Row group and row whose center is nearest to a place; InputError outside the index."""
    if not (abs(lon) <= 180 and abs(lat) <= 90):
        raise InputError(
            got=f"place {lon}, {lat}",
            expected="longitude, latitude in degrees",
            fix="check the order: longitude first",
        )
    bounds = opened.bounds
    shrink = max(np.cos(np.radians(lat)), 0.01)
    # The way round by the antimeridian may be the shorter one.
    turns = [np.maximum(bounds[:, 0] - x, x - bounds[:, 2]) for x in (lon - 360, lon, lon + 360)]
    gap_x = np.maximum(np.min(turns, axis=0), 0) * shrink
    gap_y = np.maximum(np.maximum(bounds[:, 1] - lat, lat - bounds[:, 3]), 0)
    gaps = np.hypot(gap_x, gap_y)
    best: tuple[float, int, int] = (np.inf, 0, 0)
    size = 0.0
    for group in np.argsort(gaps, kind="stable"):
        if gaps[group] > best[0]:
            break
        places = opened.read_places(int(group))
        apart_lon, apart_lat = (places.lonlat - [lon, lat]).T
        away = np.hypot(((apart_lon + 180) % 360 - 180) * shrink, apart_lat)
        row = int(away.argmin())
        if away[row] < best[0]:
            best = (float(away[row]), int(group), row)
            west, south, east, north = places.bbox[row]
            size = float(max((east - west) * shrink, north - south))
    if best[0] > 2 * size + 1e-4:
        raise InputError(
            got=f"place {lon}, {lat}, whose nearest row is {best[0] * 111.2:.1f} km away",
            expected="a place inside the index ("
            + ", ".join(f"{v:.4f}" for v in opened.info.bbox_wsen)
            + ")",
            fix="check the order, longitude first, or pass a vector",
        )
    return best[1], best[2]


def _is_place(pair: tuple[Any, Any]) -> bool:
    return all(isinstance(v, int | float | np.floating | np.integer) for v in pair)


def _parse_place(text: str) -> tuple[float, float]:
    try:
        lon, lat = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            got=f"place {text!r}",
            expected="lon,lat in degrees",
            fix="for example 36.82,-1.29",
        ) from error
    return lon, lat
