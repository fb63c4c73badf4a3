"""Views: a number for every row of an area, from its codes alone.

    outlier    mean distance to all rows of the area, exactly: from how often each bit is set
    surprise   mean distance to the 8 nearest rows on the ground: unlike its surroundings
    edge       largest minus least distance to the 6 nearest rows: like one side, unlike the other
    diversity  mean distance between two rows among the 16 around it on the ground

A distance is the share of differing bits, 0 to 1: bits of binary codes, or of other codes the side
of the mean on which each dimension of the decoded vector lies. None of them depends on the order of
rows. `places_like` ranks pieces of the whole index by how much they look like an area; it reads the
manifest only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError, InputError
from bocage.search.area import AreaLike, make_area
from bocage.search.opened import OpenedIndex, Rows, centers, concatenate, open_index
from bocage.search.query import Dates, make_days, no_rows, rows_inside
from bocage.search.results import Hits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import CodeArray, FloatArray, PathLike

VIEWS = ("outlier", "surprise", "edge", "diversity")

_NEIGHBORS = {"surprise": 8, "edge": 6, "diversity": 15}
_MAX_ROWS = 5_000_000
_BLOCK = 8192


@dataclass(frozen=True, kw_only=True)
class View:
    """One number per row of an area."""

    name: str
    row: list[str]
    """Row ids "shard/row"."""

    value: FloatArray
    lonlat: NDArray[np.float64]
    bbox: FloatArray

    def top(self, k: int) -> NDArray[np.intp]:
        """The k rows with the largest values, largest first, ties by row."""
        return np.argsort(-self.value, kind="stable")[:k]

    def hits(self, opened: OpenedIndex, k: int) -> Hits:
        """The k rows with the largest values as results of a search, with the value as score."""
        best = self.top(k)
        ids = [self.row[i] for i in best]
        group, row = (np.array(at) for at in zip(*map(opened.find_row, ids), strict=True))
        return Hits(
            row=ids,
            score=self.value[best].astype(np.float32),
            bbox=self.bbox[best],
            date=opened.read_dates(group, row),
            attributes=opened.read_attributes(group, row),
            n_searched=len(self.row),
            index=opened.storage.uri,
        )


def view(
    index: OpenedIndex | PathLike, name: str, *, area: AreaLike = None, dates: Dates = None
) -> View:
    """Compute outlier, surprise, edge or diversity for every row of an area."""
    if name not in VIEWS:
        raise ConfigError(
            got=f"view {name!r}", expected=f"one of {', '.join(VIEWS)}", fix="use outlier"
        )
    opened = index if isinstance(index, OpenedIndex) else open_index(index)
    _check_look(opened)
    rows = _all_rows(opened, area, dates)
    bits, n_bits = opened.codec.look(rows.codes)
    bbox = _bounds(opened, rows)
    lonlat = centers(bbox)
    value = outlier(bits, n_bits) if name == "outlier" else _local(name, bits, lonlat, n_bits)
    return View(
        name=name,
        row=opened.row_ids(rows.group, rows.row),
        value=value,
        lonlat=lonlat,
        bbox=bbox,
    )


def outlier(codes: CodeArray, n_bits: int) -> FloatArray:
    """Mean share of differing bits between each code and all others, exactly."""
    n = len(codes)
    # A set bit differs from every code where it is not set, and the other way round.
    share = count_set(codes, n_bits) / max(n - 1, 1)
    base, step = share.sum(), n / max(n - 1, 1) - 2 * share
    value = np.empty(n, np.float32)
    for start in range(0, n, _BLOCK):
        bits = np.unpackbits(codes[start : start + _BLOCK], axis=1, count=n_bits)
        value[start : start + _BLOCK] = (base + bits @ step) / n_bits
    return value


def count_set(codes: CodeArray, n_bits: int) -> NDArray[np.int64]:
    """How many codes have each bit set [n_bits]."""
    count = np.zeros(n_bits, np.int64)
    for start in range(0, len(codes), _BLOCK):
        bits = np.unpackbits(codes[start : start + _BLOCK], axis=1, count=n_bits)
        count += bits.sum(axis=0, dtype=np.int64)
    return count


def places_like(
    index: OpenedIndex | PathLike, area: AreaLike, *, k: int = 10, dates: Dates = None
) -> list[dict[str, Any]]:
    """Find pieces of the index that look like an area as a whole, reading the manifest only.

    The look of an area is the majority of each bit among its rows; so is that of each row group.
    Returns the k nearest groups that do not touch the area: bounds, share of differing bits, rows.
    """
    opened = index if isinstance(index, OpenedIndex) else open_index(index)
    _check_look(opened)
    place = make_area(area)
    rows = _all_rows(opened, place, dates)
    bits, n_bits = opened.codec.look(rows.codes)
    look = np.packbits(count_set(bits, n_bits) * 2 > len(rows))
    stored = opened.manifest["fingerprint"]
    others = np.frombuffer(b"".join(stored), np.uint8).reshape(opened.n_groups, -1)
    distance = np.bitwise_count(others ^ look).sum(axis=1) / n_bits
    elsewhere = np.flatnonzero(~place.touches(opened.bounds))
    order = elsewhere[np.argsort(distance[elsewhere], kind="stable")][:k]
    return [
        {
            "bbox_wsen": tuple(float(v) for v in opened.bounds[g]),
            "distance": float(distance[g]),
            "n_rows": int(opened.manifest["n_rows"][g]),
            "first_row": opened.row_ids(np.array([g]), np.array([0]))[0],
        }
        for g in order
    ]


def _local(name: str, bits: CodeArray, lonlat: NDArray[np.float64], n_bits: int) -> FloatArray:
    neighbors = _neighbors(lonlat, min(_NEIGHBORS[name], len(bits) - 1))
    value = np.zeros(len(bits), np.float32)
    if neighbors.shape[1] == 0:
        return value
    for start in range(0, len(bits), _BLOCK):
        part = slice(start, start + _BLOCK)
        around = bits[neighbors[part]]  # [b, k, bytes]
        if name == "diversity":
            both = np.concatenate([bits[part][:, None], around], axis=1)
            m = both.shape[1]
            ones = np.unpackbits(both, axis=2, count=n_bits).sum(axis=1, dtype=np.int64)
            value[part] = (ones * (m - ones)).sum(axis=1) / (m * (m - 1) / 2) / n_bits
            continue
        apart = np.bitwise_count(around ^ bits[part][:, None]).sum(axis=2) / n_bits
        spread = apart.max(axis=1) - apart.min(axis=1)
        value[part] = apart.mean(axis=1) if name == "surprise" else spread
    return value


def _neighbors(lonlat: NDArray[np.float64], k: int) -> NDArray[np.intp]:
    """The k nearest other rows on the ground [n, k]."""
    try:
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise ConfigError(
            got="a view of spatial neighbors without the package scipy",
            expected="scipy",
            fix='pip install "bocage[search]"',
        ) from error
    lon, lat = np.radians(lonlat).T
    # Points on the sphere: no seam at the antimeridian, no stretching near the poles.
    xyz = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    found: NDArray[np.intp] = cKDTree(xyz).query(xyz, k=k + 1)[1].reshape(len(lonlat), -1)
    # Several dates of one place share a point, so a row is not always its own first neighbor.
    is_self = found == np.arange(len(lonlat))[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    others: NDArray[np.intp] = found[~is_self].reshape(len(lonlat), -1)
    return others


def _all_rows(opened: OpenedIndex, area: AreaLike, dates: Dates) -> Rows:
    place = make_area(area)
    parts, n = [], 0
    for rows in rows_inside(opened, place, make_days(dates)):
        parts.append(rows)
        n += len(rows)
        if n > _MAX_ROWS:
            raise InputError(
                got=f"a view over more than {_MAX_ROWS} rows",
                expected="an area that fits in memory",
                fix="choose a smaller area or one date",
            )
    if not parts:
        raise no_rows(opened, place, dates, None)
    return concatenate(parts)


def _bounds(opened: OpenedIndex, rows: Rows) -> FloatArray:
    """Bounds of rows [n, 4], which come group by group."""
    starts = np.flatnonzero(np.diff(rows.group, prepend=-1))
    parts = np.split(rows.row, starts[1:])
    return np.concatenate(
        [
            opened.read_places(int(rows.group[start])).bbox[part]
            for start, part in zip(starts, parts, strict=True)
        ]
    )


def _check_look(opened: OpenedIndex) -> None:
    """Refuse codes that no view can be made of before anything is read."""
    opened.codec.look(np.zeros((0, opened.code_bytes), np.uint8))
