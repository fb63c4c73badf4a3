"""Which codec: the smallest one whose loss on a sample is shown to be within a tolerance.

With labels the loss is one of accuracy (kNN and linear probe, spatial folds where places are
known); without, it is the share of a vector's ten nearest neighbors that the codes lose. A loss
that is small only because the sample is small does not count: it must pass a non-inferiority test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs.codec import check_vectors, training_sample, valid_rows
from bocage.embeddings.codecs.reduced import Reduced
from bocage.embeddings.codecs.registry import make_codec
from bocage.embeddings.codecs.study.evaluate import StudyOptions, evaluate
from bocage.errors import ConfigError, InputError
from bocage.scoring.paired import holm, non_inferiority
from bocage.scoring.scores import (
    cosine_distances,
    retrieval_recall,
    true_neighbors,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

CANDIDATES = (
    *("binary_mean", "binary_itq", "int2_mse", "lloyd2", "int4_mse", "lloyd4", "int8"),
    *("signed_power_gain", "float16"),
    *(f"pca{d}-{q}" for d in (16, 32, 64, 128) for q in ("int4_mse", "int8")),
)
"""Tried by default; prefix<d>-int8 is added for the prefixes that a model was trained for."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """A codec and why."""

    codec: str
    reason: str
    """One paragraph in the user's words."""

    proven: bool
    """True if the loss was shown to be within tolerance; False if nothing could be shown."""

    table: list[dict[str, Any]]
    """All candidates, smallest first: codec, bytes, losses, p-values."""


def recommend(
    x: FloatArray,
    labels: NDArray[Any] | None = None,
    *,
    lonlat: NDArray[np.floating] | None = None,
    tolerance: float | str = "0.5pt",
    candidates: tuple[str, ...] = CANDIDATES,
    matryoshka_dims: tuple[int, ...] = (),
    block_km: float = 50.0,
    n_folds: int = 5,
    seed: int = 0,
) -> Recommendation:
    """Pick the smallest codec that loses at most `tolerance` on a sample, and say why.

    `tolerance` is a share (0.005) or points ("0.5pt", "1%"). With `labels` it is accuracy, without
    recall of the ten nearest neighbors. Codecs are fitted on other rows than they are judged on.
    """
    margin = parse_tolerance(tolerance)
    x = check_vectors(x)
    names = _fitting(candidates, matryoshka_dims, x.shape[1])
    if labels is None:
        return _by_neighbors(x, names, margin, seed)
    options = StudyOptions(
        codecs=tuple(names), margin=margin, n_folds=n_folds, block_km=block_km, seed=seed
    )
    result = evaluate(x, labels, lonlat=lonlat, options=options)
    split = "spatial" if lonlat is not None else "random"
    n = result.vectors["n_vectors"]
    rows = [r for r in result.rows if r["split"] == split and r["codec"] != "float32"]
    tests = []
    for row in rows:
        # The classifier that suffers most decides; Hamming kNN is a bonus, not a requirement.
        scores = [s for s in ("knn", "linear") if s in row]
        row["loss"] = max(-row[f"{s}_difference"] for s in scores)
        row["p_loss"] = max(
            non_inferiority(row[f"{s}_gained"], row[f"{s}_lost"], n, margin) for s in scores
        )
        tests.append(row["p_loss"])
    for row, p in zip(rows, holm(np.array(tests)), strict=True):
        row["p_loss_holm"] = float(p)
    rows.sort(key=lambda r: (r["code_bytes"], r["loss"]))
    what = f"accuracy in {split} folds of {n} samples"
    return _choose(rows, margin, what, n, 4 * x.shape[1])


def parse_tolerance(tolerance: float | str) -> float:
    """A share from 0.005, "0.5pt", "0.5 points" or "0.5%"."""
    if isinstance(tolerance, str):
        matched = re.fullmatch(r"\s*([0-9.]+)\s*(pt|pts|points|%)\s*", tolerance)
        value = float(matched[1]) / 100 if matched else np.nan
    else:
        value = float(tolerance)
    if not 0 < value < 0.5:
        raise ConfigError(
            got=f"tolerance {tolerance!r}",
            expected='points of accuracy such as "0.5pt", or a share such as 0.005',
            fix="half a point is usual",
        )
    return value


