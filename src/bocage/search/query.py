"""Search: what looks like these places, and not like those, inside an area.

Two stages. The first compares small codes of every row inside the area and keeps the best few
hundred; the second reads the int8 vectors of only those, by range, and orders them by cosine.

Scores of several exemplars combine per row, from its similarity s to each (1 is the same):

    mean   mean over positives - mean over negatives
    and    least over positives - largest over negatives        near all of them
    or     largest over positives - largest over negatives      near any of them
    xor    largest - second largest over positives - largest over negatives     near exactly one
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date as Date  # noqa: N812
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError, InputError
from bocage.search.area import Area, AreaLike, make_area
from bocage.search.exemplars import Exemplar, Query, resolve
from bocage.search.hamming import distance_function
from bocage.search.layout import GEOMETRY, float32_outward
from bocage.search.opened import OpenedIndex, Rows, concatenate, open_index
from bocage.search.results import Hits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray, PathLike, ValidArray

COMBINE = ("mean", "and", "or", "xor")

Where = Mapping[str, Any]
"""Column to a value, a list of values, or a tuple (least, largest)."""

Dates = int | str | tuple[str, str] | None
"""A year, a day, or the first and last day, ISO."""

_READ_AHEAD = 8


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a search is made."""

    k: int = 50
    """Number of results; all rows of the area if there are fewer."""

    combine: str = "mean"
    """How several positives count: mean, and, or, xor."""

    invert: bool = False
    """True for the rows least like the exemplars."""

    n_candidates: int | None = None
    """Rows that the second stage looks at; max(200, 10 * k) by default."""

    exact: bool = False
    """True to compare the int8 vectors of every row: the exact answer, for 8 times the bytes."""

    rerank: bool = True
    """False to order by codes alone."""

    include_exemplars: bool = False
    """True to let rows that were given as exemplars appear in the results."""

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise ConfigError(
                got=f"combine {self.combine!r}",
                expected=f"one of {', '.join(COMBINE)}",
                fix="use mean",
            )
        for name in ("k", "n_candidates"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    got=f"{name} {value}", expected="at least 1", fix="ask for one result (--top 1)"
                )


def search(
    index: OpenedIndex | PathLike,
    positives: Sequence[Exemplar] | Exemplar,
    *,
    negatives: Sequence[Exemplar] = (),
    area: AreaLike = None,
    dates: Dates = None,
    where: Where | None = None,
    options: SearchOptions | None = None,
) -> Hits:
    """Find the rows most like the positives and least like the negatives.

    An exemplar is a vector [D], a place (lon, lat), or a row id from an earlier result. The area is
    None (everywhere), (west, south, east, north), GeoJSON or a shapely polygon; a row is inside if
    its center is. Results come best first, equal scores by row. Fewer rows than k is not an error;
    no row at all is an InputError that says why.
    """
    opened = index if isinstance(index, OpenedIndex) else open_index(index)
    options = options or SearchOptions()
    place, days = make_area(area), make_days(dates)
    query = resolve(opened, positives, negatives)
    best = _first_stage(opened, query, options, rows_inside(opened, place, days, where))
    if best is None:
        raise no_rows(opened, place, dates, where)
    rows, score = best.rows, best.score
    if options.rerank and not options.exact:
        vectors = opened.read_vectors(rows.group, rows.row)
        score = combine(query.cosines(vectors), query.n_positives, options)
    order = _best_first(score, rows)[: options.k]
    rows, score = rows.select(order), score[order]
    attributes = opened.read_attributes(rows.group, rows.row)
    return Hits(
        row=opened.row_ids(rows.group, rows.row),
        score=score.astype(np.float32),
        bbox=bounds_of(attributes[GEOMETRY]),
        date=opened.read_dates(rows.group, rows.row),
        attributes=attributes,
        n_searched=best.n_searched,
        index=opened.storage.uri,
    )


