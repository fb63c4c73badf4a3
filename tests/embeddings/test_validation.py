"""What validate says about good and about spoilt stores and GeoTIFFs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import rasterio
import zarr

from bocage.embeddings import export_cog, open_embeddings, validate
from bocage.errors import BocageWarning, SourceError

from .maps import smooth_map, write_map


def edit_attributes(path, level, change):
    """Change attributes in the file itself and in its consolidated copy at the root."""
    own = path / level / "zarr.json"
    document = json.loads(own.read_text())
    change(document["attributes"])
    own.write_text(json.dumps(document))
    if level:
        root = json.loads((path / "zarr.json").read_text())
        root["consolidated_metadata"]["metadata"][level]["attributes"] = document["attributes"]
        (path / "zarr.json").write_text(json.dumps(root))


@pytest.fixture
def copy_of_store(map_store, tmp_path):
    return shutil.copytree(map_store, tmp_path / "emb.zarr")


def errors(uri):
    return [f for f in validate(uri) if f.severity == "error"]


def test_what_we_write_is_valid(map_store, map_cog, tmp_path):
    assert validate(map_store) == []
    assert validate(map_cog) == []
    assert validate(export_cog(map_store, tmp_path / "f.tif", codec="float32")) == []


def test_single_and_float_stores_are_valid(tmp_path):
    x = smooth_map(3, (90, 70))
    assert validate(write_map(tmp_path / "a.zarr", x, codec="float32")) == []
    assert validate(write_map(tmp_path / "b.zarr", x, crs="EPSG:3035", layout="single")) == []


@pytest.mark.parametrize(
    ("level", "change", "expected"),
    [
        ("", lambda a: a.pop("zarr_conventions"), "not registered"),
        ("", lambda a: a.pop("geoemb:model"), "geoemb:model is missing"),
        ("", lambda a: a.pop("geoemb:spatial_layout"), "spatial_layout"),
        ("utm18", lambda a: a.update({"geoemb:dimensions": 64}), "geoemb:dimensions says 64"),
        ("utm18", lambda a: a.update({"geoemb:data_type": "float32"}), "type int8"),
        ("utm18", lambda a: a.update({"proj:code": "EPSG:32718"}), "EPSG:32618"),
        ("utm18", lambda a: a.pop("spatial:transform"), "spatial:transform"),
        ("utm18", lambda a: a.update({"spatial:shape": [1, 1]}), "spatial:shape"),
        ("utm18", lambda a: a.update({"spatial:bbox": [0, 0, 1, 1]}), "spatial:bbox"),
        (
            "utm18",
            lambda a: a.update({"spatial:transform": [40, 0, 500_020, 0, -40, 4_500_000]}),
            "pixel centres",
        ),
        ("utm18", lambda a: a["geoemb:quantization"].update(method="magic"), "magic"),
        ("utm18", lambda a: a["zarr_conventions"][0].update(description="mine"), "description"),
    ],
)
def test_each_wrong_attribute_is_one_named_error(copy_of_store, level, change, expected):
    edit_attributes(copy_of_store, level, change)
    found = errors(copy_of_store)
    assert any(expected in str(f) for f in found), [str(f) for f in found]


def test_extra_keys_in_the_quantization_are_a_warning(copy_of_store):
    def add(attributes):
        attributes["geoemb:quantization"]["formula"] = "x"

    edit_attributes(copy_of_store, "utm18", add)
    assert errors(copy_of_store) == []
    assert any("formula" in f.what for f in validate(copy_of_store))


def test_a_wrong_fill_value_is_found(tmp_path, map_store):
    path = shutil.copytree(map_store, tmp_path / "emb.zarr")
    (path / "zarr.json").write_text(
        (path / "zarr.json").read_text().replace('"fill_value": -128', '"fill_value": 0')
    )
    array = path / "utm18/embeddings/zarr.json"
    array.write_text(array.read_text().replace('"fill_value": -128', '"fill_value": 0'))
    assert any("fill value 0" in f.what for f in errors(path))


def test_a_damaged_shard_and_leftovers_are_found(copy_of_store):
    shard = copy_of_store / "utm18/embeddings/c/0/0/1/1"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    (shard.parent / ".2.partial").write_bytes(b"half")
    found = [str(f) for f in validate(copy_of_store)]
    assert any("c/0/0/1/1" in f and "decode" in f for f in found)
    assert any("unfinished file" in f for f in found)


def test_an_unfinished_run_is_found_by_its_markers(copy_of_store):
    folder = copy_of_store / "bocage"
    folder.mkdir()
    (folder / "identity.json").write_text("{}")
    for row in range(2):
        (folder / f"2024_{row}_0.json").write_text("{}")
    assert any("2 of 12 blocks" in f.what for f in errors(copy_of_store))
    with pytest.warns(BocageWarning, match="2 of 12 blocks are done, and the rest reads as nodata"):
        open_embeddings(copy_of_store)
    for row in range(3):
        for col in range(4):
            (folder / f"2024_{row}_{col}.json").write_text("{}")
    assert validate(copy_of_store) == []
    open_embeddings(copy_of_store)  # a warning would be an error here


def test_overviews_of_codes_are_found(map_store, map_cog, tmp_path):
    """A file that is a flawless COG for every other tool, made with GDAL's own averages."""
    import rasterio.shutil
    from rio_cogeo import cog_validate

    path = tmp_path / "gdal.tif"
    rasterio.shutil.copy(
        map_cog, path, driver="COG", blocksize=128, overviews="IGNORE_EXISTING",
        overview_resampling="AVERAGE", compress="ZSTD",
    )  # fmt: skip
    assert cog_validate(path, strict=True)[0]
    assert any("not the mean of real values" in f.what for f in errors(path))
    np.testing.assert_array_equal(open_embeddings(path), open_embeddings(map_store))


