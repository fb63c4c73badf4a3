"""Product codes of dealt-out principal axes, beside faiss, scikit-learn and other product codes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from bocage.embeddings.codecs import load_codec, make_codec, save_codec
from bocage.embeddings.codecs.balanced import deal_axes
from bocage.errors import InputError
from bocage.scoring.scores import cosine_distances, retrieval_recall, true_neighbors

faiss = pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """As embeddings are: a common mean, and variances that fall over a hundredfold."""
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(48, 48)))
    x = rng.normal(size=(6000, 48)) * np.geomspace(1, 0.01, 48) @ turn + 2 * turn[0]
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def codec(vectors: np.ndarray):
    return make_codec("balanced_pq6", seed=1).fit(vectors[:4000])


def test_the_axes_are_the_principal_ones(codec, vectors: np.ndarray) -> None:
    sklearn = pytest.importorskip("sklearn.decomposition")
    axes = sklearn.PCA(48, svd_solver="full").fit(vectors[:4000].astype(np.float64)).components_
    overlap = np.abs(codec.basis.T @ axes.T)
    np.testing.assert_allclose(overlap.max(axis=1), 1, atol=1e-2)
    assert sorted(overlap.argmax(axis=1)) == list(range(48))


def test_axes_are_dealt_out_as_well_as_any_order_can() -> None:
    variance = np.array([9.0, 7.0, 3.0, 2.0, 1.5, 1.0])
    products = np.prod(variance[deal_axes(variance, 3, 2)].reshape(3, 2), axis=1)
    best = min(
        np.ptp(np.log(np.prod(np.array(order).reshape(3, 2), axis=1)))
        for order in itertools.permutations(variance)
    )
    assert np.ptp(np.log(products)) == pytest.approx(best)
    # Axes without variance fill up evenly, none is dealt twice.
    order = deal_axes(np.array([1.0, 0.5, 0, 0, 0, 0]), 2, 3)
    assert sorted(order) == list(range(6))
    assert (order[:3] < 2).sum() == 1


def test_distances_and_codes_are_those_of_faiss(codec, vectors: np.ndarray) -> None:
    q = codec.encode(vectors[4000:])
    index = faiss.IndexPQ(48, 6, 8, faiss.METRIC_L2)
    faiss.copy_array_to_vector(codec.centers.reshape(-1), index.pq.centroids)
    index.is_trained = True
    turned = (vectors - codec.mean) @ codec.basis
    index.add(turned[4000:])
    np.testing.assert_array_equal(
        faiss.vector_to_array(index.codes).reshape(-1, 6), codec.encode(vectors[4000:])
    )
    apart, rows = index.search(turned[:5], 50)
    ours = codec.distances(vectors[:5], q)
    np.testing.assert_allclose(np.take_along_axis(ours, rows, axis=1), apart, rtol=1e-4, atol=1e-5)


def test_distances_are_those_to_decoded_vectors(vectors: np.ndarray) -> None:
    # Two bytes for 16 of 48 axes: what lies off the axes counts too.
    codec = make_codec("balanced_pq2").fit(vectors[:4000])
    assert codec.basis.shape == (48, 16)
    q = codec.encode(vectors[4000:4100])
    decoded = codec.decode(q)
    expected = np.square(vectors[:7, None] - decoded[None]).sum(axis=2)
    np.testing.assert_allclose(codec.distances(vectors[:7], q), expected, atol=1e-5)


def test_bits_are_the_sides_of_the_mean_of_decoded_vectors(codec, vectors: np.ndarray) -> None:
    q = codec.encode(vectors[:300])
    bits, n_bits = codec.look(q)
    assert n_bits == 48
    above = codec.decode(q) > vectors[:4000].mean(axis=0)
    agree = np.unpackbits(bits, axis=1, count=48) == above
    assert agree.mean() > 0.999  # up to values at the threshold
    exact, _ = (
        make_codec("binary_mean")
        .fit(vectors[:4000])
        .look(make_codec("binary_mean").fit(vectors[:4000]).encode(vectors[:300]))
    )
    same = np.unpackbits(exact, axis=1, count=48) == np.unpackbits(bits, axis=1, count=48)
    assert same.mean() > 0.8


def test_fewer_neighbors_are_lost_than_by_codes_of_the_same_length(vectors: np.ndarray) -> None:
    queries = np.arange(0, 6000, 40)
    truth = true_neighbors(vectors, queries, 10)
    recall = {}
    for name in ("balanced_pq6", "pq6", "opq6", "binary_mean"):
        codec = make_codec(name).fit(vectors)
        q = codec.encode(vectors)
        apart = codec.distances(vectors[queries], q)
        recall[name] = retrieval_recall(apart, queries, truth)
    assert recall["balanced_pq6"] > max(v for k, v in recall.items() if k != "balanced_pq6")
    assert recall["balanced_pq6"] > recall["binary_mean"] + 0.1
    decoded = make_codec("balanced_pq24").fit(vectors)
    x = decoded.decode(decoded.encode(vectors))
    assert retrieval_recall(cosine_distances(x[queries], x), queries, truth) > 0.8


def test_a_saved_codec_needs_no_faiss_to_compare(
    codec, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = codec.encode(vectors[:50])
    save_codec(codec, tmp_path)
    again = load_codec(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    np.testing.assert_array_equal(again.distances(vectors[:3], q), codec.distances(vectors[:3], q))
    np.testing.assert_array_equal(again.decode(q), codec.decode(q))


def test_too_few_vectors_or_dimensions_are_refused(vectors: np.ndarray) -> None:
    with pytest.raises(InputError, match="at least 256"):
        make_codec("balanced_pq6").fit(vectors[:200])
    with pytest.raises(InputError, match="use balanced_pq6"):
        make_codec("balanced_pq64").fit(vectors)
    constant = np.ones((300, 16), np.float32)
    codec = make_codec("balanced_pq2").fit(constant)
    np.testing.assert_allclose(codec.decode(codec.encode(constant)), constant, atol=1e-6)
