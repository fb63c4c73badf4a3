"""The eight symmetries: all there, a group, the same for every layer."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from bocage.pretrain.augmentation import N_SYMMETRIES, apply_symmetry, draw_symmetry

SQUARE = np.arange(16).reshape(4, 4)


def test_there_are_eight_different_ones_and_the_first_does_nothing():
    images = {apply_symmetry(SQUARE, k).tobytes() for k in range(N_SYMMETRIES)}
    assert len(images) == 8
    np.testing.assert_array_equal(apply_symmetry(SQUARE, 0), SQUARE)


def test_two_in_a_row_are_one_of_the_eight():
    images = {apply_symmetry(SQUARE, k).tobytes() for k in range(N_SYMMETRIES)}
    for a in range(N_SYMMETRIES):
        for b in range(N_SYMMETRIES):
            assert apply_symmetry(apply_symmetry(SQUARE, a), b).tobytes() in images


@pytest.mark.parametrize("element", range(N_SYMMETRIES))
def test_they_are_the_matrices_of_the_square_group(element):
    # Row and column about the center are turned by a signed permutation matrix of determinant +-1.
    n = 5
    coordinates = np.stack(np.meshgrid(*(np.arange(n) - 2,) * 2, indexing="ij"), axis=-1)
    turned = apply_symmetry(coordinates, element).reshape(-1, 2)
    matrix, *_ = np.linalg.lstsq(coordinates.reshape(-1, 2), turned, rcond=None)
    np.testing.assert_allclose(np.abs(matrix).sum(axis=0), 1, atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1 if element < 4 else -1)


def test_only_rows_and_columns_move():
    x = np.random.default_rng(0).normal(size=(6, 6, 3, 2))
    for element in range(N_SYMMETRIES):
        got = apply_symmetry(x, element)
        for t in range(3):
            for c in range(2):
                plain = apply_symmetry(x[..., t, c], element)
                np.testing.assert_array_equal(got[..., t, c], plain)


def test_draws_are_uniform():
    rng = np.random.default_rng(0)
    counts = Counter(draw_symmetry(rng) for _ in range(8000))
    assert set(counts) == set(range(8))
    assert chisquare(list(counts.values())).pvalue > 1e-3
