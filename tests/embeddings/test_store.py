"""The store on disk: the public layout, deterministic whole shards, survival of crashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from affine import Affine

from bocage.embeddings import (
    EmbeddingGrid,
    create_store,
    open_embeddings,
    shard_path,
    write_shard,
)
from bocage.errors import ConfigError, InputError, StoreError


def make_grid(**changes) -> EmbeddingGrid:
    grid = EmbeddingGrid(
        crs="EPSG:32618",
        transform=Affine(10, 0, 500_000, 0, -10, 4_500_000),
        shape_yx=(150, 110),
        dims=128,
        years=(2024, 2025),
        model="olmoearth-v1.3-base",
        shard_cells=64,
        sensors=("sentinel2_l2a", "sentinel1"),
        attrs={"dates": "known", "weights_id": "random:0"},
    )
    return replace(grid, **changes)


def make_values(grid: EmbeddingGrid, row=0, col=0, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.23, (grid.dims, *grid.shard_shape(row, col))).astype(np.float32)
    x[:, :3, :5] = np.nan
    return x


@pytest.fixture
def store(tmp_path):
    grid = make_grid()
    path = create_store(tmp_path / "emb.zarr", grid)
    return path, grid


def tree(path: Path) -> dict[str, str]:
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


def test_layout_is_that_of_the_public_olmoearth_archive(store):
    path, _ = store
    root = zarr.open_group(path, mode="r")
    group = root["utm18"]
    array = group["embeddings"]
    assert array.metadata.dimension_names == ("time", "band", "y", "x")
    assert array.dtype == np.int8
    assert array.fill_value == -128
    assert array.shape == (2, 128, 150, 110)
    assert array.shards == (1, 128, 64, 64)
    assert array.chunks == (1, 64, 64, 64)
    document = json.loads((path / "utm18/embeddings/zarr.json").read_text())
    sharding = document["codecs"][0]
    assert sharding["name"] == "sharding_indexed"
    inner = [c for c in sharding["configuration"]["codecs"] if c["name"] == "zstd"]
    assert inner[0]["configuration"]["level"] == 3
    assert group["time"].dtype == np.int32
    assert list(group["time"][:]) == [2024, 2025]
    assert group["x"][0] == 500_005
    assert group["y"][0] == 4_499_995
    assert np.all(np.diff(group["y"][:]) == -10)


def test_default_shard_and_inner_chunk_are_the_public_sizes():
    grid = make_grid(shard_cells=2048)
    assert (grid.inner_bands, grid.inner_cells) == (64, 256)
    assert EmbeddingGrid.__dataclass_fields__["shard_cells"].default == 2048
    assert make_grid(dims=768, shard_cells=512).inner_bands == 64
    assert make_grid(dims=100, shard_cells=300).inner_bands == 50
    assert make_grid(shard_cells=300).inner_cells == 150


@pytest.mark.parametrize("level", ["", "utm18"])
def test_attributes_hold_the_required_keys_of_the_three_conventions(store, level):
    path, _ = store
    attrs = dict(zarr.open_group(path, mode="r", path=level).attrs)
    by_uuid = {c["uuid"]: c for c in attrs["zarr_conventions"]}
    assert by_uuid["61c12cc5-0e28-4056-999a-480cf3fb7e4c"]["description"] == (
        "Geoembeddings convention for geospatial embedding arrays with model provenance"
    )
    assert "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4" in by_uuid
    assert "f17cb550-5864-4468-aeb7-f3180cfb622f" in by_uuid
    assert attrs["geoemb:type"] == "pixel"
    assert attrs["geoemb:dimensions"] == 128
    assert attrs["geoemb:data_type"] == "int8"
    assert attrs["geoemb:gsd"] == 10.0
    assert attrs["geoemb:spatial_layout"] == "utm_zones"
    assert attrs["geoemb:model"] == "https://huggingface.co/allenai/OlmoEarth-v1_3-Base"
    assert len(attrs["geoemb:source_data"]) == 2
    assert attrs["geoemb:matryoshka_dims"] == [128, 64]
    # The convention's schema forbids further keys here.
    assert set(attrs["geoemb:quantization"]) == {
        "method",
        "original_dtype",
        "quantized_dtype",
        "link",
    }
    assert attrs["geoemb:quantization"]["method"] == "signed_power"
    assert attrs["bocage"]["weights_id"] == "random:0"
    foreign = {k for k in attrs if not k.startswith(("geoemb:", "spatial:", "proj:"))}
    assert foreign == {"zarr_conventions", "bocage"}
    if level:
        assert attrs["proj:code"] == "EPSG:32618"
        assert attrs["spatial:transform"] == [10, 0, 500_000, 0, -10, 4_500_000]
        assert attrs["spatial:shape"] == [150, 110]
        assert attrs["spatial:bbox"] == [500_000, 4_498_500, 501_100, 4_500_000]
        assert attrs["spatial:dimensions"] == ["y", "x"]
        assert attrs["spatial:registration"] == "pixel"


def test_a_southern_scene_is_stored_in_the_northern_crs_with_negative_northing(tmp_path):
    grid = make_grid(
        crs="EPSG:32718", transform=Affine(10, 0, 500_000, 0, -10, 10_000_500), shape_yx=(100, 64)
    )
    path = create_store(tmp_path / "emb.zarr", grid)
    attrs = dict(zarr.open_group(path, mode="r", path="utm18").attrs)
    assert attrs["proj:code"] == "EPSG:32618"
    assert attrs["spatial:transform"][5] == 500.0
    assert attrs["spatial:bbox"][1] == -500.0
    assert attrs["bocage"]["source_crs"] == "EPSG:32718"
    y = zarr.open_group(path, mode="r")["utm18/y"][:]
    assert y[0] == 495.0
    assert y[-1] == -495.0


def test_zarr_reads_golden_codes(tmp_path):
    golden = {0: 0, 1e-5: 0, 1e-4: 1, 0.01: 13, 0.0884: 38, 0.25: 64, 0.5: 90, 1.0: 127, -0.25: -64}
    grid = make_grid(dims=1, shape_yx=(1, len(golden)), years=(2025,), model="m")
    path = create_store(tmp_path / "emb.zarr", grid)
    x = np.array([[list(golden)]], np.float32)
    write_shard(path, grid, 2025, 0, 0, x)
    q = zarr.open_group(path, mode="r")["utm18/embeddings"][0, 0, 0]
    assert list(q) == list(golden.values())
    back = open_embeddings(path).values[0, 0, 0]
    assert back[5] == pytest.approx(0.25196463, abs=1e-7)
    assert back[2] == pytest.approx(6.151e-05, rel=1e-3)
    assert back[7] == pytest.approx(0.99217224, abs=1e-7)


def test_what_was_written_is_what_zarr_itself_would_write(store, tmp_path):
    path, grid = store
    other = create_store(tmp_path / "other.zarr", grid)
    array = zarr.open_group(other, mode="r+")["utm18/embeddings"]
    for row, col in ((0, 0), (2, 1)):
        q = np.random.default_rng(1).integers(-128, 128, (128, *grid.shard_shape(row, col)))
        h, w = q.shape[1:]
        array[1, :, row * 64 : row * 64 + h, col * 64 : col * 64 + w] = q.astype(np.int8)
        write_shard(path, grid, 2025, row, col, q.astype(np.int8))
    assert tree(path) == tree(other)


def test_the_same_values_give_the_same_bytes_in_any_order(store, tmp_path):
    path, grid = store
    other = create_store(tmp_path / "other.zarr", grid)
    shards = [(r, c) for r in range(3) for c in range(2)]
    for row, col in shards:
        write_shard(path, grid, 2024, row, col, make_values(grid, row, col))
    for row, col in reversed(shards):
        write_shard(other, grid, 2024, row, col, make_values(grid, row, col, seed=9))
        write_shard(other, grid, 2024, row, col, make_values(grid, row, col))
    assert tree(path) == tree(other)


def test_float32_is_kept_exactly_and_nodata_is_nan(tmp_path):
    grid = make_grid(codec="float32", dims=7)
    path = create_store(tmp_path / "emb.zarr", grid)
    x = make_values(grid)
    write_shard(path, grid, 2024, 0, 0, x)
    array = zarr.open_group(path, mode="r")["utm18/embeddings"]
    assert array.dtype == np.float32
    assert np.isnan(array.fill_value)
    np.testing.assert_array_equal(array[0, :, :64, :64], x)
    opened = open_embeddings(path)
    np.testing.assert_array_equal(opened[0, :, :64, :64], x)
    assert np.isnan(opened[1]).all()
    assert "geoemb:quantization" not in zarr.open_group(path, mode="r").attrs


def test_an_all_nodata_shard_leaves_no_file_and_replaces_an_old_one(store):
    path, grid = store
    target = shard_path(path, grid, 2024, 0, 0)
    assert write_shard(path, grid, 2024, 0, 0, make_values(grid)) == target.stat().st_size
    empty = np.full((128, 64, 64), np.nan, np.float32)
    assert write_shard(path, grid, 2024, 0, 0, empty) == 0
    assert not target.exists()
    assert np.isnan(open_embeddings(path)[0, :, :64, :64]).all()


@pytest.mark.parametrize(
    "crs", ["EPSG:2263", "EPSG:4326", "EPSG:32661", 'PROJCS["local",GEOGCS["x"]]']
)
def test_a_crs_without_a_zone_is_refused_with_the_way_out(tmp_path, crs):
    with pytest.raises(InputError, match="utm"):
        create_store(tmp_path / "emb.zarr", make_grid(crs=crs))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_path_is_never_overwritten(store, tmp_path):
    path, grid = store
    before = tree(path)
    with pytest.raises(StoreError, match="exists"):
        create_store(path, grid)
    assert tree(path) == before
    (tmp_path / "file.zarr").write_text("precious")
    with pytest.raises(StoreError, match="exists"):
        create_store(tmp_path / "file.zarr", grid)
    assert (tmp_path / "file.zarr").read_text() == "precious"
    assert not list(tmp_path.glob("*.partial"))
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x[:, :-1],
        lambda x: x[:-1],
        lambda x: np.zeros(x.shape, np.int16),
        lambda x: np.zeros(x.shape, np.uint8),
    ],
)
def test_anything_but_one_whole_shard_of_numbers_is_refused(store, spoil):
    path, grid = store
    with pytest.raises(InputError):
        write_shard(path, grid, 2024, 0, 0, spoil(make_values(grid)))


def test_years_and_shards_outside_the_map_are_refused(store):
    path, grid = store
    with pytest.raises(InputError, match="2023"):
        write_shard(path, grid, 2023, 0, 0, make_values(grid))
    with pytest.raises(InputError, match="shard"):
        write_shard(path, grid, 2024, 3, 0, make_values(grid))


def test_settings_that_make_no_store_are_refused():
    with pytest.raises(ConfigError, match="codec"):
        make_grid(codec="int4")
    with pytest.raises(ConfigError, match="shard_cells"):
        make_grid(shard_cells=257)
    with pytest.raises(InputError, match="years"):
        make_grid(years=(2024, 2024))
    with pytest.raises(InputError, match="dims"):
        make_grid(dims=0)


def test_a_killed_writer_leaves_an_old_shard_whole_and_its_repetition_the_same_tree(
    store, tmp_path
):
    """kill -9 between the two halves of a shard file."""
    path, grid = store
    write_shard(path, grid, 2024, 0, 0, make_values(grid))
    before = tree(path)
    program = textwrap.dedent(
        f"""
        import os, sys
        from pathlib import Path
        from bocage.embeddings import atomic
        real = Path.open
        def slow_open(self, *args, **kwargs):
            file = real(self, *args, **kwargs)
            if self.name.endswith(".partial"):
                write = file.write
                class Half:
                    def __enter__(self): return self
                    def __exit__(self, *a): file.close()
                    def write(self, data):
                        write(data[: len(data) // 2]); file.flush()
                        print("half", flush=True); sys.stdin.read()
                return Half()
            return file
        atomic.Path.open = slow_open
        atomic.write_file(Path({str(shard_path(path, grid, 2024, 0, 0))!r}), bytes(100000))
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    leftovers = list(path.rglob("*.partial"))
    assert len(leftovers) == 1
    assert {k: v for k, v in tree(path).items() if not k.endswith(".partial")} == before
    write_shard(path, grid, 2024, 0, 0, make_values(grid))
    assert tree(path) == before


@pytest.fixture
def full_disk(monkeypatch):
    """The write call fails as on a full disk (a tiny tmpfs needs rights that tests do not have)."""

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda target, name: monkeypatch.setattr(target, name, fail)


def test_a_full_disk_is_one_sentence_and_leaves_the_old_shard(store, full_disk):
    path, grid = store
    write_shard(path, grid, 2024, 0, 0, make_values(grid))
    before = tree(path)
    full_disk(os, "fsync")
    with pytest.raises(StoreError, match="no space left"):
        write_shard(path, grid, 2024, 0, 0, make_values(grid, seed=1))
    with pytest.raises(StoreError, match="no space left"):
        write_shard(path, grid, 2024, 1, 0, make_values(grid, 1, 0))
    assert tree(path) == before


def test_a_full_disk_while_creating_leaves_nothing(tmp_path, monkeypatch):
    real = zarr.Group.create_array

    def fail(self, name, **kwargs):
        if name == "y":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, name, **kwargs)

    monkeypatch.setattr(zarr.Group, "create_array", fail)
    with pytest.raises(StoreError, match="no space left"):
        create_store(tmp_path / "emb.zarr", make_grid())
    assert list(tmp_path.iterdir()) == []


def test_a_single_store_keeps_any_crs(tmp_path):
    import rioxarray  # noqa: F401

    grid = make_grid(
        crs="EPSG:3035", layout="single", transform=Affine(10, 0, 4e6, 0, -10, 3e6), dims=4
    )
    path = create_store(tmp_path / "emb.zarr", grid)
    x = make_values(grid, 2, 1)
    write_shard(path, grid, 2025, 2, 1, x)
    assert shard_path(path, grid, 2025, 2, 1).exists()
    opened = open_embeddings(path)
    assert opened.rio.crs.to_epsg() == 3035
    np.testing.assert_allclose(opened[1, :, 128:, 64:], x, atol=0.02)


def test_attributes_that_json_cannot_hold_are_refused():
    with pytest.raises(InputError, match="JSON"):
        make_grid(attrs={"score": np.float32(1)})
