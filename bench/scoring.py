"""How long scores of a map take: python bench/scoring.py"""

from __future__ import annotations

import resource
import time
import warnings

import numpy as np

from bocage.scoring.confusion import Confusion
from bocage.scoring.distance_recall import DistanceRecall
from bocage.scoring.folds import make_folds
from bocage.scoring.location import check_leakage
from bocage.scoring.regression import Regression
from bocage.scoring.scores import knn_weighted


def timed(name, job):
    start = time.perf_counter()
    result = job()
    print(f"{name:58s} {time.perf_counter() - start:7.2f} s")
    return result


def main() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 10, (30, 1000, 1000), dtype=np.uint8)
    guess = rng.integers(0, 10, target.shape, dtype=np.uint8)
    timed(
        "30 M pixels, 10 classes: all scores, intervals by image",
        lambda: Confusion(10).update(guess, target).compute(),
    )
    timed(
        "the same as 30 M samples",
        lambda: Confusion(10).update(guess.ravel(), target.ravel()).compute(),
    )
    numbers = target.astype(np.float32)
    timed(
        "30 M numbers: R2, MAE, RMSE, intervals by image",
        lambda: Regression().update(guess.astype(np.float32), numbers).compute(),
    )
    road = rng.random((20, 512, 512)) < 0.03
    tree = rng.random(road.shape) < 0.2
    timed(
        "20 patches of 512 px: distance-weighted recall",
        lambda: DistanceRecall().update(road, road & ~tree, road & tree).compute(),
    )
    side = np.arange(1000) * 10.0
    xy = np.stack([a.ravel() for a in np.meshgrid(side, side)], axis=1)
    cell = np.floor(xy / 400).astype(int)
    labels = rng.integers(0, 4, (25, 25))[cell[:, 0], cell[:, 1]]
    folds = timed(
        "1 M samples: spatial folds, side measured",
        lambda: make_folds("spatial", labels=labels, xy_m=xy),
    )
    print(f"  {folds.describe()}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timed("1 M samples: leakage check", lambda: check_leakage(folds, labels, labels))
    x = rng.normal(size=(20_000, 128)).astype(np.float32)
    y = rng.integers(0, 10, 20_000)
    timed(
        "kNN, k = 20: 5,000 queries in 15,000 x 128",
        lambda: knn_weighted(x[5000:], y[5000:], x[:5000]),
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main()
