"""Means and covariances of a pair in one pass over its rectangles, and samples of its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bocage.change.pair import Pair
from bocage.errors import InputError
from bocage.learn.predict.blocks import piece_cells

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

_PIECE_BYTES = 32 * 2**20
"""Of one time's values in a rectangle; a fit holds a handful of them."""

Advance = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of vectors, each with a weight."""

    mean: NDArray[np.float64]
    """[D]."""

    covariance: NDArray[np.float64]
    """[D, D], population."""

    n: int


def side_cells(pair: Pair) -> int:
    """Side of the rectangles that are read at once: a power of two, 256 for up to 128 dims."""
    return piece_cells(len(pair.features), limit=_PIECE_BYTES, largest=256)


def pieces(pair: Pair) -> Iterator[tuple[slice, slice]]:
    """Rectangles that cover the pair."""
    rows, cols = pair.grid.shape_yx
    side = side_cells(pair)
    for top in range(0, rows, side):
        for left in range(0, cols, side):
            yield slice(top, min(top + side, rows)), slice(left, min(left + side, cols))


def n_pieces(pair: Pair) -> int:
    """How many there are."""
    rows, cols = (-(-n // side_cells(pair)) for n in pair.grid.shape_yx)
    return rows * cols


def vectors(pair: Pair, rows: slice, cols: slice) -> tuple[FloatArray, FloatArray]:
    """Before and after of the cells with data in a rectangle, as tables [n, D]."""
    before, after = (x.reshape(len(x), -1) for x in pair.read(rows, cols))
    keep = np.flatnonzero(~np.isnan(before[0]))
    return np.ascontiguousarray(before[:, keep].T), np.ascontiguousarray(after[:, keep].T)


def weighted_moments(x: NDArray[np.floating], weight: NDArray[np.float64] | None = None) -> Moments:
    """Mean and covariance of rows x [n, D]."""
    x = np.asarray(x, np.float64)
    w = np.ones(len(x)) if weight is None else weight
    mean = w @ x / w.sum()
    centered = x - mean
    covariance = (centered * w[:, None]).T @ centered / w.sum()
    return Moments(mean=mean, covariance=covariance, n=len(x))


def merge(a: Moments | None, b: Moments) -> Moments:
    """Moments of both sets of rows (Chan, Golub & LeVeque 1979), which loses no digits."""
    if a is None or a.n == 0:
        return b
    if b.n == 0:
        return a
    n = a.n + b.n
    gap = b.mean - a.mean
    covariance = (a.covariance * a.n + b.covariance * b.n) / n
    covariance = covariance + np.outer(gap, gap) * (a.n * b.n / n**2)
    return Moments(mean=a.mean + gap * (b.n / n), covariance=covariance, n=n)


def difference_moments(pair: Pair, advance: Advance = lambda _: None) -> Moments:
    """Of after minus before, over every cell with data; InputError if there is none."""
    found: Moments | None = None
    for rows, cols in pieces(pair):
        before, after = vectors(pair, rows, cols)
        if len(before):
            found = merge(found, weighted_moments(after - before))
        advance(1)
    if found is None:
        raise nothing_shared(pair.names)
    return found


def sample_pair(
    pair: Pair, limit: int, *, seed: int = 0, advance: Advance = lambda _: None
) -> tuple[FloatArray, FloatArray]:
    """About `limit` cells with data, drawn evenly over the map, as tables [n, D]; all if fewer."""
    rng = np.random.default_rng(seed)
    n_cells = pair.grid.shape_yx[0] * pair.grid.shape_yx[1]
    share = min(1.0, limit / n_cells)
    parts: list[tuple[FloatArray, FloatArray]] = []
    for rows, cols in pieces(pair):
        before, after = vectors(pair, rows, cols)
        if share < 1:
            keep = rng.random(len(before)) < share
            before, after = before[keep], after[keep]
        parts.append((before, after))
        advance(1)
    before, after = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    if len(before) == 0:
        raise nothing_shared(pair.names)
    return before, after


def nothing_shared(names: tuple[str, str]) -> InputError:
    """No cell has data at both times."""
    return InputError(
        got=f"no cell with data in both {names[0]} and {names[1]}",
        expected="some",
        fix="check clouds and nodata of both times",
    )
