"""Areas of classes with confidence intervals, from a map and a sample of true classes.

Counting pixels of a map gives areas that are as wrong as the map. A random sample of places inside
each map class, looked up on the ground, corrects them and says how sure one may be. Olofsson et al.
(2014), "Good practices for estimating area and assessing accuracy of land change", Remote Sensing
of Environment 148:42-57, equations 1 to 11.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageWarning, InputError
from bocage.scoring.accumulator import ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_Z95 = 1.96  # as in the paper


@dataclass(frozen=True, kw_only=True)
class AreaEstimate:
    """Areas and accuracies; every margin is half a 95 % interval."""

    classes: tuple[str, ...]

    mapped_area: NDArray[np.float64]
    """What counting pixels gives [K], in the unit that was passed."""

    area: NDArray[np.float64]
    """What the sample says [K], same unit; adds up to the mapped total."""

    area_margin: NDArray[np.float64]
    """[K]"""

    proportions: NDArray[np.float64]
    """Estimated share of all area [map class, true class]; adds up to 1."""

    users: NDArray[np.float64]
    users_margin: NDArray[np.float64]
    """Of what the map calls a class, the share that is it [K]."""

    producers: NDArray[np.float64]
    producers_margin: NDArray[np.float64]
    """Of what is a class, the share that the map calls it [K]; NaN where none was found."""

    overall: float
    overall_margin: float
    """Share of the area that is mapped right."""

    sampled: NDArray[np.int64]
    """Sample places in each map class [K]."""

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary of plain numbers per class."""
        names = (
            *("mapped_area", "area", "area_margin", "users", "users_margin"),
            *("producers", "producers_margin", "sampled"),
        )
        return [
            {"class": name, **{column: getattr(self, column)[k].item() for column in names}}
            for k, name in enumerate(self.classes)
        ]

    def markdown(self, unit: str = "") -> str:
        """A table: mapped area, estimated area, user's and producer's accuracy, 95 % margins."""
        unit = f", {unit}" if unit else ""
        lines = [
            f"| class | mapped{unit} | estimated{unit} | user's | producer's | places |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['class']} | {row['mapped_area']:,.6g} "
            f"| {row['area']:,.6g} ± {row['area_margin']:,.3g} "
            f"| {row['users']:.2f} ± {row['users_margin']:.2f} "
            f"| {row['producers']:.2f} ± {row['producers_margin']:.2f} | {row['sampled']} |"
            for row in self.rows()
        ]
        overall = f"Right for {self.overall:.2f} ± {self.overall_margin:.2f} of the area."
        return "\n".join([*lines, "", overall])


def estimate_areas(
    counts: ArrayLike, mapped_area: ArrayLike, classes: Sequence[str] | None = None
) -> AreaEstimate:
    """Estimate the area of each class from sample places inside each map class.

    The places must be a random sample within each map class, and unknown to the model: labels
    that trained it, or that someone chose because they were easy to see, give margins that mean
    nothing. Predictions of labelled points by cross-validation are such a sample only if the
    points themselves were drawn at random.

    Args:
        counts: Places [map class, true class]. (Confusion keeps the transpose.)
        mapped_area: Area or pixels of each map class [K].
        classes: Their names.
    """
    n = np.asarray(counts)
    area = np.asarray(mapped_area, np.float64)
    names = tuple(classes) if classes is not None else tuple(map(str, range(len(area))))
    _check(n, area, names)
    # A class that the map does not show has no area to estimate from, and no places are needed.
    shown = area > 0
    n = np.where(shown[:, None], n, 0).astype(np.float64)
    size = n.sum(axis=1)  # n_i.
    weight = area / area.sum()  # W_i
    share = np.divide(n, size[:, None], out=np.zeros_like(n), where=size[:, None] > 0)
    p = weight[:, None] * share  # eq. 4
    true_share = p.sum(axis=0)  # eq. 9
    degrees = np.where(shown, np.maximum(size - 1, 1), 1)
    # eq. 10; p (W - p) = W^2 s (1 - s)
    spread = (weight[:, None] ** 2 * share * (1 - share) / degrees[:, None]).sum(axis=0)
    users = np.where(shown, np.diagonal(share), np.nan)
    users_variance = users * (1 - users) / degrees  # eq. 6
    overall = float(np.trace(p))
    overall_variance = float(np.nansum(weight**2 * users_variance))  # eq. 5
    producers = ratio(np.diagonal(p), true_share)
    return AreaEstimate(
        classes=names,
        mapped_area=area,
        area=true_share * area.sum(),
        area_margin=_Z95 * np.sqrt(spread) * area.sum(),
        proportions=p,
        users=users,
        users_margin=_Z95 * np.sqrt(users_variance),
        producers=producers,
        producers_margin=_Z95 * np.sqrt(_producers_variance(area, share, degrees, producers)),
        overall=overall,
        overall_margin=_Z95 * np.sqrt(overall_variance),
        sampled=size.astype(np.int64),
    )


def _producers_variance(
    area: NDArray[np.float64],
    share: NDArray[np.float64],
    degrees: NDArray[np.float64],
    producers: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Equation 7, with areas for pixel counts."""
    users = np.diagonal(share)
    own = area**2 * (1 - producers) ** 2 * users * (1 - users) / degrees
    each = area[:, None] ** 2 * share * (1 - share) / degrees[:, None]
    others = producers**2 * (each.sum(axis=0) - np.diagonal(each))
    estimated = (area[:, None] * share).sum(axis=0)
    return ratio(own + others, estimated**2)


def _check(n: NDArray[Any], area: NDArray[np.float64], names: tuple[str, ...]) -> None:
    k = len(names)
    if n.shape != (k, k) or area.shape != (k,):
        raise InputError(
            got=f"counts {n.shape}, areas {area.shape}, {k} classes",
            expected="counts [K, K] and areas [K] of the same classes",
            fix="give every class a row, a column and an area, 0 if the map does not show it",
        )
    if not np.isfinite(n).all() or (n < 0).any() or (n != np.round(n)).any():
        raise InputError(
            got="counts that are not whole numbers of places",
            expected="sample places per map class and true class",
            fix="pass counts, not shares",
        )
    if not np.isfinite(area).all() or (area < 0).any() or area.sum() <= 0:
        raise InputError(
            got=f"areas {area.tolist()}",
            expected="positive areas of the map's classes",
            fix="count the map's valid pixels per class",
        )
    size = n.sum(axis=1)
    short = [names[i] for i in np.flatnonzero((area > 0) & (size < 2))]
    if short:
        raise InputError(
            got=f"fewer than two sample places in the map's {', '.join(short)}",
            expected="several places in every class that the map shows",
            fix="sample more places there, or merge the class with another",
        )
    few = [f"{names[i]} ({int(size[i])})" for i in np.flatnonzero((area > 0) & (size < 25))]
    if few:
        warnings.warn(
            f"few sample places in the map's {', '.join(few)}: margins of areas are themselves "
            "uncertain below about 25 places",
            BocageWarning,
            stacklevel=3,
        )
