"""Average precision and F1 against scikit-learn and torchmetrics."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from bocage.errors import InputError
from bocage.scoring.multilabel import Multilabel, score_ranking

sk = pytest.importorskip("sklearn.metrics")


@pytest.fixture(scope="module")
def tagged() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.random((600, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.0]
    return 1 / (1 + np.exp(-(rng.normal(-1, 1, (600, 6)) + 1.5 * target))), target


def test_scores_equal_scikit_learn_on_rounded_probabilities(tagged) -> None:
    p, t = tagged
    found = Multilabel(6).update(p, t).compute()
    rounded = np.floor(p * 512) / 512
    each = [sk.average_precision_score(t[:, i], rounded[:, i]) for i in range(5)]
    np.testing.assert_allclose([row["ap"].value for row in found.rows[:5]], each, rtol=1e-12)
    assert np.isnan(found.rows[5]["ap"].value)
    assert found["map_macro"].value == pytest.approx(np.mean(each), rel=1e-12)
    micro = sk.average_precision_score(t.ravel(), rounded.ravel())
    assert found["map_micro"].value == pytest.approx(micro, rel=1e-12)
    assert found["map_macro"].value == pytest.approx(
        np.mean([sk.average_precision_score(t[:, i], p[:, i]) for i in range(5)]), abs=5e-3
    )
    guess = p >= 0.5
    assert found["f1_micro"].value == pytest.approx(sk.f1_score(t, guess, average="micro"))
    expected = sk.f1_score(t, guess, average="macro", zero_division=0)
    assert found["f1_macro"].value == pytest.approx(expected)


def test_exact_ranking_equals_torchmetrics_for_scores_of_any_scale(tagged) -> None:
    tm = pytest.importorskip("torchmetrics.classification")
    import torch

    p, t = tagged
    logits = 30 * np.log(p)
    found = score_ranking(logits, t, block=np.arange(600) // 10)
    oracle = tm.MultilabelAveragePrecision(6, average="none")
    with warnings.catch_warnings():  # the last class has no positive sample
        warnings.simplefilter("ignore", UserWarning)
        each = oracle(torch.from_numpy(p), torch.from_numpy(t.astype(int))).numpy()
    np.testing.assert_allclose([row["ap"].value for row in found.rows[:5]], each[:5], rtol=1e-6)
    assert found["map_macro"].low < found["map_macro"].value < found["map_macro"].high
    assert found.n_blocks == 60
    assert "ap" in found.markdown()


def test_interval_of_the_ranking_is_that_of_scoring_every_draw_again(tagged) -> None:
    p, t = tagged
    p, t = p[:200, :3], t[:200, :3]
    found = score_ranking(p, t, n_bootstrap=400)["map_macro"]
    rng = np.random.default_rng(7)
    slow = []
    for _ in range(400):
        rows = rng.integers(0, 200, 200)
        slow.append(np.mean([sk.average_precision_score(t[rows, i], p[rows, i]) for i in range(3)]))
    low, high = np.quantile(slow, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.2 * (high - low))
    assert found.high == pytest.approx(high, abs=0.2 * (high - low))


def test_what_is_not_labels_and_probabilities_is_refused(tagged) -> None:
    p, t = tagged
    with pytest.raises(InputError, match="apply a sigmoid"):
        Multilabel(6).update(np.log(p), t)
    with pytest.raises(InputError, match="use Confusion"):
        Multilabel(6).update(p, t * 3)
    with pytest.raises(InputError, match="one column for each class"):
        Multilabel(5).update(p, t)
    with pytest.raises(InputError, match="finite scores"):
        score_ranking(np.where(t, np.nan, p), t)
