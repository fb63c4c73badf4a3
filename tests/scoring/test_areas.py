"""Areas against the published example, its formulas written out, and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from bocage.errors import BocageWarning, InputError
from bocage.scoring.areas import estimate_areas

# Olofsson et al. (2014), section 5 and tables 8 and 9: deforestation, forest gain, stable forest,
# stable non-forest; rows are map classes. 30 m pixels.
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
HECTARES = PIXELS * 0.09


def test_the_published_example_is_reproduced() -> None:
    found = estimate_areas(COUNTS, HECTARES)
    assert np.round(found.area).tolist() == [21158, 11686, 285770, 581386]
    np.testing.assert_allclose(found.area_margin, [6158, 3756, 15510, 16282], rtol=2e-3)
    assert found.overall == pytest.approx(0.95, abs=0.005)
    assert found.overall_margin == pytest.approx(0.02, abs=0.005)
    assert np.round(found.users, 2).tolist() == [0.88, 0.73, 0.93, 0.96]
    assert np.round(found.users_margin, 2).tolist() == [0.07, 0.10, 0.04, 0.02]
    assert np.round(found.producers, 2).tolist() == [0.75, 0.85, 0.93, 0.96]
    assert np.round(found.producers_margin, 2).tolist() == [0.21, 0.25, 0.03, 0.02]
    # A share of 0.024 is 235,086 pixels; the map shows 200,000.
    assert estimate_areas(COUNTS, PIXELS).area[0] == pytest.approx(235_086, abs=5)


def test_formulas_written_out_in_loops_agree() -> None:
    rng = np.random.default_rng(0)
    n = rng.integers(5, 60, (3, 3))
    area = np.array([10.0, 50.0, 200.0])
    found = estimate_areas(n, area)
    for j in range(3):
        share = sum(area[i] / 260 * n[i, j] / n[i].sum() for i in range(3))
        variance = 0.0
        for i in range(3):
            w, s = area[i] / 260, n[i, j] / n[i].sum()
            variance += (w * w * s - (w * s) ** 2) / (n[i].sum() - 1)  # W p - p^2, eq. 10
        assert found.area[j] == pytest.approx(260 * share)
        assert found.area_margin[j] == pytest.approx(1.96 * 260 * variance**0.5)
        right = found.producers[j]
        total = sum(area[i] / n[i].sum() * n[i, j] for i in range(3))
        u = n[j, j] / n[j].sum()
        first = area[j] ** 2 * (1 - right) ** 2 * u * (1 - u) / (n[j].sum() - 1)
        second = 0.0
        for i in range(3):
            if i != j:
                s = n[i, j] / n[i].sum()
                second += area[i] ** 2 * s * (1 - s) / (n[i].sum() - 1)
        margin = 1.96 * ((first + right**2 * second) / total**2) ** 0.5
        assert found.producers_margin[j] == pytest.approx(margin)


def test_margins_cover_the_true_area_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([[0.85, 0.1, 0.05], [0.05, 0.9, 0.05], [0.02, 0.08, 0.9]])
    area = np.array([100.0, 300.0, 600.0])
    expected = area @ truth
    covered = np.zeros(3)
    # 500 places a class: with 100 the normal margin of the rare class covers only 91 in 100.
    for _ in range(1000):
        counts = np.stack([rng.multinomial(500, row) for row in truth])
        found = estimate_areas(counts, area)
        covered += np.abs(found.area - expected) <= found.area_margin
    assert (covered / 1000 > 0.92).all()
    assert (covered / 1000 < 0.98).all()


def test_a_class_without_area_needs_no_places_and_poor_samples_are_announced() -> None:
    counts = np.array([[40, 2, 1], [3, 50, 2], [0, 0, 0]])
    found = estimate_areas(counts, [10, 20, 0], ["water", "crop", "snow"])
    assert found.area.sum() == pytest.approx(30)
    assert np.isnan(found.users[2])
    assert found.producers[2] == 0
    text = found.markdown("km2")
    assert "| water | 10 | " in text
    assert found.rows()[1]["sampled"] == 55
    with pytest.raises(InputError, match="fewer than two sample places in the map's snow"):
        estimate_areas(counts, [10, 20, 1], ["water", "crop", "snow"])
    with pytest.warns(BocageWarning, match=r"water \(5\)"):
        estimate_areas([[4, 1], [3, 60]], [1, 2], ["water", "crop"])
    with pytest.raises(InputError, match="pass counts, not shares"):
        estimate_areas(counts / 100, [1, 1, 1])
    with pytest.raises(InputError, match=r"counts \(3, 3\), areas \(2,\)"):
        estimate_areas(counts, [1, 1])
    with pytest.raises(InputError, match="valid pixels per class"):
        estimate_areas(counts, [-1, 1, 1])
