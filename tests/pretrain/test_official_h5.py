"""The official format, against files written and read by h5py alone from its description."""

import csv
from dataclasses import replace

import h5py
import hdf5plugin
import numpy as np
import pytest

from bocage.errors import InputError, SourceError
from bocage.pretrain.modalities import MODALITIES
from bocage.pretrain.official_h5 import (
    H5Samples,
    is_official,
    official_folder,
    read_official,
    write_official,
)

from .sample_data import make_sample

SIDE = 16


def write_by_hand(path, *, masks=None, drop=(), **arrays):
    """A file as the specification describes it; masks by sensor, arrays by modality."""
    rng = np.random.default_rng(0)
    masks = masks or {"sentinel2_l2a": range(12)}
    with h5py.File(path, "w") as file:
        if "latlon" not in drop:
            file["latlon"] = np.array([12.5, -3.25], np.float32)
        if "timestamps" not in drop:
            file["timestamps"] = np.array([[1, m, 2019] for m in range(12)], np.int64)
        group = file.create_group("missing_timesteps_masks")
        for name, steps in masks.items():
            mask = np.zeros(12, bool)
            mask[list(steps)] = True
            if f"mask/{name}" not in drop:
                group[name] = mask
            n_bands = len(MODALITIES[name].bands)
            x = rng.integers(1, 9000, (SIDE, SIDE, len(list(steps)), n_bands)).astype(np.uint16)
            arrays.setdefault(name, x)
        for name, x in arrays.items():
            file.create_dataset(name, data=x, compression=hdf5plugin.Zstd(clevel=3))
    return arrays


def test_a_file_written_by_hand_is_read_by_the_documented_rule(tmp_path):
    # S2 has steps 3, 4 and 8, S1 only 5: the sample runs from step 3 to step 8.
    masks = {"sentinel2_l2a": (3, 4, 8), "sentinel1": (5,)}
    s1 = np.full((SIDE, SIDE, 1, 2), -11.5, np.float32)
    land = np.full((SIDE, SIDE, 1, 1), 40, np.uint8)
    arrays = write_by_hand(
        tmp_path / "sample_0.h5", masks=masks, sentinel1=s1, worldcover=land, gse=land
    )
    sample = read_official(tmp_path / "sample_0.h5")
    assert sample.timestamps.tolist() == [[1, m, 2019] for m in range(3, 9)]
    assert sample.latlon == (12.5, -3.25)
    assert set(sample.values) == {"sentinel2_l2a", "sentinel1", "worldcover"}
    s2 = sample.values["sentinel2_l2a"]
    assert s2.shape == (SIDE, SIDE, 6, 12)
    assert s2.dtype == np.float32
    for stored, slot in enumerate((0, 1, 5)):
        np.testing.assert_array_equal(s2[:, :, slot], arrays["sentinel2_l2a"][:, :, stored])
    assert np.isnan(s2[:, :, 2:5]).all()
    assert (sample.values["sentinel1"][:, :, 2] == -11.5).all()
    assert np.isnan(np.delete(sample.values["sentinel1"], 2, axis=2)).all()
    assert (sample.values["worldcover"] == 40).all()


