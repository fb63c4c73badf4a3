"""Splits for scoring: at random, by blocks on the ground, by group, by time.

A random split of neighboring samples tests memory: a sample's twin is in the training set. Blocks
put whole squares of ground on one side; a buffer keeps their borders apart. The side of the blocks
comes from the data (autocorrelation.py). Every sample is predicted at most once, by a model that
was fitted without it.

folds = make_folds("spatial", labels=y, lonlat=lonlat)     # or xy_m=, in metres
print(folds.describe())
for train, test in folds.splits():                         # rows, as scikit-learn's cv= takes them
    ...
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.scoring.autocorrelation import Autocorrelation, measure_autocorrelation
from bocage.scoring.places import Places, find_places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Rows = NDArray[np.intp]

Kind = Literal["random", "spatial", "leave_one_block_out", "group", "time"]


@dataclass(frozen=True, kw_only=True)
class Folds:
    """A partition of samples into test folds; made by make_folds."""

    name: str
    """One of the kinds of make_folds."""

    fold: NDArray[np.int64]
    """Fold of each sample, 0 to n_folds - 1; -1 where it is trained with but never tested."""

    block: NDArray[np.int64]
    """Samples of one block are dependent: the unit of the bootstrap, and of inner folds."""

    places: Places | None = None
    """Where the samples lie, if that is known: the leakage check needs it."""

    block_m: float = 0.0
    """Side of the blocks of ground."""

    buffer_m: float = 0.0
    """No training sample is nearer than this to a test sample."""

    autocorrelation: Autocorrelation | None = None
    """What the side was chosen from."""

    dropped: tuple[NDArray[np.intp], ...] = ()
    """For each fold, samples within the buffer: neither trained with nor tested."""

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    def test(self, i: int) -> NDArray[np.intp]:
        """Rows tested in fold `i`."""
        return np.flatnonzero(self.fold == i)

    def train(self, i: int) -> NDArray[np.intp]:
        """Rows that a model may know when fold `i` is tested."""
        keep = self.fold < i if self.name == "time" else self.fold != i
        if self.dropped:
            keep[self.dropped[i]] = False
        return np.flatnonzero(keep)

    def splits(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """(train, test) rows of each fold; a list of them serves as scikit-learn's cv."""
        return ((self.train(i), self.test(i)) for i in range(self.n_folds))

    def describe(self) -> str:
        """How the samples were split, in one paragraph for the report."""
        text = f"{self.name} folds: {self.n_folds} of {len(self.fold)} samples"
        if self.block_m:
            n = int(self.block.max()) + 1
            text += f", {n} blocks of {self.block_m:,.0f} m"
        if self.buffer_m:
            lost = np.mean([len(rows) for rows in self.dropped]) / len(self.fold)
            text += f", buffer {self.buffer_m:,.0f} m (leaves out {lost:.0%} of samples per fold)"
        if self.autocorrelation is not None:
            text += f"; {self.autocorrelation.describe()}"
        return text


