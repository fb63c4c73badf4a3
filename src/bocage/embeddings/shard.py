"""The bytes of a shard file: chunks compressed one by one, and where each lies.

These are the bytes that zarr writes, without what it takes to have it write them: an array in
memory, an event loop and a thread for each chunk doubled the processor time of the compression.
Format: Zarr v3, codec sharding_indexed v1 with the index at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bocage.embeddings.documents import ZSTD_LEVEL

_ABSENT = 2**64 - 1
"""Stands for place and length of a chunk that holds nodata only."""


def encode_shard(
    values: NDArray[Any], *, chunks: Sequence[int], shards: Sequence[int], nodata: float
) -> bytes | None:
    """The file of one shard, or None where every value is nodata.

    ``values`` may be smaller than ``shards`` at the far edges of a map; ``chunks`` divides it.
    """
    import google_crc32c  # zarr depends on it

    counts = tuple(shard // chunk for shard, chunk in zip(shards, chunks, strict=True))
    index = np.full((*counts, 2), _ABSENT, "<u8")
    parts: list[bytes] = []
    offset = 0
    for place in _order(counts):
        starts = [n * chunk for n, chunk in zip(place, chunks, strict=True)]
        within = tuple(slice(a, a + chunk) for a, chunk in zip(starts, chunks, strict=True))
        data = encode_chunk(values[within], tuple(chunks), nodata)
        if data is not None:
            index[place] = offset, len(data)
            parts.append(data)
            offset += len(data)
    if not parts:
        return None
    ending = index.tobytes()
    checksum = int(google_crc32c.value(ending)).to_bytes(4, "little")
    return b"".join((*parts, ending, checksum))


def encode_chunk(values: NDArray[Any], shape: tuple[int, ...], nodata: float) -> bytes | None:
    """One compressed chunk of a shape, filled up with nodata; None where there is nothing else."""
    from numcodecs.zstd import compress  # type: ignore[import-untyped]

    missing = np.isnan(values) if np.isnan(nodata) else values == nodata
    if missing.all():
        return None
    chunk = values
    if values.shape != shape:
        chunk = np.full(shape, nodata, values.dtype)
        chunk[tuple(slice(0, n) for n in values.shape)] = values
    chunk = np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<"))
    data: bytes = compress(chunk, ZSTD_LEVEL, True)
    return data


@lru_cache(maxsize=8)
def _order(counts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Chunks along a Morton curve, as zarr puts them; any order is allowed."""
    bits = [(n - 1).bit_length() for n in counts]
    levels = [
        (axis, level)
        for level in range(max(bits))
        for axis, depth in enumerate(bits)
        if level < depth
    ]

    def position(place: tuple[int, ...]) -> int:
        return sum(
            (place[axis] >> level & 1) << number for number, (axis, level) in enumerate(levels)
        )

    return tuple(sorted(product(*(range(n) for n in counts)), key=position))
