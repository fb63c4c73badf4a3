"""Paired tests against statsmodels, closed forms and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from bocage.scoring.paired import (
    bootstrap_interval,
    equivalence,
    holm,
    mcnemar,
    non_inferiority,
)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 9), (10, 10), (40, 61), (1, 0)])
def test_mcnemar_equals_statsmodels(gained: int, lost: int) -> None:
    sm = pytest.importorskip("statsmodels.stats.contingency_tables")
    table = [[500, lost], [gained, 100]]
    expected = sm.mcnemar(table, exact=True).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_equivalence_holds_its_level_by_simulation() -> None:
    # True loss exactly at the margin: at most 5 % of studies may call it equivalent.
    rng = np.random.default_rng(0)
    n, margin = 2000, 0.02
    called = []
    for _ in range(3000):
        _, gained, lost = rng.multinomial(n, [0.94, 0.02, 0.04])
        called.append(equivalence(int(gained), int(lost), n, margin) < 0.05)
    assert 0.03 < np.mean(called) < 0.06
    # And with no true difference it is usually found.
    power = []
    for _ in range(500):
        _, gained, lost = rng.multinomial(n, [0.98, 0.01, 0.01])
        power.append(equivalence(int(gained), int(lost), n, margin) < 0.05)
    assert np.mean(power) > 0.95


def test_equivalence_of_unchanged_samples_needs_enough_of_them() -> None:
    # With no discordant pair Tango's statistic is sqrt(n d / (1 - d)): 540 samples at half a point.
    assert equivalence(0, 0, 530, 0.005) > 0.05 > equivalence(0, 0, 550, 0.005)
    assert non_inferiority(30, 0, 500, 0.005) < 1e-6
    assert non_inferiority(0, 30, 500, 0.005) > 0.99


def test_holm_equals_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.array([0.04, 0.001, 0.2, 0.012, 0.9, 0.011])
    np.testing.assert_allclose(holm(p), multitest.multipletests(p, method="holm")[1])
    assert holm(np.array([])).size == 0


def test_block_bootstrap_is_wider_where_samples_of_a_block_agree() -> None:
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(40), 25)
    values = rng.normal(size=40)[block]
    low, high = bootstrap_interval(values)
    wide_low, wide_high = bootstrap_interval(values, block=block)
    assert (wide_high - wide_low) > 3 * (high - low)
    # Standard error of the mean of 40 blocks.
    expected = 2 * 1.96 * np.unique(values).std() / np.sqrt(40)
    assert wide_high - wide_low == pytest.approx(expected, rel=0.2)
