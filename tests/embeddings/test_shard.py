"""Shard files hold the bytes that zarr writes for the same values."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from bocage.embeddings.shard import encode_shard


def zarr_shard(values, chunks, shards, nodata):
    files = {}
    array = zarr.create_array(
        MemoryStore(files),
        name="a",
        shape=values.shape,
        zarr_format=3,
        dtype=values.dtype,
        chunks=chunks,
        shards=shards,
        fill_value=nodata,
        compressors=[ZstdCodec(level=3, checksum=True)],
    )
    array[...] = values
    found = files.get(f"a/c/{'/'.join('0' * values.ndim)}")
    return None if found is None else found.to_bytes()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_shard_has_the_bytes_of_zarr(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    counts = [1, *data.draw(st.lists(st.integers(1, 5), min_size=3, max_size=3))]
    chunks = [1, *data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=3))]
    shards = [n * c for n, c in zip(counts, chunks, strict=True)]
    shape = [1, *(data.draw(st.integers(1, n)) for n in shards[1:])]
    dtype, nodata = data.draw(st.sampled_from([("int8", -128), ("float32", np.nan)]))
    values = rng.integers(-128, 128, shape).astype(dtype)
    holes = rng.random(shape[1:]) < data.draw(st.sampled_from([0, 0.5, 0.98, 1]))
    values[0, holes] = nodata
    assert encode_shard(values, chunks=chunks, shards=shards, nodata=nodata) == zarr_shard(
        values, chunks, shards, nodata
    )


@pytest.mark.parametrize(("dtype", "nodata"), [("int8", -128), ("float32", np.nan)])
def test_a_shard_of_the_public_size_has_the_bytes_of_zarr(dtype, nodata):
    values = np.random.default_rng(0).normal(0, 30, (1, 4, 2048, 300)).astype(dtype)
    values[:, :, 256:512, :256] = nodata
    chunks, shards = (1, 2, 256, 256), (1, 4, 2048, 2048)
    ours = encode_shard(values, chunks=chunks, shards=shards, nodata=nodata)
    assert ours == zarr_shard(values, chunks, shards, nodata)


def test_values_in_another_order_in_memory_are_the_same_values():
    values = np.random.default_rng(0).integers(-128, 127, (1, 3, 16, 8)).astype(np.int8)
    turned = np.asfortranarray(values)
    arguments = {"chunks": (1, 3, 8, 8), "shards": (1, 3, 16, 8), "nodata": -128}
    assert encode_shard(turned, **arguments) == encode_shard(values, **arguments)


def test_nothing_but_nodata_is_no_file():
    values = np.full((1, 2, 8, 8), np.nan, np.float32)
    shape = (1, 2, 8, 8)
    assert encode_shard(values, chunks=shape, shards=shape, nodata=np.nan) is None
