"""Measures of change against scipy, scikit-learn and naive loops; linear stages and their mean."""

import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.spatial.distance import cosine
from scipy.stats import chi2
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from bocage.change import ChangeConfig, fit_measure, open_pair
from bocage.change.irmad import fit_mad
from bocage.change.moments import difference_moments, sample_pair
from bocage.errors import BocageWarning, InputError

from .conftest import CHANGED, write_bands, write_store


def measured(pair, method, **options):
    measure = fit_measure(pair, ChangeConfig(method=method, **options))
    rows, cols = pair.grid.shape_yx
    return measure, measure.apply(*pair.read(slice(0, rows), slice(0, cols)))


@pytest.fixture
def pair(stores):
    return open_pair(*stores)


@pytest.fixture
def known(years):
    """Rows [n, D] of both years where both have data, and which cells these are."""
    keep = ~(np.isnan(years[0][0]) | np.isnan(years[1][0]))
    return years[0][:, keep].T, years[1][:, keep].T, keep


def test_magnitude_and_cosine_are_those_of_numpy_and_scipy(pair, known):
    before, after, keep = known
    _, magnitude = measured(pair, "magnitude")
    want = np.linalg.norm(after - before, axis=1)
    np.testing.assert_allclose(magnitude[0][keep], want, rtol=1e-5)
    _, distance = measured(pair, "cosine")
    some = np.arange(0, len(before), 97)
    want = [cosine(before[i], after[i]) for i in some]
    np.testing.assert_allclose(distance[0][keep][some], want, atol=1e-6)
    for x in (magnitude, distance):
        np.testing.assert_array_equal(np.isnan(x[0]), ~keep)


def test_cosine_of_vectors_without_length(tmp_path):
    zero, one = np.zeros((3, 4, 4), np.float32), np.ones((3, 4, 4), np.float32)
    for a, b, want in ((zero, zero, 0), (zero, one, 1), (one, -one, 2), (one, 5 * one, 0)):
        name = f"{id(a)}_{id(b)}_{want}"
        stores = [
            write_store(tmp_path / f"{name}{i}.zarr", [x], (2024 + i,), shard_cells=4)
            for i, x in enumerate((a, b))
        ]
        _, found = measured(open_pair(*stores), "cosine")
        np.testing.assert_allclose(found, want, atol=1e-6)


def test_components_are_those_of_scikit_learn(pair, known):
    before, after, keep = known
    measure, x = measured(pair, "pca", components=4)
    oracle = PCA(4, svd_solver="full").fit((after - before).astype(np.float64))
    want = oracle.transform(after - before)
    sign = np.sign((measure.basis * oracle.components_).sum(axis=1))
    np.testing.assert_allclose(x[:, keep].T * sign, want, atol=1e-5)
    np.testing.assert_allclose(measure.explained, oracle.explained_variance_ratio_, rtol=1e-6)
    np.testing.assert_allclose(measure.basis @ measure.basis.T, np.eye(4), atol=1e-12)


def test_streamed_moments_are_those_of_all_rows_at_once(pair, known, monkeypatch):
    monkeypatch.setattr("bocage.change.moments._PIECE_BYTES", 32 * 32 * 12 * 4)
    before, after, _ = known
    d = (after - before).astype(np.float64)
    found = difference_moments(pair)
    assert found.n == len(d)
    np.testing.assert_allclose(found.mean, d.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.covariance, np.cov(d.T, bias=True), rtol=1e-9, atol=1e-12)


def test_change_vectors_are_differences_of_standardized_bands(tmp_path, years):
    a, b = (np.nan_to_num(x[:4] * 900 + 3000, nan=-1) for x in years)
    pair = open_pair(
        write_bands(tmp_path / "a.tif", a, nodata=-1), write_bands(tmp_path / "b.tif", b, nodata=-1)
    )
    _, x = measured(pair, "cva")
    keep = (a[0] != -1) & (b[0] != -1)
    d = StandardScaler().fit_transform(b[:, keep].T) - StandardScaler().fit_transform(a[:, keep].T)
    np.testing.assert_allclose(x[0][keep], np.linalg.norm(d, axis=1), rtol=1e-4)
    angle = [np.degrees(np.arccos(v @ np.ones(4) / 2 / np.linalg.norm(v))) for v in d]
    np.testing.assert_allclose(x[1][keep], angle, atol=0.05)


def naive_irmad(x, y, rounds):
    """Nielsen's algorithm with a generalized eigenproblem, as in the paper's equations."""
    n, d = x.shape
    weight = np.ones(n)
    for _ in range(rounds):
        s = np.cov(np.hstack([x, y]).T, aweights=weight, ddof=0)
        mean = np.average(np.hstack([x, y]), axis=0, weights=weight)
        sxx, sxy, syy = s[:d, :d], s[:d, d:], s[d:, d:]
        squares, a = eigh(sxy @ np.linalg.solve(syy, sxy.T), sxx)
        rho = np.sqrt(squares)
        b = np.linalg.solve(syy, sxy.T @ a) / rho
        mads = (x - mean[:d]) @ a - (y - mean[d:]) @ b
        statistic = (mads**2 / (2 * (1 - rho))).sum(axis=1)
        weight = 1 - chi2.cdf(statistic, d)
    return statistic, rho