def make_folds(
    kind: Kind,
    *,
    n_folds: int = 5,
    labels: NDArray[Any] | None = None,
    lonlat: NDArray[np.floating] | None = None,
    xy_m: NDArray[np.floating] | None = None,
    group: NDArray[Any] | None = None,
    time: NDArray[Any] | None = None,
    block_m: float | None = None,
    buffer_m: float | None = None,
    values: NDArray[Any] | None = None,
    seed: int = 0,
) -> Folds:
    """Split samples so that the score says what the user wants to know.

    Args:
        kind: "random" (equal shares of each class), "spatial" (blocks of ground), "group" (a
            field, a scene, a patch...), "time" (train on the past, test on the next period), or
            "leave_one_block_out" (each block is a fold, with a buffer around it).
        n_folds: Number of folds; unused by leave_one_block_out.
        labels: Classes or numbers [n], or several labels each [n, K]. Classes are dealt evenly.
        lonlat: Degrees [n, 2]. Or:
        xy_m: Projected metres [n, 2].
        group: Name or number of each sample's group.
        time: Date or number of each sample; equal ones are never separated.
        block_m: Side of the blocks; by default the autocorrelation range of `values`.
        buffer_m: Training samples this near to a test sample are left out. Default: the
            autocorrelation range for leave_one_block_out, else none.
        values: What the range is measured on, classes [n] or features [n, D]; default `labels`.
        seed: Of the order in which samples or blocks are dealt.

    Raises InputError for fewer samples than folds, all samples in one block, or a single class.
    """
    places = find_places(lonlat=lonlat, xy_m=xy_m)
    if buffer_m is not None and not buffer_m >= 0:
        raise ConfigError(
            got=f"buffer_m {buffer_m}", expected="0 m or more", fix="leave it out for the default"
        )
    n = _n_samples(labels, places, group, time)
    classes = _classes(labels)
    if kind != "leave_one_block_out" and not 2 <= n_folds <= n:
        raise InputError(
            got=f"{n} samples for {n_folds} folds",
            expected="at least 2 folds, and a sample in each",
            fix="use fewer folds or more samples",
        )
    curve = None
    deck = _Deck(classes=classes, n_folds=n_folds, seed=seed)
    if kind == "random":
        folds = _random(n, deck)
    elif kind == "group":
        _, block = _numbered(_need(group, "group", kind), "group")
        fold = _deal(block, deck, what="groups", fix="use fewer folds")
        folds = Folds(name=kind, fold=fold, block=block)
    elif kind == "time":
        folds = _forward(_need(time, "time", kind), n_folds)
    elif kind in ("spatial", "leave_one_block_out"):
        ground = _need(places, "lonlat or xy_m", kind)
        values = labels if values is None else values
        wanted = block_m is None or (buffer_m is None and kind == "leave_one_block_out")
        if wanted:
            curve = measure_autocorrelation(
                _need(values, "block_m, or labels or values to choose it from,", kind),
                ground,
                seed=seed,
            )
        side = _side(ground, curve, n_folds) if block_m is None and curve else float(block_m or 0)
        folds = _spatial(kind, ground, side, deck)
    else:
        raise ConfigError(
            got=f"folds {kind!r}", expected=", ".join(get_args(Kind)), fix="choose one of them"
        )
    folds = replace(folds, places=places, autocorrelation=curve)
    if buffer_m is None:
        buffer_m = curve.range_m if curve and kind == "leave_one_block_out" else 0.0
    if buffer_m > 0:
        folds = _buffered(folds, _need(places, "lonlat or xy_m", "buffered"), buffer_m)
    _warn_unseen(folds, labels, classes)
    return folds


@dataclass(frozen=True, kw_only=True)
class _Deck:
    """What is dealt, and to how many."""

    classes: NDArray[np.int64] | None
    n_folds: int
    seed: int


def _random(n: int, deck: _Deck) -> Folds:
    n_folds, classes = deck.n_folds, deck.classes
    rng = np.random.default_rng(deck.seed)
    fold = np.empty(n, np.int64)
    offset = 0
    classes = np.zeros(n, np.int64) if classes is None else classes
    for label in range(int(classes.max()) + 1):
        rows = rng.permutation(np.flatnonzero(classes == label))
        # Each class starts where the last one ended, so that folds have equal sizes.
        fold[rows] = (np.arange(len(rows)) + offset) % n_folds
        offset += len(rows)
    return Folds(name="random", fold=fold, block=np.arange(n))


def _spatial(
    kind: str,
    places: Places,
    side_m: float,
    deck: _Deck,
) -> Folds:
    if not side_m > 0:
        raise ConfigError(
            got=f"block_m {side_m}", expected="a length above 0 m", fix="leave it out to measure it"
        )
    block = places.blocks(side_m)
    n_blocks = int(block.max()) + 1
    if n_blocks == 1:
        raise InputError(
            got=f"all {len(block)} samples in one block of {side_m:,.0f} m",
            expected="samples in several blocks",
            fix=f"use blocks smaller than {places.extent_m():,.0f} m (the samples' extent), "
            "or label samples in a larger area",
        )
    if kind == "leave_one_block_out":
        return Folds(name=kind, fold=block.copy(), block=block, block_m=side_m)
    fold = _deal(
        block,
        deck,
        what=f"blocks of {side_m:,.0f} m",
        fix="use smaller blocks, fewer folds, or samples from a larger area",
    )
    return Folds(name=kind, fold=fold, block=block, block_m=side_m)


