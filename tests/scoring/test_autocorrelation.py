"""The variogram against a double loop, and its range against fields of known range."""

from __future__ import annotations

import numpy as np
import pytest

from bocage.errors import InputError
from bocage.scoring.autocorrelation import measure_autocorrelation
from bocage.scoring.places import find_places


def gaussian_fields(xy, practical_range_m: float, n: int, *, nugget: float = 0.0, seed: int = 0):
    """Gaussian fields [samples, n] of exponential covariance, by its Cholesky root."""
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    covariance = (1 - nugget) * np.exp(-3 * apart / practical_range_m)
    covariance[np.diag_indices(len(xy))] = 1 + 1e-9
    return np.linalg.cholesky(covariance) @ np.random.default_rng(seed).normal(size=(len(xy), n))


def test_curve_equals_a_double_loop() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (120, 2))
    x = rng.normal(size=(120, 3)).cumsum(axis=1)
    found = measure_autocorrelation(x, find_places(xy_m=xy))
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    pairs = [
        (float(np.hypot(*(xy[i] - xy[j]))), float(0.5 * ((z[i] - z[j]) ** 2).mean()))
        for i in range(120)
        for j in range(i)
    ]
    longest = np.hypot(*np.ptp(xy, axis=0)) / 2
    kept = [(d, g) for d, g in pairs if d <= longest]
    edges = np.geomspace(np.quantile([d for d, _ in kept], 0.002), longest, 21)[1:-1]
    lags = [[(d, g) for d, g in kept if np.searchsorted(edges, d) == k] for k in range(20)]
    lags = [lag for lag in lags if len(lag) >= 30]
    np.testing.assert_array_equal(found.n_pairs, [len(lag) for lag in lags])
    np.testing.assert_allclose(found.lag_m, [np.mean([d for d, _ in lag]) for lag in lags])
    expected = [np.mean([g for _, g in lag]) for lag in lags]
    np.testing.assert_allclose(found.semivariance, expected, rtol=1e-5)


@pytest.mark.parametrize("practical_range_m", [500, 2000])
@pytest.mark.parametrize("n_samples", [600, 1100])  # all pairs, and pairs drawn at all scales
def test_range_of_a_simulated_field_is_found(practical_range_m, n_samples) -> None:
    xy = np.random.default_rng(1).uniform(0, 15_000, (n_samples, 2))
    fields = gaussian_fields(xy, practical_range_m, 10)
    ranges = [
        measure_autocorrelation(fields[:, i : i + 2], find_places(xy_m=xy)).range_m
        for i in range(0, 10, 2)
    ]
    assert np.median(ranges) == pytest.approx(practical_range_m, rel=0.35)


def test_labels_without_places_in_common_have_no_range() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 10_000, (1500, 2))
    found = measure_autocorrelation(rng.integers(0, 5, 1500), find_places(xy_m=xy))
    assert found.range_m == 0
    assert "no spatial autocorrelation" in found.describe()
    np.testing.assert_allclose(found.semivariance, 1, atol=0.2)


def test_nugget_is_the_share_that_neighbors_do_not_have_in_common() -> None:
    xy = np.random.default_rng(1).uniform(0, 10_000, (1100, 2))
    x = gaussian_fields(xy, 2000, 8, nugget=0.4)
    found = measure_autocorrelation(x, find_places(xy_m=xy))
    assert found.nugget == pytest.approx(0.4, abs=0.12)


def test_a_trend_over_the_whole_area_is_called_unbounded() -> None:
    xy = np.random.default_rng(0).uniform(0, 1000, (500, 2))
    found = measure_autocorrelation(xy[:, 0] * 1.0, find_places(xy_m=xy))
    assert not found.bounded
    assert "goes on beyond" in found.describe()
    assert found.markdown().count("\n") >= len(found.lag_m)


def test_degrees_and_metres_give_one_answer() -> None:
    xy = np.random.default_rng(1).uniform(-5000, 5000, (700, 2))
    x = gaussian_fields(xy, 1500, 1)[:, 0]
    lonlat = xy / 111_200 + np.array([180.0, 0.0])  # across the antimeridian, at the equator
    by_metres = measure_autocorrelation(x, find_places(xy_m=xy))
    by_degrees = measure_autocorrelation(x, find_places(lonlat=lonlat))
    assert by_degrees.range_m == pytest.approx(by_metres.range_m, rel=1e-3)
    with pytest.raises(InputError, match="700 values and 3 places"):
        measure_autocorrelation(x, find_places(xy_m=xy[:3]))
    with pytest.raises(InputError, match="NaN"):
        measure_autocorrelation(np.full(700, np.nan), find_places(xy_m=xy))
