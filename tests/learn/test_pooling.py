import numpy as np
import pytest

from bocage.errors import ConfigError, InputError
from bocage.learn.pooling import OPERATORS, pool, recommended_pooling

rng = np.random.default_rng(0)
X = rng.normal(size=(3, 40, 5)).astype(np.float32)

BY_HAND = {
    "mean": lambda p: p.mean(0),
    "std": lambda p: p.std(0),
    "min": lambda p: p.min(0),
    "max": lambda p: p.max(0),
    "gem": lambda p: (np.maximum(p, 1e-6) ** 3).mean(0) ** (1 / 3),
    "median": lambda p: np.median(p, axis=0),
    "quartiles": lambda p: np.quantile(p, [0.25, 0.5, 0.75], axis=0).ravel(),
    "percentiles": lambda p: np.quantile(p, [0.1, 0.25, 0.5, 0.75, 0.9], axis=0).ravel(),
    "covariance": lambda p: np.cov(p.T, bias=True)[np.triu_indices(5)],
}


@pytest.mark.parametrize("name", OPERATORS)
def test_each_operator_agrees_with_plain_numpy(name):
    expected = np.stack([BY_HAND[name](item.astype(np.float64)) for item in X])
    np.testing.assert_allclose(pool(X, name), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_pixels_without_data_do_not_count(name):
    holes = X.copy()
    holes[0, ::3, 2] = np.nan  # one missing value takes the whole pixel out
    kept = np.delete(X[0], np.arange(0, 40, 3), axis=0).astype(np.float64)
    np.testing.assert_allclose(pool(holes, name)[0], BY_HAND[name](kept), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*OPERATORS, "center"])
def test_an_item_without_data_gives_nan_and_leaves_the_others(name):
    x = X.reshape(3, 8, 5, 5).copy() if name == "center" else X.copy()
    clean = pool(x, name)
    x[1] = np.nan
    found = pool(x, name)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], clean[[0, 2]])


def test_operators_are_joined_in_order():
    joined = pool(X, "max+mean")
    np.testing.assert_array_equal(joined, np.concatenate([pool(X, "max"), pool(X, "mean")], -1))


def test_center_weighs_the_middle_and_is_the_mean_of_a_constant():
    image = np.zeros((9, 9, 1), np.float32)
    image[4, 4] = 1
    corner = np.zeros((9, 9, 1), np.float32)
    corner[0, 0] = 1
    assert pool(image, "center")[0] > 10 * pool(corner, "center")[0]
    assert pool(np.full((7, 5, 2), 3, np.float32), "center") == pytest.approx([3, 3])


def test_pooling_refuses_what_it_does_not_know():
    with pytest.raises(ConfigError, match="'meen'"):
        pool(X, "meen")
    with pytest.raises(InputError, match="H, W, D"):
        pool(X[0], "center")


def test_spread_is_recommended_only_for_enough_pixels():
    assert recommended_pooling(10_000, 128) == "min+max+mean+std"
    assert recommended_pooling(100, 128) == "mean+std"
    assert recommended_pooling(4, 128) == "mean"
