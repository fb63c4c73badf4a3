"""Does a model see what is hidden far from any hint? Recall by distance to the visible part.

A road under trees is easy to guess one pixel from where it comes out, and hard in the middle of a
wood. Distance-weighted recall (DWR; Robinson et al., Chesapeake Roads) weighs every hidden pixel
by its distance to the nearest visible one: sum(d * hit) / sum(d).

What is done differently from the published evaluation: hits on hidden road count as road in
precision too (there they counted as errors); distances may be Euclidean and may be measured on a
mosaic, across the borders of patches; pixels without anything visible in view, and pixels whose
nearest visible one may lie beyond the edge, are counted and reported; a capped variant keeps a
few far pixels from deciding; every figure has an interval by patch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bocage.errors import ConfigError, InputError
from bocage.scoring.accumulator import N_SLOTS, Accumulator, Scores, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

Metric = Literal["euclidean", "l1"]
EDGES_PX = (1, 2, 3, 5, 8, 13, 20, 32, 50, 80, 130, 200, 320, 500)


@dataclass(frozen=True, kw_only=True)
class VisibleDistance:
    """Distance of every pixel to the nearest visible one; made by measure_distance."""

    pixels: NDArray[np.float32]
    """Pixels [H, W] or [B, H, W]; infinite where nothing visible is in view."""

    certain: NDArray[np.bool_]
    """False where something nearer may lie beyond the edge of the image."""

    def window(self, rows: slice, cols: slice) -> VisibleDistance:
        """The part of a mosaic that one patch covers."""
        part = (..., rows, cols)
        return VisibleDistance(pixels=self.pixels[part], certain=self.certain[part])


def measure_distance(visible: ArrayLike, metric: Metric = "euclidean") -> VisibleDistance:
    """Distance from every pixel to the nearest visible one.

    Args:
        visible: True where the thing is seen: one image [H, W], images [B, H, W], or a mosaic of
            patches [H, W], whose windows then know of roads in the neighboring patches.
        metric: "euclidean", or "l1" (steps along rows and columns, as published; up to 1.41
            times longer).
    """
    from scipy import ndimage

    mask = np.asarray(visible, bool)
    if mask.ndim == 3:
        parts = [measure_distance(one, metric) for one in mask]
        return VisibleDistance(
            pixels=np.stack([part.pixels for part in parts]),
            certain=np.stack([part.certain for part in parts]),
        )
    if mask.ndim != 2 or mask.size == 0:
        raise InputError(
            got=f"a mask of shape {mask.shape}",
            expected="[H, W] or [B, H, W]",
            fix="drop the bands",
        )
    if metric not in ("euclidean", "l1"):
        raise ConfigError(got=f"metric {metric!r}", expected="euclidean or l1", fix="choose one")
    if not mask.any():
        nowhere = np.full(mask.shape, np.inf, np.float32)
        return VisibleDistance(pixels=nowhere, certain=np.zeros(mask.shape, bool))
    if metric == "euclidean":
        pixels = ndimage.distance_transform_edt(~mask).astype(np.float32)
    else:
        pixels = ndimage.distance_transform_cdt(~mask, metric="taxicab").astype(np.float32)
    # The first pixel outside is one further than the edge pixel.
    row, col = np.arange(mask.shape[0]), np.arange(mask.shape[1])
    to_edge = np.minimum.outer(np.minimum(row, row[::-1]) + 1, np.minimum(col, col[::-1]) + 1)
    return VisibleDistance(pixels=pixels, certain=pixels <= to_edge)


class DistanceRecall(Accumulator):
    """Recall of hidden pixels by their distance to visible ones.

    Scores: dwr, dwr_capped (distances cut at `cap_px`; pixels with nothing in view count at the
    cap), recall_hidden, recall_visible, precision (hits on hidden pixels are hits), auc (mean
    recall over the logarithm of distance, where bins hold data), share_without_visible (hidden
    pixels with nothing in view: in recall_hidden and dwr_capped, but not in dwr), share_uncertain
    (of the others, those whose nearest may lie beyond the edge). Rows: recall by distance.
    """

    def __init__(
        self,
        *,
        cap_px: float = 200.0,
        edges_px: Sequence[float] = EDGES_PX,
        n_slots: int = N_SLOTS,
    ) -> None:
        edges = np.asarray(edges_px, np.float64)
        if len(edges) < 2 or (np.diff(edges) <= 0).any() or edges[0] <= 0 or not cap_px > 0:
            raise ConfigError(
                got=f"edges_px {tuple(edges_px)}, cap_px {cap_px}",
                expected="rising distances above 0",
                fix="leave them at their defaults",
            )
        self.cap_px, self.edges_px = cap_px, edges
        counts = ("hidden", "hit_hidden", "visible", "hit_visible", "false", "blind", "uncertain")
        sums = ("sum_d", "sum_d_hit", "sum_capped", "sum_capped_hit")
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys((*counts, *sums), ())
        # Bins: below the first edge (distance 1 is the shortest there is), ..., past the last.
        self.n_bins = len(edges)
        super().__init__({**shapes, "bin": (self.n_bins,), "bin_hit": (self.n_bins,)}, n_slots)

    def update(
        self,
        prediction: ArrayLike,
        visible: ArrayLike,
        hidden: ArrayLike,
        *,
        distance: VisibleDistance | None = None,
        block: ArrayLike | None = None,
    ) -> Self:
        """Add patches.

        Args:
            prediction: True where the model says road [H, W] or [B, H, W].
            visible: True where road is seen; the same shape.
            hidden: True where road is under something; never both.
            distance: From measure_distance of a mosaic, cut to the patch. Without it distances
                are those inside each patch, in Euclidean pixels.
            block: The unit of the bootstrap of each patch; one each by default.
        """
        p, v, h = (np.asarray(x) for x in (prediction, visible, hidden))
        if p.shape != v.shape or p.shape != h.shape or p.ndim not in (2, 3):
            raise InputError(
                got=f"prediction {p.shape}, visible {v.shape}, hidden {h.shape}",
                expected="three masks [H, W] or [B, H, W] of one shape",
                fix="take the same pixels of each",
            )
        if not all(_is_mask(x) for x in (p, v, h)):
            raise InputError(
                got="masks with values other than 0 and 1",
                expected="True where there is road",
                fix="compare with the class: target == 1",
            )
        p, v, h = p.astype(bool), v.astype(bool), h.astype(bool)
        if (v & h).any():
            raise InputError(
                got=f"{int((v & h).sum())} pixels that are both visible and hidden",
                expected="each road pixel one or the other",
                fix="remove the hidden ones from the visible mask",
            )
        distance = measure_distance(v) if distance is None else distance
        if distance.pixels.shape != p.shape:
            raise InputError(
                got=f"distances {distance.pixels.shape} for a patch {p.shape}",
                expected="the same shape",
                fix="cut them with distance.window(rows, cols)",
            )
        if p.ndim == 2:
            self._add(int(self._slots(1, block)[0]), p, v, h, distance)
            return self
        for i, slot in enumerate(self._slots(len(p), block)):
            one = VisibleDistance(pixels=distance.pixels[i], certain=distance.certain[i])
            self._add(int(slot), p[i], v[i], h[i], one)
        return self

    def _add(
        self,
        slot: int,
        p: NDArray[np.bool_],
        v: NDArray[np.bool_],
        h: NDArray[np.bool_],
        distance: VisibleDistance,
    ) -> None:
        d = distance.pixels[h].astype(np.float64)
        hit = p[h]
        seen = np.isfinite(d)
        capped = np.minimum(d, self.cap_px)
        bins = np.clip(np.searchsorted(self.edges_px, d[seen], side="right") - 1, 0, None)
        added = {
            "n": p.size,
            "hidden": len(d),
            "hit_hidden": hit.sum(),
            "visible": v.sum(),
            "hit_visible": (p & v).sum(),
            "false": (p & ~v & ~h).sum(),
            "blind": (~seen).sum(),
            "uncertain": (seen & ~distance.certain[h]).sum(),
            "sum_d": d[seen].sum(),
            "sum_d_hit": d[seen & hit].sum(),
            "sum_capped": capped.sum(),
            "sum_capped_hit": capped[hit].sum(),
            "bin": np.bincount(bins, minlength=self.n_bins),
            "bin_hit": np.bincount(bins[hit[seen]], minlength=self.n_bins),
        }
        for name, value in added.items():
            self._sums[name][slot] += value

    def compute(self, *, n_bootstrap: int = 1000, seed: int = 0) -> Scores:
        """Scores with intervals; refuses to score where nothing is hidden."""
        if not self._sums["hidden"].any():
            raise InputError(
                got="no hidden pixel", expected="some, to score", fix="check the class numbers"
            )
        return super().compute(n_bootstrap=n_bootstrap, seed=seed)

    def _row_names(self) -> tuple[str, list[str]]:
        edges = [f"{edge:g}" for edge in self.edges_px]
        below = [f"{a} to {b}" for a, b in itertools.pairwise(edges)]
        return "distance, px", [*below, f"{edges[-1]} and more"]

    def _row_counts(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"pixels": sums["bin"]}

    def _scores(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        hits = sums["hit_hidden"] + sums["hit_visible"]
        recall = ratio(sums["bin_hit"], sums["bin"])
        return {
            "dwr": ratio(sums["sum_d_hit"], sums["sum_d"]),
            "dwr_capped": ratio(sums["sum_capped_hit"], sums["sum_capped"]),
            "recall_hidden": ratio(sums["hit_hidden"], sums["hidden"]),
            "recall_visible": ratio(sums["hit_visible"], sums["visible"]),
            "precision": ratio(hits, hits + sums["false"]),
            "auc": self._area(recall),
            "share_without_visible": ratio(sums["blind"], sums["hidden"]),
            "share_uncertain": ratio(sums["uncertain"], sums["hidden"] - sums["blind"]),
            "recall": recall,
        }

    def _area(self, recall: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean of recall over log distance; the open last bin has no width and is left out."""
        width = np.diff(np.log(self.edges_px))
        inner = recall[..., :-1]
        known = ~np.isnan(inner)
        return ratio((np.where(known, inner, 0) * width).sum(axis=-1), (known * width).sum(axis=-1))


def _is_mask(x: NDArray[Any]) -> bool:
    return x.dtype == bool or (x.dtype.kind in "iu" and bool(((x == 0) | (x == 1)).all()))
