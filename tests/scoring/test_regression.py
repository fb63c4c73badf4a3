"""Scores of numbers against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from bocage.errors import InputError
from bocage.scoring.regression import Regression


@pytest.mark.parametrize("shape", [(500,), (30, 40), (6, 20, 30)])
def test_scores_equal_scikit_learn(shape) -> None:
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    y = rng.normal(100, 5, shape).astype(np.float32)
    p = (y + rng.normal(0.3, 2, shape)).astype(np.float32)
    found = Regression().update(p, y).compute()
    a, b = y.ravel().astype(float), p.ravel().astype(float)
    assert found["r2"].value == pytest.approx(sk.r2_score(a, b), abs=1e-9)
    assert found["mae"].value == pytest.approx(sk.mean_absolute_error(a, b), rel=1e-9)
    assert found["rmse"].value == pytest.approx(sk.root_mean_squared_error(a, b), rel=1e-9)
    assert found["bias"].value == pytest.approx((b - a).mean(), rel=1e-9)
    if shape != (30, 40):
        assert found["r2"].low < found["r2"].value < found["r2"].high
    by_pixel = Regression().update(p, y, block=np.arange(y.size).reshape(shape) % 9).compute()
    assert by_pixel["r2"].value == pytest.approx(found["r2"].value, abs=1e-9)
    assert by_pixel.n_blocks == 9


def test_numbers_that_are_large_and_vary_little_keep_their_r2() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    y = 1.6e9 + rng.normal(0, 1, 1000)
    p = y + rng.normal(0, 0.3, 1000)
    found = Regression(center=1.6e9).update(p, y).compute()["r2"].value
    assert found == pytest.approx(sk.r2_score(y, p), abs=1e-6)


def test_nodata_is_ignored_only_when_asked() -> None:
    y = np.array([1.0, np.nan, 3.0, 4.0])
    p = np.array([1.5, 7.0, 3.0, 4.5])
    found = Regression().update(p, y, ignore_nan=True).compute()
    assert found.n == 3
    assert found["mae"].value == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="NaN or infinity among targets"):
        Regression().update(p, y)
    with pytest.raises(InputError, match="predictions of known targets"):
        Regression().update(y, p, ignore_nan=True)
    with pytest.raises(InputError, match="one number predicted for each target"):
        Regression().update(p[:, None], y)
    constant = Regression().update(p[2:], np.array([2.0, 2.0])).compute()
    assert np.isnan(constant["r2"].value)