def test_plain_geotiffs_are_told_what_they_lack(map_cog, tmp_path):
    with rasterio.open(map_cog) as file:
        profile, q = file.profile, file.read()
    profile.update(nodata=None, tiled=False, blockysize=1, interleave="band")
    profile.pop("blockxsize")
    with rasterio.open(tmp_path / "plain.tif", "w", **profile) as file:
        file.write(q)
        file.update_tags(QUANTIZATION="signed_power")
    found = [str(f) for f in validate(tmp_path / "plain.tif")]
    assert any("nodata" in f for f in found)
    assert any("without names" in f for f in found)
    assert any("formula" in f for f in found)


def test_structure_is_checked_without_rio_cogeo_as_well(tmp_path, monkeypatch):
    from bocage.embeddings import validation_cog

    store = write_map(tmp_path / "e.zarr", smooth_map(2, (700, 600)))
    good = export_cog(store, tmp_path / "good.tif")
    with rasterio.open(good) as file:
        profile, q = file.profile, file.read()
    profile.update(tiled=False, interleave="band")
    profile.pop("blockxsize")
    profile.pop("blockysize")
    with rasterio.open(tmp_path / "strips.tif", "w", **profile) as file:
        file.write(q)
        file.update_tags(QUANTIZATION="signed_power")
    monkeypatch.setattr(validation_cog, "find_spec", lambda name: None)
    assert validate(good) == []
    found = [str(f) for f in validate(tmp_path / "strips.tif")]
    assert any("strips" in f for f in found)
    assert any("no overviews" in f for f in found)


def test_what_cannot_be_read_is_said(tmp_path, map_cog):
    with pytest.raises(SourceError, match="does not exist"):
        validate(tmp_path / "no.zarr")
    (tmp_path / "text.tif").write_text("no raster")
    assert errors(tmp_path / "text.tif")
    (tmp_path / "group.zarr").mkdir()
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    assert any("neither" in f.what for f in errors(tmp_path / "group.zarr"))