def rows_inside(
    opened: OpenedIndex, area: Area, days: tuple[int, int] | None, where: Where | None = None
) -> Iterator[Rows]:
    """Rows of the area, group by group, read ahead on a few threads."""
    groups = opened.groups_of(area, days)
    columns = sorted(where) if where else []
    unknown = [name for name in columns if name not in opened.info.columns]
    if unknown:
        raise InputError(
            got=f"a filter on column {unknown[0]!r}",
            expected=f"one of {', '.join(opened.info.columns) or 'no columns: none were indexed'}",
            fix="index the table with that column",
        )
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        waiting = iter(groups)

        def ahead(n: int) -> list[Future[Rows]]:
            return [pool.submit(opened.read_inside, int(g), area, days) for g in islice(waiting, n)]

        queue = ahead(_READ_AHEAD)
        while queue:
            rows = queue.pop(0).result()
            queue += ahead(1)
            if columns and where and len(rows):
                table = opened.read_columns(int(rows.group[0]), columns)
                fits: ValidArray = np.ones(len(table), np.bool_)
                for name in columns:
                    fits &= _matches(table[name], where[name])
                rows = rows.select(fits[rows.row])
            if len(rows):
                yield rows


@dataclass(frozen=True, kw_only=True)
class _Best:
    rows: Rows
    score: FloatArray
    n_searched: int


@dataclass
class _Kept:
    """The best rows so far."""

    n: int
    parts: list[Rows] = field(default_factory=list)
    scores: list[FloatArray] = field(default_factory=list)
    least: float = -np.inf
    n_waiting: int = 0

    def add(self, rows: Rows, score: FloatArray) -> None:
        good = score >= self.least
        if not good.any():
            return
        self.parts.append(rows.select(good))
        self.scores.append(score[good])
        self.n_waiting += int(good.sum())
        if self.n_waiting > 2 * self.n + 20_000:
            self.settle()

    def settle(self) -> None:
        rows, score = concatenate(self.parts), np.concatenate(self.scores)
        order = _best_first(score, rows)[: self.n]
        rows, score = rows.select(order), score[order]
        self.parts, self.scores, self.n_waiting = [rows], [score], len(rows)
        if len(score) == self.n:
            self.least = float(score[-1])


def _first_stage(
    opened: OpenedIndex, query: Query, options: SearchOptions, blocks: Iterator[Rows]
) -> _Best | None:
    """The best rows by codes, or None if there is no row."""
    n_kept = options.k
    if options.rerank and not options.exact:
        n_kept = max(options.k, options.n_candidates or max(200, 10 * options.k))
    kept = _Kept(n_kept)
    similarity = _code_similarity(opened, query)
    n_searched = 0
    for rows in blocks:
        if not options.include_exemplars:
            rows = _without(rows, query.rows)  # noqa: PLW2901
        if len(rows) == 0:
            continue
        n_searched += len(rows)
        if options.exact:
            s = query.cosines(opened.read_vectors(rows.group, rows.row))
        else:
            s = similarity(rows.codes)
        kept.add(rows, combine(s, query.n_positives, options))
    if n_searched == 0:
        return None
    kept.settle()
    return _Best(rows=kept.parts[0], score=kept.scores[0], n_searched=n_searched)


def _code_similarity(opened: OpenedIndex, query: Query) -> Any:
    """A function from codes [n, bytes] to similarities [n, exemplars]."""
    if opened.compares_bits:
        n_bits = opened.n_bits
        distances = distance_function(query.coarse, opened.info.rows_per_group, "auto")

        def hamming(codes: Any) -> FloatArray:
            similar: FloatArray = 1 - distances(codes).astype(np.float32) * np.float32(2 / n_bits)
            return similar

        return hamming
    codec = opened.codec

    def asymmetric(codes: Any) -> FloatArray:
        # Between vectors of length one, cosine = 1 - squared distance / 2.
        return np.asarray(1 - codec.distances(query.coarse, codes).T / 2, np.float32)

    return asymmetric


