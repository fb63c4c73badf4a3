"""The documents of a store are those that zarr itself writes, to the byte."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import zarr
from affine import Affine
from zarr.codecs import ZstdCodec

from bocage.embeddings import create_store
from bocage.embeddings.conventions import (
    bocage_attributes,
    geoemb_attributes,
    spatial_attributes,
)
from bocage.geo import northern_grid
from tests.embeddings.test_store import make_grid, tree


def zarr_store(folder, grid):
    """The same store, made by zarr step by step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        root = zarr.open_group(str(folder), mode="w", zarr_format=3)
        shared, own = geoemb_attributes(grid), {"bocage": bocage_attributes(grid)}
        root.update_attributes({**shared, **own})
        zones = grid.layout == "utm_zones"
        stored = northern_grid(grid.grid) if zones else grid.grid
        group = root.create_group("utm18") if zones else root
        group.update_attributes({**shared, **spatial_attributes(stored), **own})
        zstd = ZstdCodec(level=3, checksum=True)
        group.create_array(
            "embeddings",
            shape=(len(grid.years), grid.dims, *grid.shape_yx),
            dtype=grid.dtype,
            chunks=(1, grid.inner_bands, grid.inner_cells, grid.inner_cells),
            shards=(1, grid.dims, grid.shard_cells, grid.shard_cells),
            fill_value=grid.nodata,
            compressors=[zstd],
            dimension_names=("time", "band", "y", "x"),
        )
        years = np.asarray(grid.years, np.int32)
        for name, values in (("time", years), ("y", stored.y), ("x", stored.x)):
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=(min(values.size, 65_536),),
                compressors=[zstd],
                dimension_names=(name,),
            )
            array[:] = values
        zarr.consolidate_metadata(root.store)
    return folder


LOCAL = 'LOCAL_CS["Rümlang",UNIT["metre",1]]'


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"codec": "float32", "years": (0,), "dims": 7, "value_scale": 4.0},
        {"crs": "EPSG:32718", "transform": Affine(10, 0, 5e5, 0, -10, 1e7 + 500)},
        {"layout": "single", "crs": "EPSG:3035", "attrs": {"score": float("nan"), "Ort": "Köln"}},
        {"layout": "single", "crs": LOCAL, "transform": Affine(10, 0, -5, 0, -10, 5), "dims": 300},
        {"shard_cells": 2048, "shape_yx": (70_000, 1), "sensors": ()},
    ],
    ids=["zone", "float32 of an unknown year", "south", "single", "local", "long"],
)
def test_a_new_store_is_the_one_that_zarr_makes(tmp_path, changes):
    grid = replace(make_grid(), **changes)
    ours = create_store(tmp_path / "ours.zarr", grid)
    theirs = zarr_store(tmp_path / "theirs.zarr", grid)
    assert tree(ours) == tree(theirs)


def test_one_document_opens_the_whole_store(tmp_path):
    path = create_store(tmp_path / "emb.zarr", make_grid())
    for document in path.rglob("*/zarr.json"):
        known = json.loads((path / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
        member = known[str(document.parent.relative_to(path))]
        member.pop("consolidated_metadata", None)
        assert member == json.loads(document.read_text())
        document.unlink()
    assert zarr.open_group(path, mode="r")["utm18/x"].shape == (110,)
