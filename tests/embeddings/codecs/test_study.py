"""The study's parts against statsmodels, scikit-dimension, scikit-learn and closed forms."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scores need scikit-learn")

from bocage.embeddings.codecs.recommend import parse_tolerance, recommend
from bocage.embeddings.codecs.study import StudyOptions, evaluate
from bocage.embeddings.codecs.study.dimension import (
    bit_imbalance,
    describe_vectors,
    effective_rank,
    mle,
    mu_ratios,
    participation_ratio,
    spectrum,
    two_nn,
)
from bocage.embeddings.codecs.study.report import pareto, storage_cost
from bocage.errors import ConfigError, InputError
from bocage.scoring.folds import make_folds


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Six classes of 50 that overlap a little, in 30 places of ten neighbors each."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 50)
    x = rng.normal(0, 0.45, (6, 48))[y] + rng.normal(0, 0.7, (300, 48)) + 0.5
    places = rng.uniform(-40, 40, (30, 2))[np.arange(300) // 10] + rng.normal(0, 0.01, (300, 2))
    return x.astype(np.float32), np.array(list("abcdef"))[y], places


# -- dimension ------------------------------------------------------------------------------------


def manifold(d: int, dims: int = 40, n: int = 3000) -> np.ndarray:
    rng = np.random.default_rng(1)
    flat = rng.uniform(-1, 1, (n, d))
    turn = np.linalg.qr(rng.normal(size=(dims, dims)))[0][:d]
    return (flat @ turn).astype(np.float32)


@pytest.mark.parametrize("d", [2, 5])
def test_intrinsic_dimensions_of_known_manifolds(d: int) -> None:
    skdim = pytest.importorskip("skdim.id")
    x = manifold(d)
    ratio = mu_ratios(x, 20)
    assert two_nn(ratio[:, 0], ratio[:, 1]) == pytest.approx(d, rel=0.1)
    assert mle(ratio) == pytest.approx(d, rel=0.15)
    assert participation_ratio(spectrum(x)) == pytest.approx(d, rel=0.05)
    assert two_nn(ratio[:, 0], ratio[:, 1]) == pytest.approx(
        skdim.TwoNN().fit(x).dimension_, rel=0.03
    )
    reference = skdim.MLE(K=20).fit(x, n_neighbors=20)
    assert mle(ratio) == pytest.approx(1 / np.mean(1 / reference.dimension_pw_), rel=1e-3)


def test_spectrum_is_that_of_scikit_learn_and_estimators_fail_loudly() -> None:
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).normal(size=(500, 12)).astype(np.float32) * np.arange(1, 13)
    expected = PCA().fit(x).explained_variance_ratio_
    variance = spectrum(x)
    np.testing.assert_allclose(variance / variance.sum(), expected, rtol=1e-4)
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    facts = describe_vectors(x)
    assert facts["pca_variance"][8] == pytest.approx(expected[:8].sum(), rel=1e-4)
    assert len({facts["mle_k20"], facts["two_nn"], facts["participation_ratio"]}) == 3
    with pytest.raises(InputError, match="different vectors"):
        describe_vectors(np.ones((100, 12), np.float32))


def test_bit_imbalance_of_known_bits() -> None:
    codes = np.packbits(np.array([[1, 1, 0], [1, 0, 0]], np.uint8), axis=1)
    assert bit_imbalance(codes, 3) == pytest.approx((0.5 + 0 + 0.5) / 3)


# -- the whole ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(labelled):
    x, labels, places = labelled
    options = StudyOptions(
        codecs=("int8", "int2", "binary_mean", "pca16-int8", "pca64-int8"),
        n_bootstrap=100,
        block_km=20,
        n_folds=3,
    )
    return evaluate(x, labels, lonlat=places, options=options, model="some-model")


def test_baseline_scores_are_those_of_scikit_learn(study, labelled) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    x, labels, _ = labelled
    folds = make_folds("random", n_folds=3, labels=labels)
    right = np.zeros(len(x), bool)
    for i in range(3):
        train, test = folds.fold != i, folds.fold == i
        model = KNeighborsClassifier(5, metric="cosine", algorithm="brute")
        right[test] = model.fit(x[train], labels[train]).predict(x[test]) == labels[test]
    base = next(r for r in study.rows if r["codec"] == "float32" and r["split"] == "random")
    assert base["knn"] == pytest.approx(right.mean(), abs=1e-4)


def test_every_codec_has_its_row_for_both_splits(study) -> None:
    assert [(r["split"], r["codec"]) for r in study.rows] == [
        (split, codec)
        for split in ("random", "spatial")
        for codec in ("float32", "int8", "int2", "binary_mean", "pca16-int8")
    ]
    assert any("pca64-int8" in note for note in study.notes)
    for row in study.rows:
        assert row["knn_low"] <= row["knn_difference"] <= row["knn_high"]
        if row["codec"] != "float32":
            assert row["knn_p_equivalence_holm"] >= row["knn_p_equivalence"]
    by = {r["codec"]: r for r in study.rows if r["split"] == "random"}
    assert by["int8"]["recall@10"] > by["int2"]["recall@10"] > by["binary_mean"]["recall@10"]
    assert by["binary_mean"]["knn_hamming"] > 0.3
    assert 0 <= by["binary_mean"]["bit_imbalance"] < 0.1
    assert by["float32"]["code_bytes"] == 4 * 48


def test_reports_are_written_and_priced_by_arithmetic(study, tmp_path) -> None:
    study.write(tmp_path)
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["model"] == "some-model"
    assert len(content["rows"]) == 10
    assert "| pca16-int8 | 16 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "table.csv").read_text().count("\n") == 11
    # The seeds: 1.5e12 pixels x 4,096 bytes = 6.1 PB and 1.7 million dollars a year.
    cost = storage_cost(4096, 0, StudyOptions(area_km2=150e6, gsd_m=10))
    assert cost["area_tb"] == pytest.approx(6144)
    assert cost["dollars_per_year"] == pytest.approx(1.696e6, rel=1e-3)
    pytest.importorskip("matplotlib")
    assert (tmp_path / "pareto_spatial.png").stat().st_size > 5000


def test_pareto_front_drops_what_another_codec_beats() -> None:
    rows = [
        {"codec": n, "disk_bytes": b, "knn": s}
        for n, b, s in [("a", 10, 0.8), ("b", 12, 0.7), ("c", 20, 0.9), ("d", 20, 0.85)]
    ]
    assert [r["codec"] for r in pareto(rows, "knn")] == ["a", "c"]


def test_studies_refuse_what_cannot_be_scored(labelled) -> None:
    x, labels, _ = labelled
    with pytest.raises(InputError, match="300 vectors, 10 labels"):
        evaluate(x, labels[:10])
    with pytest.raises(InputError, match="at least two"):
        evaluate(x, np.zeros(300))
    with pytest.raises(InputError, match="300 classes in 300 valid vectors"):
        evaluate(x, np.arange(300))
    with pytest.raises(ConfigError, match="codec 'int9'"):
        evaluate(x, labels, options=StudyOptions(codecs=("int9",)))
    with pytest.raises(ConfigError, match="margin"):
        StudyOptions(margin=2)
    small = evaluate(x, labels, options=StudyOptions(codecs=(), n_folds=2, probe=False))
    assert "no places were given" in small.notes[0]


# -- recommendation -------------------------------------------------------------------------------


def test_recommend_with_labels_says_when_a_sample_is_too_small(labelled) -> None:
    x, labels, places = labelled
    names = ("int2", "int8", "float16")
    found = recommend(x, labels, lonlat=places, candidates=names, tolerance="0.5pt", block_km=20)
    assert not found.proven
    assert "at least 539, here are 300" in found.reason
    loose = recommend(x, labels, lonlat=places, candidates=names, tolerance="5%", block_km=20)
    assert loose.proven
    assert loose.codec in ("int8", "int2")
    assert "spatial folds of 300 samples" in loose.reason


def test_recommend_without_labels_keeps_neighbors() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 6)) @ rng.normal(size=(6, 64)) + rng.normal(0, 0.01, (3000, 64))
    x = x.astype(np.float32)
    names = ("binary_mean", "int4_mse", "int8", "pca16-int8", "float16")
    found = recommend(x, candidates=names, tolerance="10%")
    assert found.proven
    losses = {row["codec"]: row["loss"] for row in found.table}
    assert losses[found.codec] <= 0.1
    smaller = [
        r
        for r in found.table
        if r["code_bytes"] < next(q["code_bytes"] for q in found.table if q["codec"] == found.codec)
    ]
    assert all(r["p_loss_holm"] >= 0.05 for r in smaller)
    assert "no labels were given" in found.reason


def test_tolerances_are_shares_or_points() -> None:
    assert parse_tolerance("0.5pt") == parse_tolerance("0.5%") == parse_tolerance(0.005) == 0.005
    for bad in ("half", "0.5", 0, 3, "90%"):
        with pytest.raises(ConfigError, match="tolerance"):
            parse_tolerance(bad)