@pytest.fixture(scope="module")
def landsat_like():
    """Two images of four bands that a linear map joins, but for 8 % of changed pixels."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (9000, 4)) @ rng.normal(0, 30, (4, 4)) + 100
    y = x @ rng.normal(0, 1, (4, 4)) + rng.normal(0, 8, (9000, 4)) + 20
    changed = rng.random(9000) < 0.08
    y[changed] += rng.normal(0, 300, (changed.sum(), 4))
    return x, y, changed


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_irmad_is_the_algorithm_of_the_paper(landsat_like, rounds):
    x, y, _ = landsat_like
    found = fit_mad(x, y, max_rounds=1) if rounds == 1 else _after(x, y, rounds)
    statistic, rho = naive_irmad(x, y, rounds)
    np.testing.assert_allclose(found.correlations, rho, rtol=1e-9)
    np.testing.assert_allclose(found.chi_square(x, y), statistic, rtol=1e-6)


def _after(x, y, rounds):
    with pytest.warns(BocageWarning, match="has not come to rest"):
        return fit_mad(x, y, max_rounds=rounds, tolerance=0)


def test_irmad_does_not_see_linear_changes_of_an_image(landsat_like):
    x, y, _changed = landsat_like
    found = fit_mad(x, y)
    mixed = y @ np.random.default_rng(2).normal(0, 5, (4, 4)) - 77
    again = fit_mad(x, mixed)
    np.testing.assert_allclose(again.chi_square(x, mixed), found.chi_square(x, y), rtol=1e-5)


def test_without_change_the_statistic_of_one_round_is_chi_square():
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (20_000, 4)) @ rng.normal(0, 30, (4, 4))
    y = x @ rng.normal(0, 1, (4, 4)) + rng.normal(0, 8, (20_000, 4))
    z = fit_mad(x, y, max_rounds=1).chi_square(x, y)
    np.testing.assert_allclose(
        np.quantile(z, [0.1, 0.5, 0.9, 0.99]), chi2.ppf([0.1, 0.5, 0.9, 0.99], 4), rtol=0.04
    )


def test_irmad_refuses_bands_without_content(landsat_like):
    x, y, _ = landsat_like
    with pytest.raises(InputError, match="band 3 is the same everywhere"):
        fit_mad(np.where(np.arange(4) == 2, 5.0, x), y)
    with pytest.raises(InputError, match=r"second image .* combination of the others"):
        fit_mad(x, np.concatenate([y[:, :3], y[:, :1] + y[:, 1:2]], axis=1))
    with pytest.raises(InputError, match="30 cells"):
        fit_mad(x[:30], y[:30])


def test_a_sample_of_the_pair_is_even_and_the_same_each_time(pair, known):
    before, _ = sample_pair(pair, 4000)
    again, _ = sample_pair(pair, 4000)
    np.testing.assert_array_equal(before, again)
    assert 3300 < len(before) < 4300
    whole, after = sample_pair(pair, 10**6)
    assert len(whole) == len(known[0])
    np.testing.assert_allclose(np.sort(after[:, 0]), np.sort(known[1][:, 0]))


def halve(x):
    h, w = (n // 2 * 2 for n in x.shape[1:])
    return x[:, :h, :w].reshape(len(x), h // 2, 2, w // 2, 2).mean(axis=(2, 4))


@pytest.mark.parametrize("method", ["difference", "pca"])
def test_linear_stages_of_mean_cells_are_means_of_linear_stages(pair, years, method):
    measure, x = measured(pair, method)
    assert measure.is_linear
    full = ~np.isnan(halve(x[:1])[0])
    coarse = measure.apply(halve(years[0]), halve(years[1]))
    np.testing.assert_allclose(coarse[:, full], halve(x)[:, full], atol=1e-5)


def test_magnitude_is_not_linear_and_says_so(pair, years):
    measure, x = measured(pair, "magnitude")
    assert not measure.is_linear
    coarse = measure.apply(halve(years[0]), halve(years[1]))
    assert np.nanmax(np.abs(coarse - halve(x))) > 0.01


def test_the_changed_area_stands_out(pair):
    for method in ("magnitude", "cosine"):
        _, x = measured(pair, method)
        inside = x[0][CHANGED]
        outside = np.delete(x[0], np.s_[CHANGED[0]], axis=0)
        assert np.nanpercentile(inside, 5) > np.nanpercentile(outside, 95)
