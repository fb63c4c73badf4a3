"""Splits against their own promises: nothing of the test side is known to the training side."""

from __future__ import annotations

import numpy as np
import pytest

from bocage.errors import InputError
from bocage.scoring.folds import random_folds, spatial_folds


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Six classes of 50 in 30 places of ten neighbors each."""
    rng = np.random.default_rng(0)
    places = rng.uniform(-40, 40, (30, 2))[np.arange(300) // 10] + rng.normal(0, 0.01, (300, 2))
    return np.array(list("abcdef"))[np.repeat(np.arange(6), 50)], places


def test_random_folds_have_equal_shares_of_every_class(labelled) -> None:
    labels, _ = labelled
    folds = random_folds(labels, 5, seed=0)
    for label in np.unique(labels):
        assert np.bincount(folds.fold[labels == label]).tolist() == [10] * 5


def test_spatial_folds_never_split_a_block(labelled) -> None:
    _, places = labelled
    folds = spatial_folds(places, 5, seed=0, block_km=20)
    for block in np.unique(folds.block):
        assert len(np.unique(folds.fold[folds.block == block])) == 1
    sizes = np.bincount(folds.fold)
    assert sizes.max() <= 1.5 * sizes.min()
    # Blocks are squares on the ground: 20 km is 20 km at 40 degrees too.
    at_40 = np.stack([np.linspace(0, 5, 500), np.full(500, 40.0)], axis=1)
    n_blocks = len(np.unique(spatial_folds(at_40, 5, 0, block_km=20).block))
    assert n_blocks == pytest.approx(5 * 111.2 * np.cos(np.radians(40)) / 20, abs=1.5)
    with pytest.raises(InputError, match="smaller blocks"):
        spatial_folds(places[:10], 5, 0, block_km=500)
    with pytest.raises(InputError, match="EPSG:4326"):
        spatial_folds(places * 10_000, 5, 0)
