"""What every metric here is made of: sums per unit of ground, from which any score follows.

A metric keeps sums for each of a fixed number of slots; a slot holds whole units (images, blocks
of ground), so that drawing slots again with replacement is a bootstrap by block. Sums of two
processes add up: state() gives plain arrays for an all_reduce(sum), and nothing else is needed. A
map of 10^8 pixels costs one pass; its intervals cost nothing more.

scores = Confusion(("water", "land")).update(prediction, target, block=image).compute()
scores["miou"]                # Interval(value=0.81, low=0.78, high=0.84)
print(scores.markdown())
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

    Sums = Mapping[str, NDArray[Any]]

N_SLOTS = 256  # intervals do not change from here on; 100 classes take 20 MB


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score and its 95 % bootstrap interval; low and high are NaN where nothing can be said."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        if np.isnan(self.value):
            return "–"
        text = format(self.value, spec)
        if np.isnan(self.low):
            return text
        return f"{text} ({format(self.low, spec)} to {format(self.high, spec)})"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores with intervals; scores["miou"] is one of them."""

    values: dict[str, Interval]
    """By name."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """One dictionary per class (or distance, or confidence): its name, its Intervals, counts."""

    n: int = 0
    """Pixels or samples."""

    n_blocks: int = 0
    """Units of the bootstrap that held data. Below 10 the intervals are too narrow; 1 has none."""

    confusion: NDArray[np.int64] | None = None
    """[true class, predicted class], for classifications."""

    def __getitem__(self, name: str) -> Interval:
        return self.values[name]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings for a JSON file; NaN becomes None."""
        rows = [{k: _plain(v) for k, v in row.items()} for row in self.rows]
        content: dict[str, Any] = {"n": self.n, "n_blocks": self.n_blocks}
        content |= {"scores": {k: _plain(v) for k, v in self.values.items()}, "rows": rows}
        if self.confusion is not None:
            content["confusion"] = self.confusion.tolist()
        return content

    def markdown(self) -> str:
        """Two tables: the scores, and one row per class."""
        lines = ["| score | value (95 % interval) |", "|---|---|"]
        lines += [f"| {name} | {value:.3f} |" for name, value in self.values.items()]
        if self.rows:
            lines += ["", self.markdown_rows()]
        unit = "units" if self.n_blocks != 1 else "unit: no intervals"
        return "\n".join([*lines, "", f"{self.n:,} samples in {self.n_blocks} {unit}"])

    def markdown_rows(self) -> str:
        """A table of the rows: one per class."""
        columns = list(self.rows[0])
        lines = [markdown_row(columns), "|---" * len(columns) + "|"]
        lines += [markdown_row([_cell(row[c]) for c in columns]) for row in self.rows]
        return "\n".join(lines)


