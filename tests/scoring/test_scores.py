"""Scores of vectors against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scores need scikit-learn")

from bocage.errors import InputError
from bocage.scoring.folds import make_folds
from bocage.scoring.scores import (
    cosine_distances,
    f1_per_class,
    knn_cosine,
    knn_distances,
    knn_weighted,
    nearest_cosine,
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


# -- nearest neighbors ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 7, 2500)
    x = rng.normal(size=(7, 64))[y] + rng.normal(0, 3, (2500, 64)) + 1
    return x.astype(np.float32), y


def test_majority_of_five_equals_scikit_learn_on_the_same_folds(vectors) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    x, y = vectors
    for train, test in make_folds("random", labels=y).splits():
        model = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(x[train], y[train])
        np.testing.assert_array_equal(
            knn_cosine(x[train], y[train], x[test]), model.predict(x[test])
        )
    names = np.array(list("abcdefg"))[y]
    by_name = knn_cosine(x[train], names[train], x[test])
    np.testing.assert_array_equal(by_name, np.array(list("abcdefg"))[model.predict(x[test])])


def test_weighted_votes_equal_scikit_learn_on_the_same_folds(vectors) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    x, y = vectors
    for train, test in make_folds("random", labels=y).splits():
        model = KNeighborsClassifier(
            20,
            metric="cosine",
            algorithm="brute",
            weights=lambda distance: np.exp((1 - distance.astype(np.float64)) / 0.07),
        ).fit(x[train], y[train])
        found = knn_weighted(x[train], y[train], x[test])
        np.testing.assert_allclose(found, model.predict_proba(x[test]), atol=1e-5)
        np.testing.assert_array_equal(found.argmax(axis=1), model.predict(x[test]))


def test_many_labels_are_one_binary_neighbor_vote_per_class(vectors) -> None:
    x, y = vectors
    many = np.stack([y == 0, y >= 3, y % 2 == 1], axis=1).astype(int)
    together = knn_weighted(x[:2000], many[:2000], x[2000:])
    for column in range(3):
        alone = knn_weighted(x[:2000], many[:2000, column], x[2000:])
        np.testing.assert_allclose(together[:, column], alone[:, 1], atol=1e-6)


def test_neighbors_come_nearest_first_and_ties_in_order_of_rows(vectors) -> None:
    x, _ = vectors
    rows, cosine = nearest_cosine(x, x[:2100], 20)  # more than one part
    np.testing.assert_array_equal(rows[:, 0], np.arange(2100))
    assert (np.diff(cosine, axis=1) <= 0).all()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = np.argsort(-(unit[:50] @ unit.T), axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(rows[:50], expected)
    twins = np.repeat(np.eye(4, dtype=np.float32), 6, axis=0)
    rows, _ = nearest_cosine(twins, twins[::6], 3)
    np.testing.assert_array_equal(rows, np.arange(4)[:, None] * 6 + np.arange(3))
    few, _ = nearest_cosine(twins[:2], twins, 5)
    assert few.shape == (24, 2)


def test_vectors_without_data_are_refused(vectors) -> None:
    x, y = vectors
    with pytest.raises(InputError, match="test vectors, some with NaN"):
        knn_weighted(x, y, np.full((3, 64), np.nan, np.float32))
    with pytest.raises(InputError, match="0 training vectors"):
        knn_cosine(x[:0], y[:0], x)
    with pytest.raises(InputError, match="of one length"):
        knn_cosine(x, y, x[:, :5])
    with pytest.raises(InputError, match="at least one neighbor"):
        knn_weighted(x, y, x[:3], k=0)
    with pytest.raises(InputError, match="2500 training vectors and 7 labels"):
        knn_cosine(x, y[:7], x)
    with pytest.raises(InputError, match="class numbers from 0"):
        knn_weighted(x, y.astype(float), x[:3])
