"""One small map as a store and as a COG."""

from __future__ import annotations

import pytest

from .maps import smooth_map, write_map


@pytest.fixture(scope="session")
def map_values():
    return smooth_map(12, (301, 395))


@pytest.fixture(scope="session")
def map_store(tmp_path_factory, map_values):
    return write_map(tmp_path_factory.mktemp("store") / "emb.zarr", map_values)


@pytest.fixture(scope="session")
def map_cog(tmp_path_factory, map_store):
    from bocage.embeddings import export_cog

    return export_cog(map_store, tmp_path_factory.mktemp("cog") / "emb.tif", block_cells=128)