def markdown_row(cells: Sequence[str]) -> str:
    """A line of a table; a bar inside a name does not end its cell."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


class Accumulator:
    """Base of all metrics: update, merge, state, compute, reset.

    A subclass names its sums and their shapes, adds to them in update, and turns sums into scores.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], n_slots: int = N_SLOTS) -> None:
        if n_slots < 1:
            raise ConfigError(
                got=f"n_slots {n_slots}", expected="at least 1", fix="leave it at its default"
            )
        self.n_slots = n_slots
        self._sums: dict[str, NDArray[Any]] = {
            name: np.zeros((n_slots, *shape), np.float64 if name.startswith("sum") else np.int64)
            for name, shape in {"n": (), **shapes}.items()
        }
        self._n_seen = 0

    # -- sums -------------------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        """The sums themselves [n_slots, ...], not copies.

        Adding those of all processes in place (torch.distributed.all_reduce of torch.from_numpy of
        each) leaves every process with the whole.
        """
        return self._sums

    def load_state(self, state: Mapping[str, ArrayLike]) -> Self:
        """Continue from sums that state() gave."""
        for name, mine in self._sums.items():
            given = np.asarray(state.get(name, ()))
            if given.shape != mine.shape:
                raise InputError(
                    got=f"a state with {name} of shape {given.shape}",
                    expected=f"{mine.shape}",
                    fix="restore into a metric of the same classes, bins and slots",
                )
            mine[...] = given
        return self

    def merge(self, other: Accumulator) -> Self:
        """Add what another metric of the same kind and shape has seen."""
        self._check_like(other)
        for name, more in other._sums.items():
            self._sums[name] += more
        return self

    def reset(self) -> Self:
        """Forget everything."""
        for mine in self._sums.values():
            mine[...] = 0
        self._n_seen = 0
        return self

    def _check_like(self, other: Accumulator) -> None:
        shapes = {name: x.shape for name, x in other._sums.items()}
        if type(other) is not type(self) or shapes != {k: x.shape for k, x in self._sums.items()}:
            raise InputError(
                got=f"a {type(other).__name__} with {shapes}",
                expected=f"a {type(self).__name__} like this one",
                fix="make both with the same classes, bins and slots",
            )

    # -- units ------------------------------------------------------------------------------------

    def _slots(self, n_items: int, block: ArrayLike | None) -> NDArray[np.int64]:
        """Slot of each item; items without a block are dealt in turn."""
        if block is None:
            slots = (self._n_seen + np.arange(n_items)) % self.n_slots
            self._n_seen += n_items
            return slots
        slots = np.asarray(block)
        if slots.dtype.kind not in "iu" or (slots.ndim and slots.size != n_items):
            raise InputError(
                got=f"block of {slots.dtype} {slots.shape} for {n_items} items",
                expected="one whole number, or one for each item",
                fix="number the blocks with np.unique(..., return_inverse=True)[1]",
            )
        return np.broadcast_to(slots.reshape(-1) if slots.ndim else slots, n_items) % self.n_slots

    # -- scores -----------------------------------------------------------------------------------

    def _scores(self, sums: Sums) -> dict[str, NDArray[Any]]:
        """Scores [..., ] and per-row scores [..., K] from sums with any leading axes."""
        raise NotImplementedError

    def _row_names(self) -> tuple[str, list[str]]:
        """What a row is, and the name of each."""
        return "", []

    def compute(self, *, n_bootstrap: int = 1000, seed: int = 0) -> Scores:
        """Scores of everything seen, with 95 % percentile intervals of a bootstrap by slot."""
        used = self._used()
        sums = {name: x.sum(axis=0) for name, x in self._sums.items()}
        values = {name: np.asarray(v, np.float64) for name, v in self._scores(sums).items()}
        low = {name: np.full_like(v, np.nan) for name, v in values.items()}
        high = {name: np.full_like(v, np.nan) for name, v in values.items()}
        if len(used) > 1 and n_bootstrap > 0:
            drawn = self.draws(n_bootstrap=n_bootstrap, seed=seed)
            for name, samples in drawn.items():
                low[name], high[name] = _quantiles(samples)
        column, names = self._row_names()
        rows: list[dict[str, Any]] = [{column: name} for name in names]
        scalars = {}
        for name, value in values.items():
            if value.ndim == 0:
                scalars[name] = Interval(
                    value=float(value), low=float(low[name]), high=float(high[name])
                )
                continue
            for k, row in enumerate(rows):
                row[name] = Interval(
                    value=float(value[k]), low=float(low[name][k]), high=float(high[name][k])
                )
        for name, counts in self._row_counts(sums).items():
            for k, row in enumerate(rows):
                row[name] = int(counts[k])
        return Scores(
            values=scalars,
            rows=rows,
            n=int(sums["n"]),
            n_blocks=len(used),
            confusion=sums.get("confusion"),
        )

    def draws(self, *, n_bootstrap: int = 1000, seed: int = 0) -> dict[str, NDArray[np.float64]]:
        """Every score of each bootstrap draw [n_bootstrap, ...]; equal seeds draw equal slots."""
        found: dict[str, list[NDArray[Any]]] = {}
        for sums in self._resample(n_bootstrap, seed):
            for name, value in self._scores(sums).items():
                found.setdefault(name, []).append(np.asarray(value, np.float64))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def _row_counts(self, sums: Sums) -> dict[str, NDArray[Any]]:  # noqa: ARG002 - for subclasses
        """Counts per row, which have no interval."""
        return {}

    def _used(self) -> NDArray[np.intp]:
        return np.flatnonzero(self._sums["n"])

    def _resample(self, n_bootstrap: int, seed: int) -> Iterator[Sums]:
        used = self._used()
        parts = {name: x[used].reshape(len(used), -1) for name, x in self._sums.items()}
        width = sum(x.shape[1] for x in parts.values())
        step = max(1, (1 << 23) // max(width, len(used)))  # 64 MB at a time
        rng = np.random.default_rng(seed)
        for start in range(0, n_bootstrap, step):
            size = min(step, n_bootstrap - start)
            times = rng.multinomial(len(used), np.full(len(used), 1 / len(used)), size)
            weights = times.astype(np.float64)
            yield {
                name: (weights @ x).reshape(size, *self._sums[name].shape[1:])
                for name, x in parts.items()
            }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One score of two models on the same units."""

    first: float
    second: float
    difference: float
    """Second minus first."""

    low: float
    high: float
    """95 % bootstrap interval; both models are judged on the same draws."""

    p: float
    """Two-sided bootstrap p of no difference; not below 1 / (draws + 1)."""