def _deal(block: NDArray[np.int64], deck: _Deck, *, what: str, fix: str) -> NDArray[np.int64]:
    """Deal whole blocks to folds so that each fold has its share of every class."""
    n_folds, classes = deck.n_folds, deck.classes
    n_blocks = int(block.max()) + 1
    if n_blocks < n_folds:
        raise InputError(
            got=f"{n_blocks} {what} for {n_folds} folds",
            expected=f"at least {n_folds}",
            fix=fix,
        )
    classes = np.zeros(len(block), np.int64) if classes is None else classes
    n_classes = int(classes.max()) + 1
    counts = np.bincount(block * n_classes + classes, minlength=n_blocks * n_classes)
    counts = counts.reshape(n_blocks, n_classes).astype(np.float64)
    sizes = counts.sum(axis=1)
    order = np.random.default_rng(deck.seed).permutation(n_blocks)
    order = order[np.argsort(-sizes[order], kind="stable")]  # large blocks first fill evenly
    weight = 1 / counts.sum(axis=0)
    filled = np.zeros((n_folds, n_classes))
    fold = np.empty(n_blocks, np.int64)
    for b in order:
        # The fold whose squared shares grow least: the one that has least of this block's classes.
        fold[b] = int((filled @ (counts[b] * weight)).argmin())
        filled[fold[b]] += counts[b]
    # A small class may leave a fold empty; it takes the smallest block of the fullest fold.
    for empty in np.flatnonzero(np.bincount(fold, minlength=n_folds) == 0):
        donors = np.flatnonzero(fold == np.bincount(fold, minlength=n_folds).argmax())
        fold[donors[sizes[donors].argmin()]] = empty
    return fold[block]


def _forward(time: NDArray[Any], n_folds: int) -> Folds:
    """Cut time in n_folds + 1 periods of about equal numbers; the first is only trained with."""
    moments, block = _numbered(time, "time")
    sizes = np.bincount(block)
    if len(moments) <= n_folds:
        raise InputError(
            got=f"{len(moments)} different times for {n_folds} folds",
            expected=f"at least {n_folds + 1}: the first period is only trained with",
            fix="use fewer folds, or samples of more dates",
        )
    middle = (np.cumsum(sizes) - sizes / 2) / len(time)
    period = np.minimum((middle * (n_folds + 1)).astype(np.int64), n_folds)
    if len(np.unique(period)) <= n_folds:  # one date holds most samples: cut by dates instead
        period = np.arange(len(moments)) * (n_folds + 1) // len(moments)
    return Folds(name="time", fold=period[block] - 1, block=block)


def _side(places: Places, curve: Autocorrelation, n_folds: int) -> float:
    """The autocorrelation range, within what leaves enough blocks."""
    smallest = places.extent_m() / 100
    side = max(curve.range_m, smallest)
    if curve.model == "none":  # any blocks are honest
        side = max(places.extent_m() / np.sqrt(20 * n_folds), smallest)
    if not side > 0:
        return 1.0  # all at one place: _spatial refuses it
    wanted = side
    while int(places.blocks(side).max()) + 1 < 2 * n_folds and side > smallest:
        side *= 0.9
    if side < wanted and curve.range_m > side:
        warnings.warn(
            f"blocks of {side:,.0f} m instead of {wanted:,.0f} m, so that there are enough for "
            f"{n_folds} folds: correlation reaches over their borders and scores may be too good",
            BocageWarning,
            stacklevel=4,
        )
    return float(side)


