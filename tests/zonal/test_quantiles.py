"""Quantiles of four passes against numpy, which sorts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bocage.zonal.quantiles import PASSES, Quantiles
from tests.zonal.test_moments import covered

SHARES = (0.05, 0.25, 0.5, 0.9)


def quantiles(x, weights, n_tiles, shares=SHARES):
    """Of zones that all have the same cells, each with its own weights."""
    n = x.shape[1]
    found = Quantiles(np.arange(len(weights)), len(x), shares, len(weights))
    for _ in range(PASSES):
        for part in np.array_split(np.arange(n), n_tiles):
            cells = [np.arange(len(part))] * len(weights)
            found.add(x[:, part], covered(range(len(weights)), cells, [w[part] for w in weights]))
        found.next_pass()
    return found.result()


@pytest.mark.parametrize("n_tiles", [1, 5])
@pytest.mark.parametrize("kind", ["normal", "whole", "huge", "close"])
def test_as_numpy_with_weights(kind, n_tiles):
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (2, 400)).astype(np.float32)
    if kind == "whole":
        x = np.round(x * 3)  # many ties, and -0
    if kind == "close":
        x = (1 + np.argsort(x, axis=1) % 256 * 2.0**-23).astype(np.float32)
    if kind == "huge":
        x = (np.sign(x) * 10 ** (x * 8)).astype(np.float32)
    weights = [rng.random(400), np.ones(400), np.where(rng.random(400) < 0.9, 1e-6, 1)]
    found = quantiles(x, weights, n_tiles)
    for zone, weight in enumerate(weights):
        for band in range(2):
            expected = np.quantile(x[band], SHARES, weights=weight, method="inverted_cdf")
            np.testing.assert_array_equal(found[zone, band], expected)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, st.integers(1, 12), elements=st.floats(-9, 9, width=32)))
def test_medians_of_few_values(x):
    found = quantiles(x[None], [np.ones(len(x))], 1, (0.5,))[0, 0, 0]
    assert found == np.sort(x)[(len(x) - 1) // 2]


def test_zones_without_cells_have_none():
    found = Quantiles(np.arange(2), 1, (0.5,), 2)
    for _ in range(PASSES):
        found.add(np.ones((1, 3), np.float32), covered([1], [[0, 1]], [np.ones(2)]))
        found.next_pass()
    assert np.isnan(found.result()[0]).all() and found.result()[1] == 1


def test_zones_of_another_group_are_left_alone():
    found = Quantiles(np.array([2]), 1, (0.5,), 3)
    x = np.array([[1, 2, 9]], np.float32)
    for _ in range(PASSES):
        found.add(x, covered([0, 2], [[0, 1], [2]], [np.ones(2), np.ones(1)]))
        found.next_pass()
    assert found.result().ravel().tolist() == [9]


@pytest.mark.parametrize("weight", [0.1, 0.3, 1 / 3])
@pytest.mark.parametrize("n_tiles", [1, 3])
def test_rounding_of_weights_moves_nothing(weight, n_tiles):
    """Equal weights whose sums are rounded: the quantile is that of counting."""
    for n in range(3, 60):
        x = np.random.default_rng(n).permutation(n).astype(np.float32)[None]
        found = quantiles(x, [np.full(n, weight)], n_tiles, (0.1, 0.25, 0.5, 0.7))[0, 0]
        expected = [-(-n * tenths // 100) - 1 for tenths in (10, 25, 50, 70)]
        assert found.tolist() == expected
