"""How large must blocks be? Features that know nothing about labels, both smooth on the ground.

Honest folds score 0.5. python bench/scoring_blocks.py
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.ndimage import gaussian_filter

from bocage.errors import BocageWarning
from bocage.scoring.accumulator import Accumulator
from bocage.scoring.confusion import Confusion
from bocage.scoring.folds import Folds, make_folds
from bocage.scoring.scores import knn_cosine

N_FIELDS = 10
SIDE_M, CELL_M, SIGMA_M = 10_000, 25.0, 150.0


def field(rng: np.random.Generator) -> np.ndarray:
    n = int(SIDE_M / CELL_M)
    smooth = gaussian_filter(rng.normal(size=(n, n)), SIGMA_M / CELL_M, mode="wrap")
    return smooth / smooth.std()


def accuracy(x: np.ndarray, y: np.ndarray, folds: Folds) -> float:
    predicted = y.copy()
    for train, test in folds.splits():
        predicted[test] = knn_cosine(x[train], y[train], x[test])
    return float((predicted == y).mean())


def blocks() -> None:
    rows: dict[str, list[float]] = {}
    ranges = []
    for seed in range(N_FIELDS):
        rng = np.random.default_rng(seed)
        fields = np.stack([field(rng) for _ in range(9)])
        cell = rng.integers(0, fields.shape[1], (3000, 2))
        values = fields[:, cell[:, 0], cell[:, 1]].T
        x, y = values[:, :8].astype(np.float32), (values[:, 8] > 0).astype(int)
        xy = cell * CELL_M
        measured = make_folds("spatial", labels=y, xy_m=xy)
        ranges.append(measured.block_m)
        tried = {"random": make_folds("random", labels=y)}
        tried["measured range"] = measured
        for factor in (0.25, 0.5, 2, 4):
            side = factor * measured.block_m
            tried[f"{factor} x range"] = make_folds("spatial", labels=y, xy_m=xy, block_m=side)
        tried["range, with a buffer of it"] = make_folds(
            "spatial", labels=y, xy_m=xy, block_m=measured.block_m, buffer_m=measured.block_m
        )
        for name, folds in tried.items():
            rows.setdefault(name, []).append(accuracy(x, y, folds))
    print(f"range measured: median {np.median(ranges):.0f} m; true {SIGMA_M * 2 * 3**0.5:.0f} m")
    for name, found in rows.items():
        margin = 1.96 * np.std(found) / np.sqrt(len(found))
        print(f"{name:30s} accuracy {np.mean(found):.3f} +- {margin:.3f}")


def slots() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 5, (4000, 20, 20))
    wrong = rng.random(target.shape) < rng.uniform(0, 0.6, 4000)[:, None, None]
    guess = np.where(wrong, rng.integers(0, 5, target.shape), target)
    for n in (8, 16, 32, 64, 128, 256, 1000, 4000):
        metric: Accumulator = Confusion(5, n_slots=n).update(guess, target)
        width = []
        for seed in range(N_FIELDS):
            miou = metric.compute(seed=seed)["miou"]
            width.append(miou.high - miou.low)
        print(f"{n:5d} slots: width of the mIoU interval {np.mean(width):.5f}")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BocageWarning)
        blocks()
    slots()