def _buffered(folds: Folds, places: Places, buffer_m: float) -> Folds:
    reach = places.straight_m(buffer_m)
    dropped = []
    for i in range(folds.n_folds):
        test, train = folds.test(i), folds.train(i)
        points = places.points_m
        low, high = points[test].min(axis=0) - reach, points[test].max(axis=0) + reach
        near = train[((points[train] >= low) & (points[train] <= high)).all(axis=1)]
        close = np.empty(0, np.intp)
        if len(near):
            distance, _ = places.tree(test).query(points[near], distance_upper_bound=reach * 1.001)
            close = near[places.arc_m(np.minimum(distance, 2 * reach)) <= buffer_m]
        if len(close) == len(train):
            raise InputError(
                got=f"a buffer of {buffer_m:,.0f} m around fold {i} that holds every other sample",
                expected="training samples outside the buffer",
                fix="use a smaller buffer, smaller blocks, or samples from a larger area",
            )
        dropped.append(close)
    return replace(folds, buffer_m=buffer_m, dropped=tuple(dropped))


def _warn_unseen(
    folds: Folds, labels: NDArray[Any] | None, classes: NDArray[np.int64] | None
) -> None:
    """Say once which classes are tested by models that have never met them."""
    if classes is None:
        return
    n_classes = int(classes.max()) + 1
    unseen: set[int] = set()
    for train, test in folds.splits():
        known = np.bincount(classes[train], minlength=n_classes)
        asked = np.bincount(classes[test], minlength=n_classes)
        if (known > 0).sum() < 2:
            raise InputError(
                got=f"{folds.name} folds where a model would train on "
                f"{int((known > 0).sum())} class",
                expected="at least two classes in every training set",
                fix="use fewer folds, smaller blocks or a smaller buffer, or label more places",
            )
        unseen |= set(np.flatnonzero((asked > 0) & (known == 0)).tolist())
    if unseen:
        names = np.unique(np.asarray(labels))[sorted(unseen)]
        warnings.warn(
            f"{folds.name} folds leave {', '.join(map(str, names))} out of the training set that "
            "its own samples are tested with (they lie together): these count as errors",
            BocageWarning,
            stacklevel=3,
        )


def _classes(labels: NDArray[Any] | None) -> NDArray[np.int64] | None:
    """Class number of each sample; None for numbers, several labels each, and no labels."""
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise InputError(
                got=f"{int((~np.isfinite(labels)).sum())} labels that are NaN or infinite",
                expected="a number for every sample",
                fix="drop samples without a label",
            )
        return None
    if labels.ndim != 1:
        return None
    names, classes = _numbered(labels, "label")
    if len(names) < 2:
        raise InputError(
            got=f"{len(labels)} labels of one class ({', '.join(map(str, names))})",
            expected="at least two classes",
            fix="add samples of what the class is to be told from",
        )
    return classes


def _numbered(values: NDArray[Any], what: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The different values in order, and the number of each sample's."""
    values = np.asarray(values)
    if values.dtype.kind == "O":
        missing = np.array([v is None or v != v for v in values], bool)  # noqa: PLR0124 - NaN
    else:
        missing = values != values  # noqa: PLR0124 - NaN and NaT differ from themselves
    if missing.any():
        raise InputError(
            got=f"{int(missing.sum())} of {len(values)} samples without a {what}",
            expected=f"a {what} for each",
            fix="drop them, or give them one",
        )
    names, number = np.unique(values, return_inverse=True)
    return names, number.reshape(-1).astype(np.int64)


def _n_samples(*columns: NDArray[Any] | Places | None) -> int:
    lengths = {len(column) for column in columns if column is not None}
    if len(lengths) != 1:
        raise InputError(
            got=f"columns of {' and '.join(map(str, sorted(lengths))) or 'no'} samples",
            expected="labels, places, groups and times of the same samples",
            fix="pass at least one of them, all in the same order",
        )
    return lengths.pop()


def _need(value: Any, name: str, kind: str) -> Any:
    if value is None:
        raise ConfigError(
            got=f"{kind} folds without {name}",
            expected=f"{name} of every sample",
            fix=f"pass {name}, or choose another kind of folds",
        )
    return value