def compare_scores(
    first: Accumulator, second: Accumulator, *, n_bootstrap: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """Compare two models, score by score, by a paired bootstrap over the same units.

    Both metrics must have seen the same samples with the same blocks. For accuracy of samples one
    by one, with McNemar's test and a test of equivalence, see paired.compare.
    """
    first._check_like(second)
    if not np.array_equal(first._sums["n"], second._sums["n"]):
        raise InputError(
            got="two metrics that have seen different samples or blocks",
            expected="the same samples in the same blocks",
            fix="update both with the same targets and block=",
        )
    a, b = first.compute(n_bootstrap=0), second.compute(n_bootstrap=0)
    if a.n_blocks < 2:
        raise InputError(
            got=f"{a.n_blocks} block of samples",
            expected="several blocks, to draw from",
            fix="pass block= to update",
        )
    draws_a = first.draws(n_bootstrap=n_bootstrap, seed=seed)
    draws_b = second.draws(n_bootstrap=n_bootstrap, seed=seed)
    found = {}
    for name in a.values:
        gain = draws_b[name] - draws_a[name]
        low, high = _quantiles(gain)
        tail = min((gain <= 0).sum(), (gain >= 0).sum())
        found[name] = Difference(
            first=a[name].value,
            second=b[name].value,
            difference=b[name].value - a[name].value,
            low=float(low),
            high=float(high),
            p=float(min(1.0, 2 * (tail + 1) / (n_bootstrap + 1))),
        )
    return found


def square_blocks(shape_yx: tuple[int, int], side_px: int) -> NDArray[np.int32]:
    """Number of the square of `side_px` that each pixel of one map lies in, for block=."""
    rows, cols = shape_yx
    per_row = -(-cols // side_px)
    row = np.arange(rows, dtype=np.int32)[:, None] // side_px
    return row * per_row + np.arange(cols, dtype=np.int32) // side_px


def ratio(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """Above / below, NaN where below is 0: a score that is not defined, left out of means."""
    below = np.asarray(below, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, np.nan, above / np.where(below == 0, 1, below))


def mean_defined(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    defined = ~np.isnan(x)
    return ratio(np.where(defined, x, 0).sum(axis=-1), defined.sum(axis=-1))


def _quantiles(samples: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    undefined = np.isnan(samples).all(axis=0)
    if not np.isnan(samples).any():
        low, high = np.quantile(samples, [0.025, 0.975], axis=0)
        return low, high
    filled = np.where(undefined, 0, samples)
    low, high = np.nanquantile(filled, [0.025, 0.975], axis=0)
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return {k: _plain(getattr(value, k)) for k in ("value", "low", "high")}
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _cell(value: Any) -> str:
    if isinstance(value, Interval):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
