"""Nearest codes against faiss' flat binary index and against a full sort."""

import numpy as np
import pytest

from bocage.errors import InputError
from bocage.search.hamming import nearest_codes

faiss = pytest.importorskip("faiss", reason="the oracle is faiss")


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50_000, 24), dtype=np.uint8)


@pytest.mark.parametrize("engine", ["numkong", "numpy"])
@pytest.mark.parametrize("n_queries", [1, 3, 70])
def test_distances_equal_faiss_flat(codes: np.ndarray, engine: str, n_queries: int) -> None:
    queries = codes[100 : 100 + n_queries] ^ np.uint8(1)
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)
    expected, _ = index.search(queries, 25)
    distance, row = nearest_codes(queries, codes, 25, engine=engine)
    np.testing.assert_array_equal(distance, expected)
    found = np.bitwise_count(codes[row] ^ queries[:, None]).sum(axis=2, dtype=np.uint32)
    np.testing.assert_array_equal(found, distance)


@pytest.mark.parametrize("engine", ["numkong", "numpy"])
def test_ties_are_ordered_by_row_whatever_the_threads(engine: str) -> None:
    codes = np.random.default_rng(1).integers(0, 4, (40_000, 2), dtype=np.uint8)  # mostly ties
    queries = codes[:5]
    full = np.bitwise_count(codes[None] ^ queries[:, None]).sum(axis=2)
    expected = np.argsort(full, axis=1, kind="stable")[:, :300]
    for n_threads in (1, 2, 3):
        _, row = nearest_codes(queries, codes, 300, engine=engine, n_threads=n_threads)
        np.testing.assert_array_equal(row, expected)


def test_k_beyond_the_table_returns_the_whole_table_sorted(codes: np.ndarray) -> None:
    distance, row = nearest_codes(codes[:2], codes[:7], 50)
    assert row.shape == (2, 7)
    assert (np.diff(distance.astype(int), axis=1) >= 0).all()
    assert sorted(row[0].tolist()) == list(range(7))


def test_codes_of_another_width_or_type_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(InputError, match="same codec"):
        nearest_codes(codes[:1, :8], codes, 5)
    with pytest.raises(InputError, match="packed bits"):
        nearest_codes(codes[:1].astype(np.float32), codes, 5)
    with pytest.raises(InputError):
        nearest_codes(codes[:1], codes[:0], 5)
