"""The k nearest of millions of binary codes by Hamming distance, exactly.

The rows are walked in blocks that stay in cache; a block's distances to all queries are computed at
once, and only those below a query's current k-th distance are looked at again. Two threads, each on
its half of the rows. Equal distances are ordered by row, so the answer does not depend on blocks or
threads.

Distances come from numkong where it is installed (AVX-512, NEON; three times the speed of faiss'
flat binary index in batches, bench/search_hamming.py), else from numpy.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bocage.types import CodeArray

    _Distances = Callable[[NDArray[np.uint8]], NDArray[np.uint32]]

ENGINES = ("auto", "numkong", "numpy")

# Rows x queries per block: 1 M distances are 4 MB, and with 128-byte codes and 200 queries the
# block of codes is 0.6 MB; both stay in L2 and L3 (measured 2026-11; 0.25 M and 4 M were slower).
_BLOCK_DISTANCES = 1 << 20
_BLOCK_ROWS = 1 << 14


def nearest_codes(
    queries: CodeArray,
    codes: CodeArray,
    k: int,
    *,
    n_threads: int | None = None,
    engine: str = "auto",
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Find the k rows of `codes` [N, bytes] that differ in the fewest bits from each query.

    Returns distances [Q, k] and rows [Q, k], nearest first, ties by row; k columns become N where
    the table is shorter. Memory beside `codes` is a few MB per thread.
    """
    queries, codes = _check(queries, codes, k)
    k = min(k, len(codes))
    threads = max(1, min(n_threads or os.cpu_count() or 1, len(codes) // 4096 or 1))
    bounds = np.linspace(0, len(codes), threads + 1).astype(int)

    def search(part: int) -> _Best:
        rows_of = int(bounds[part]), int(bounds[part + 1])
        return _search_rows(queries, codes, rows_of, k, engine)

    if threads == 1:
        best = search(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(search, range(threads)))
        best = parts[0]
        for other in parts[1:]:
            best.add(*other.flat())
        best.settle()
    return best.table()


class _Best:
    """The k nearest so far of each query, and candidates not yet sorted in."""

    def __init__(self, n_queries: int, k: int, n_bits: int) -> None:
        self.n_queries = n_queries
        self.k = k
        self.limit = np.full(n_queries, n_bits + 1, np.uint32)
        self._pending: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        self._n_pending = 0

    def add(self, query: NDArray[Any], distance: NDArray[Any], row: NDArray[Any]) -> None:
        self._pending.append((query, distance, row))
        self._n_pending += len(query)
        if self._n_pending > 8 * self.n_queries * self.k + 4096:
            self.settle()

    def settle(self) -> None:
        """Sort the candidates in, keep k per query, and tighten the limits."""
        query, distance, row = self.flat()
        if len(query) == 0:
            return
        order = np.lexsort((row, distance, query))
        query, distance, row = query[order], distance[order], row[order]
        starts = np.searchsorted(query, np.arange(self.n_queries + 1))
        rank = np.arange(len(query)) - starts[query]
        keep = rank < self.k
        self._pending = [(query[keep], distance[keep], row[keep])]
        self._n_pending = int(keep.sum())
        full = np.flatnonzero(np.diff(starts) >= self.k)
        self.limit[full] = distance[starts[full] + self.k - 1]

    def flat(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        if not self._pending:
            return (np.zeros(0, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.int64))
        columns = zip(*self._pending, strict=True)
        query, distance, row = (np.concatenate(column) for column in columns)
        return query, distance, row

    def table(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        _, distance, row = self.flat()
        shape = (self.n_queries, self.k)
        return distance.reshape(shape), row.reshape(shape)


def _search_rows(
    queries: CodeArray, codes: CodeArray, rows_of: tuple[int, int], k: int, engine: str
) -> _Best:
    first, last = rows_of
    n_queries = len(queries)
    best = _Best(n_queries, k, 8 * codes.shape[1])
    rows = max(256, min(_BLOCK_ROWS, _BLOCK_DISTANCES // n_queries))
    distances = distance_function(queries, rows, engine)
    below = np.empty((rows, n_queries), np.bool_)
    for start in range(first, last, rows):
        stop = min(start + rows, last)
        block = distances(codes[start:stop])
        if start == first:
            # Nothing is known yet: the k-th smallest of the first block is already a good limit.
            kth = min(k, len(block)) - 1
            best.limit = np.minimum(
                best.limit, np.partition(block, kth, axis=0)[kth].astype(np.uint32) + 1
            )
            if len(block) < k:
                best.limit[:] = 8 * codes.shape[1] + 1
        np.less(block, best.limit, out=below[: stop - start])
        hits = np.flatnonzero(below[: stop - start])
        if len(hits):
            row, query = np.divmod(hits, n_queries)
            best.add(query, block[row, query], row + start)
            best.settle()
    return best


def distance_function(queries: CodeArray, rows: int, engine: str) -> _Distances:
    """A function from a block of codes [n, bytes] to its distances [n, Q] to all queries."""
    numkong = _import_numkong() if engine in ("auto", "numkong") else None
    if numkong is None:
        if engine == "numkong":
            raise InputError(
                got="engine numkong without the package",
                expected="numkong",
                fix='pip install "bocage[search]", or engine="numpy"',
            )
        return _numpy_distances(queries, rows)
    if len(queries) == 1:

        def one(block: NDArray[np.uint8]) -> NDArray[np.uint32]:
            # cdist streams; the packed kernel below reads one query at half its speed.
            found = np.asarray(numkong.cdist(queries, block, "hamming", dtype="uint1"))
            distances: NDArray[np.uint32] = found.astype(np.uint32).reshape(-1, 1)
            return distances

        return one
    packed = numkong.hammings_pack(queries, dtype="uint1")
    out = numkong.zeros((rows, len(queries)), dtype="uint32")
    table = np.asarray(out)

    def many(block: NDArray[np.uint8]) -> NDArray[np.uint32]:
        n = len(block)
        # numkong writes whole tensors only: a shorter one over the same memory for the last block.
        view = numkong.from_pointer(table.ctypes.data, (n, len(queries)), "uint32", owner=out)
        numkong.hammings_packed(block, packed, out=view)
        return table[:n]

    return many


def _numpy_distances(queries: CodeArray, rows: int) -> _Distances:
    width = queries.shape[1]
    word = np.uint64 if width % 8 == 0 else np.uint8
    words = np.ascontiguousarray(queries).view(word)
    out = np.empty((rows, len(queries)), np.uint32)

    def many(block: NDArray[np.uint8]) -> NDArray[np.uint32]:
        values = np.ascontiguousarray(block).view(word)
        for i, query in enumerate(words):
            counts = np.bitwise_count(values ^ query)
            out[: len(values), i] = counts.sum(axis=1, dtype=np.uint32)
        return out[: len(values)]

    return many


def _import_numkong() -> Any:
    try:
        import numkong
    except ImportError:
        return None
    return numkong


def _check(queries: CodeArray, codes: CodeArray, k: int) -> tuple[CodeArray, CodeArray]:
    queries = np.atleast_2d(queries)
    if queries.dtype != np.uint8 or codes.dtype != np.uint8 or codes.ndim != 2:
        raise InputError(
            got=f"codes of type {codes.dtype} and queries of type {queries.dtype}",
            expected="packed bits, uint8 [N, bytes]",
            fix="encode vectors with a binary codec first",
        )
    if queries.shape[1] != codes.shape[1] or len(codes) == 0 or k < 1 or len(queries) == 0:
        raise InputError(
            got=f"{queries.shape} queries for {codes.shape} codes and k = {k}",
            expected="codes of one width, at least one row, one query, and k >= 1",
            fix="encode queries and corpus with the same codec",
        )
    return np.ascontiguousarray(queries), np.ascontiguousarray(codes)
