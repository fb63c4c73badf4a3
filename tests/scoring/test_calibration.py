"""Calibration against torchmetrics and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from bocage.errors import InputError
from bocage.scoring.calibration import Calibration


@pytest.fixture(scope="module")
def forecasts() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2000, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    soft = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=1, keepdims=True)
    return p, (soft.cumsum(axis=1) > rng.random((2000, 1))).argmax(axis=1)


def test_ece_equals_torchmetrics(forecasts) -> None:
    tm = pytest.importorskip("torchmetrics.classification")
    import torch

    p, t = forecasts
    for n_bins in (10, 15):
        oracle = tm.MulticlassCalibrationError(4, n_bins=n_bins, norm="l1")
        expected = float(oracle(torch.from_numpy(p), torch.from_numpy(t)))
        found = Calibration(4, n_bins=n_bins).update(p, t).compute()
        assert found["ece"].value == pytest.approx(expected, rel=1e-6)
    assert found["overconfidence"].value > 0.1  # the truth was drawn from softer probabilities
    assert sum(row["samples"] for row in found.rows) == 2000


def test_brier_and_log_loss_equal_scikit_learn(forecasts) -> None:
    sk = pytest.importorskip("sklearn.metrics")
    p, t = forecasts
    found = Calibration(4).update(p, t).compute()
    assert found["log_loss"].value == pytest.approx(sk.log_loss(t, p), rel=1e-9)
    expected = sk.brier_score_loss(t, p, labels=range(4), scale_by_half=False)
    assert found["brier"].value == pytest.approx(expected, rel=1e-9)
    two = Calibration(2).update(p[:, 1], t == 1).compute()
    assert two["brier"].value == pytest.approx(2 * sk.brier_score_loss(t == 1, p[:, 1]), rel=1e-9)


def test_honest_probabilities_have_no_calibration_error_and_intervals_cover_zero() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    assert Calibration(2).update(p, rng.random(200_000) < p).compute()["ece"].value < 0.005
    covered = 0
    for _ in range(100):
        p = rng.random(2000)
        found = Calibration(2).update(p, rng.random(2000) < p).compute(n_bootstrap=200)
        covered += found["overconfidence"].low < 0 < found["overconfidence"].high
    assert 88 <= covered <= 100


def test_logits_and_wrong_classes_are_refused(forecasts) -> None:
    p, t = forecasts
    with pytest.raises(InputError, match="apply softmax"):
        Calibration(4).update(np.log(p), t)
    with pytest.raises(InputError, match="apply softmax"):
        Calibration(4).update(np.where(p > 0.9, np.nan, p), t)
    with pytest.raises(InputError, match="target class 4"):
        Calibration(4).update(p, t + 1)
    with pytest.raises(InputError, match=r"probabilities \(2000, 4\)"):
        Calibration(3).update(p, t)