def combine(s: FloatArray, n_positives: int, options: SearchOptions) -> FloatArray:
    """One score per row from similarities [n, positives then negatives] (module docstring)."""
    good, bad = s[:, :n_positives], s[:, n_positives:]
    if options.combine == "mean":
        score = np.asarray(good.mean(axis=1), np.float32)
    elif options.combine == "and":
        score = good.min(axis=1)
    else:
        score = good.max(axis=1)
        if options.combine == "xor" and n_positives > 1:
            score -= np.partition(good, -2, axis=1)[:, -2]
    if bad.shape[1]:
        score -= bad.mean(axis=1) if options.combine == "mean" else bad.max(axis=1)
    return np.asarray(-score if options.invert else score, np.float32)


def bounds_of(geometry: Any) -> FloatArray:
    """Bounds [n, 4] of a column of WKB, as the column bbox has them."""
    import shapely

    shapes = shapely.from_wkb(geometry.to_numpy(zero_copy_only=False))
    return float32_outward(shapely.bounds(shapes))


def make_days(dates: Dates) -> tuple[int, int] | None:
    """First and last day since 1970-01-01 of a filter."""
    if dates is None:
        return None
    if isinstance(dates, int) or (isinstance(dates, str) and len(dates) == 4):
        dates = (f"{dates}-01-01", f"{dates}-12-31")
    first, last = (dates, dates) if isinstance(dates, str) else dates
    try:
        days = tuple(Date.fromisoformat(d).toordinal() - 719_163 for d in (first, last))
    except (TypeError, ValueError) as error:
        raise InputError(
            got=f"dates {dates!r}",
            expected="a year, or first and last day as YYYY-MM-DD",
            fix='for example dates=("2024-05-01", "2024-09-30")',
        ) from error
    if days[0] > days[1]:
        raise InputError(
            got=f"dates from {first} to {last}",
            expected="the first day before the last",
            fix="swap them",
        )
    return days[0], days[1]


def no_rows(opened: OpenedIndex, area: Area, dates: Dates, where: Where | None) -> InputError:
    """Why nothing was found, and where there would be something."""
    west, south, east, north = opened.info.bbox_wsen
    covered = f"{west:.4f}, {south:.4f}, {east:.4f}, {north:.4f}"
    filters = [] if area.is_world else ["area"]
    filters += ["dates"] if dates is not None else []
    filters += ["columns"] if where else []
    when = f", {opened.info.dates[0]} to {opened.info.dates[1]}" if opened.info.dates else ""
    return InputError(
        got=f"no row that fits the filter on {' and '.join(filters) or 'exemplars'}",
        expected=f"an area and dates inside the index ({covered}{when})",
        fix="widen the area or the dates, or index data that covers them",
    )


def _best_first(score: FloatArray, rows: Rows) -> NDArray[np.intp]:
    return np.lexsort((rows.row, rows.group, -score))


def _without(rows: Rows, exemplars: list[tuple[int, int]]) -> Rows:
    group = int(rows.group[0]) if len(rows) else -1
    mine = [row for g, row in exemplars if g == group]
    return rows.select(~np.isin(rows.row, mine)) if mine else rows


def _matches(column: Any, wanted: Any) -> ValidArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        if isinstance(wanted, tuple):
            least, largest = wanted
            found = pc.and_(pc.greater_equal(column, least), pc.less_equal(column, largest))
        else:
            values = wanted if isinstance(wanted, list | set) else [wanted]
            found = pc.is_in(column, pa.array(list(values), column.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, ValueError) as error:
        raise InputError(
            got=f"filter {wanted!r} on a column of {column.type} ({error})",
            expected="a value, a list of values, or (least, largest) of the column's type",
            fix="check the filter",
        ) from error
    inside: ValidArray = np.asarray(pc.fill_null(found, False))
    return inside
