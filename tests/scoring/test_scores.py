"""Scores of vectors against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scores need scikit-learn")

from bocage.scoring.scores import (
    cosine_distances,
    f1_per_class,
    knn_distances,
    retrieval_recall,
    true_neighbors,
)


def test_f1_equals_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    np.testing.assert_allclose(f1_per_class(y, p, 4), f1_score(y, p, average=None), rtol=1e-6)


def test_votes_equal_scikit_learn_on_distances_without_ties() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    distance = rng.random((40, 90))
    labels = rng.integers(0, 3, 90)
    model = KNeighborsClassifier(5, metric="precomputed").fit(np.zeros((90, 90)), labels)
    np.testing.assert_array_equal(knn_distances(distance, labels), model.predict(distance))


def test_recall_never_counts_the_query_itself() -> None:
    x = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    queries = np.arange(0, 200, 10)
    truth = true_neighbors(x, queries, 10)
    assert not (truth == queries[:, None]).any()
    assert retrieval_recall(cosine_distances(x[queries], x), queries, truth) == 1.0
    # Distances that know only the query itself find nothing but chance.
    blind = np.ones((len(queries), 200))
    blind[np.arange(len(queries)), queries] = 0
    assert retrieval_recall(blind, queries, truth) < 0.2