def test_what_we_write_has_every_documented_key_type_and_shape(tmp_path):
    absent = (("sentinel2_l2a", 0), ("sentinel1", 0), ("landsat", 0), ("sentinel1", 3))
    samples = [
        make_sample(0, size_px=128, n_steps=5, absent=absent),
        make_sample(1, size_px=128, n_steps=5, sensors=("sentinel2_l2a",), maps=()),
    ]
    folder, dropped = write_official(samples, tmp_path)
    assert not dropped
    names = ["landsat", "openstreetmap_raster", "sentinel1", "sentinel2_l2a", "srtm", "worldcover"]
    parts = folder.relative_to(tmp_path).parts
    assert parts == ("h5py_data_w_missing_timesteps_zstd_3_128_x_4", "_".join(names), "2")
    assert sorted(p.name for p in folder.iterdir()) == [
        "latlon_distribution.npy",
        "sample_0.h5",
        "sample_1.h5",
        "sample_metadata.csv",
    ]
    with (folder / "sample_metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"sample_index": "0", **dict.fromkeys(names, "1")}
    assert rows[1] == {
        "sample_index": "1",
        **{name: str(int(name == "sentinel2_l2a")) for name in names},
    }
    latlon = np.load(folder / "latlon_distribution.npy")
    np.testing.assert_allclose(latlon, [s.latlon for s in samples], rtol=1e-6)
    with h5py.File(folder / "sample_0.h5") as file:
        assert set(file) == {*names, "latlon", "timestamps", "missing_timesteps_masks"}
        assert file["latlon"].dtype == np.float32
        assert file["latlon"].shape == (2,)
        assert file["timestamps"].dtype.kind == "i"
        assert file["timestamps"].shape == (12, 3)
        np.testing.assert_array_equal(file["timestamps"][4:], samples[0].timestamps[[4] * 8])
        masks = file["missing_timesteps_masks"]
        assert set(masks) == {"sentinel2_l2a", "sentinel1", "landsat"}
        assert masks["sentinel1"].dtype == bool
        assert masks["sentinel1"][:].tolist() == [False, True, True, False, True] + [False] * 7
        assert file["sentinel1"].shape == (128, 128, 3, 2)
        assert file["sentinel1"].dtype == np.float32
        assert file["sentinel2_l2a"].shape == (128, 128, 4, 12)
        assert file["sentinel2_l2a"].dtype == np.uint16
        assert file["worldcover"].shape == (128, 128, 1, 1)
        assert file["openstreetmap_raster"].shape == (128, 128, 1, 30)
        # 32015 is the registered number of zstd among HDF5 filters; 3 is the level.
        assert file["sentinel2_l2a"].id.get_create_plist().get_filter(0)[0] == hdf5plugin.ZSTD_ID
        assert file["sentinel2_l2a"].id.get_create_plist().get_filter(0)[2][0] == 3


def test_round_trip_gives_the_same_numbers(tmp_path):
    absent = (("sentinel2_l2a", 2), ("landsat", 4))
    original = make_sample(3, n_steps=6, absent=absent)
    folder, _ = write_official([original], tmp_path)
    assert is_official(folder)
    again = read_official(folder / "sample_0.h5")
    assert set(again.values) == set(original.values)
    for name, x in original.values.items():
        np.testing.assert_array_equal(again.values[name], x)
    np.testing.assert_array_equal(again.timestamps, original.timestamps)
    np.testing.assert_allclose(again.latlon, original.latlon, rtol=1e-6)


def test_a_modality_with_holes_is_dropped_and_reported_as_in_the_official_set(tmp_path):
    sample = make_sample(n_steps=2)
    sample.values["landsat"][3, 4, 1, 2] = np.nan
    sample.values["sentinel1"][0, 0, 0, 0] = -32768
    sample.values["openstreetmap_raster"][:] = 0
    folder, dropped = write_official([sample], tmp_path)
    assert dropped == {"sample 0": ["sentinel1", "landsat", "openstreetmap_raster"]}
    assert set(read_official(folder / "sample_0.h5").values) == {
        "sentinel2_l2a",
        "worldcover",
        "srtm",
    }


def test_a_sample_with_holes_in_every_sensor_is_not_written(tmp_path):
    sample = make_sample(n_steps=2, sensors=("sentinel2_l2a",))
    sample.values["sentinel2_l2a"][0, 0, :, 0] = np.nan
    with pytest.raises(InputError, match="sample 0, in which every sensor has missing pixels"):
        write_official([sample], tmp_path)


def test_missing_value_inside_an_array_becomes_nan(tmp_path):
    x = np.full((SIDE, SIDE, 12, 12), 500, np.int32)
    x[1, 2, 3, 4] = -99999
    write_by_hand(tmp_path / "sample_0.h5", sentinel2_l2a=x)
    s2 = read_official(tmp_path / "sample_0.h5").values["sentinel2_l2a"]
    assert np.isnan(s2[1, 2, 3, 4])
    assert np.isfinite(s2).sum() == s2.size - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ("timestamps",)}, "sample_0.h5 without timestamps; expected the keys"),
        ({"drop": ("latlon",)}, "sample_0.h5 without latlon"),
        (
            {"drop": ("mask/sentinel2_l2a",)},
            "sample_0.h5 without missing_timesteps_masks/sentinel2_l2a",
        ),
        (
            {"sentinel2_l2a": np.zeros((SIDE, SIDE, 11, 12), np.uint16)},
            r"sentinel2_l2a of shape \[16, 16, 11, 12\] in .*; expected \[16, 16, 12, 12\]",
        ),
        (
            {"sentinel2_l2a": np.zeros((SIDE, SIDE, 12, 10), np.uint16)},
            r"sentinel2_l2a of shape \[16, 16, 12, 10\]",
        ),
        (
            {"worldcover": np.zeros((8, 8, 1, 1), np.uint8)},
            r"worldcover of shape \[8, 8, 1, 1\] .* expected \[16, 16, 1, 1\]",
        ),
        ({"masks": {"sentinel2_l2a": ()}}, "sample_0.h5, in which all timesteps are missing"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, options, message):
    write_by_hand(tmp_path / "sample_0.h5", **options)
    with pytest.raises(InputError, match=message):
        read_official(tmp_path / "sample_0.h5")


@pytest.mark.parametrize("damage", ["header", "middle", "absent"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "sample_0.h5"
    write_by_hand(path)
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:16] = bytes(16)
    else:
        data[len(data) // 3 : len(data) // 3 + 4000] = bytes(4000)
    path.write_bytes(data)
    if damage == "absent":
        path.unlink()
    with pytest.raises(SourceError, match=r"damaged or missing sample .*sample_0\.h5"):
        read_official(path)


def test_a_folder_is_opened_by_its_table(tmp_path):
    folder, _ = write_official([make_sample(i) for i in range(3)], tmp_path)
    samples = H5Samples(folder)
    assert len(samples) == 3
    assert samples.size_px == 32
    assert "landsat" in samples.modalities
    with samples.sample(1) as one:
        crop = one.read("landsat", slice(3, 9), slice(5, 7), (1, 3))
    np.testing.assert_array_equal(crop, make_sample(1).values["landsat"][3:9, 5:7, 1:4:2])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "expected sample_index and modalities"),
        ("a,b\n1,2\n", "expected sample_index and modalities"),
        ("sample_index,sentinel1\nx,1\n", "whole numbers in sample_index"),
        ("sample_index,sentinel1\n0,1\n", "no sample can be read"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, table, message):
    (tmp_path / "sample_metadata.csv").write_text(table)
    with pytest.raises((InputError, SourceError), match=message):
        H5Samples(tmp_path)


def test_folder_name_counts_the_parts_of_a_256_pixel_tile():
    path = official_folder("/r", ("worldcover", "cdl"), 7, size_px=64)
    assert str(path) == "/r/h5py_data_w_missing_timesteps_zstd_3_64_x_16/cdl_worldcover/7"


def test_samples_without_location_are_kept(tmp_path):
    sample = replace(make_sample(), latlon=(float("nan"), float("nan")))
    folder, _ = write_official([sample], tmp_path)
    assert np.isnan(read_official(folder / "sample_0.h5").latlon).all()