def _fitting(candidates: tuple[str, ...], prefixes: tuple[int, ...], dims: int) -> list[str]:
    names = [*candidates, *(f"prefix{d}-int8" for d in prefixes if d < dims)]
    kept = []
    for name in names:
        codec = make_codec(name)
        if not (isinstance(codec, Reduced) and codec.reducer.d >= dims):
            kept.append(name)
    return kept


def _by_neighbors(x: FloatArray, names: list[str], margin: float, seed: int) -> Recommendation:
    x = training_sample(x[valid_rows(x)], 20_000, seed)
    if len(x) < 100:
        raise InputError(
            got=f"{len(x)} valid vectors",
            expected="at least 100 to judge neighbors by",
            fix="pass a larger sample",
        )
    order = np.random.default_rng(seed).permutation(len(x))
    queries, fit = np.sort(order[: min(1000, len(x) // 5)]), np.sort(order[len(x) // 5 :])
    truth = true_neighbors(x, queries, 10)
    n = truth.size
    rows = []
    for name in names:
        codec = make_codec(name, seed=seed).fit(x[fit])
        decoded = codec.decode(codec.encode(x))
        recall = retrieval_recall(cosine_distances(decoded[queries], decoded), queries, truth)
        lost = round((1 - recall) * n)
        rows.append(
            {
                "codec": name,
                "code_bytes": codec.code_bytes,
                "loss": 1 - recall,
                "p_loss_holm": non_inferiority(0, lost, n, margin),
            }
        )
    for row, p in zip(rows, holm(np.array([r["p_loss_holm"] for r in rows])), strict=True):
        row["p_loss_holm"] = float(p)
    rows.sort(key=lambda r: (r["code_bytes"], r["loss"]))
    what = f"recall of the 10 nearest neighbors of {len(queries)} vectors (no labels were given)"
    return _choose(rows, margin, what, n, 4 * x.shape[1])


def _choose(
    rows: list[dict[str, Any]], margin: float, what: str, n: int, float_bytes: int
) -> Recommendation:
    points = 100 * margin
    proven = [r for r in rows if r["p_loss_holm"] < 0.05]
    within = [r for r in rows if r["loss"] <= margin]
    if proven:
        best = proven[0]
        reason = (
            f"{best['codec']} takes {best['code_bytes']} bytes instead of {float_bytes} "
            f"({float_bytes / best['code_bytes']:.0f} times less) and changes {what} by "
            f"{-100 * best['loss']:+.2f} points; a loss beyond {points:g} points is excluded "
            f"(p = {best['p_loss_holm']:.3f} after Holm's correction)."
        )
    elif within:
        # Without a proof the largest of those within tolerance is the careful choice.
        best = max(within, key=lambda r: (r["code_bytes"], -r["loss"]))
        needed = int(np.ceil(1.645**2 * (1 - margin) / margin))
        why = (
            f"the sample is too small (even if nothing changed it would take at least {needed}, "
            f"here are {n})"
            if n < needed
            else f"{n} cannot exclude a larger loss, and a larger sample may"
        )
        reason = (
            f"No codec was shown to lose less than {points:g} points of {what}: {why}. "
            f"{best['codec']} ({best['code_bytes']} bytes instead of {float_bytes}) is the most "
            f"careful of those whose observed loss is within tolerance."
        )
    else:
        best = min(rows, key=lambda r: r["loss"])
        reason = (
            f"Every codec loses more than {points:g} points of {what}; {best['codec']} "
            f"({best['code_bytes']} bytes instead of {float_bytes}) loses least, "
            f"{100 * best['loss']:.2f} points."
        )
    smaller = [r for r in rows if r["code_bytes"] < best["code_bytes"]]
    if smaller:
        nearest = min(smaller, key=lambda r: r["loss"])
        reason += (
            f" The best smaller one, {nearest['codec']} with {nearest['code_bytes']} bytes, loses "
            f"{100 * nearest['loss']:.2f} points."
        )
    return Recommendation(codec=best["codec"], reason=reason, proven=bool(proven), table=rows)
