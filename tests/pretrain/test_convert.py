"""From official files to a store: the same numbers, damaged files left out, resumable."""

import logging

import numpy as np
import pytest

from bocage.errors import InputError, StoreError
from bocage.pretrain import convert as convert_module
from bocage.pretrain.convert import convert_samples
from bocage.pretrain.describe import describe_samples
from bocage.pretrain.official_h5 import read_official, write_official
from bocage.pretrain.store_samples import StoreSamples

from .sample_data import make_sample
from .test_store import read_all, tree


@pytest.fixture
def official(tmp_path):
    absent = (("sentinel2_l2a", 2), ("sentinel1", 0))
    samples = [make_sample(i, n_steps=1 + i % 12) for i in range(18)]
    samples[5] = make_sample(5, n_steps=6, absent=absent)
    samples[6] = make_sample(6, sensors=("sentinel1",), maps=())
    return write_official(samples, tmp_path / "official")[0]


def test_every_number_is_kept(official, tmp_path):
    report = convert_samples(official, tmp_path / "s.zarr")
    assert (report.n_samples, report.refused) == (18, {})
    store = StoreSamples(tmp_path / "s.zarr")
    for index in range(18):
        expected = read_official(official / f"sample_{index}.h5")
        got = read_all(store, index)
        assert set(got) == set(expected.values)
        for name, x in expected.values.items():
            np.testing.assert_array_equal(got[name], x)
        with store.sample(index) as one:
            np.testing.assert_array_equal(one.timestamps, expected.timestamps)


def test_a_damaged_file_is_named_counted_and_left_out(official, tmp_path, caplog):
    (official / "sample_4.h5").write_bytes(b"not HDF5")
    with caplog.at_level(logging.WARNING, "bocage"):
        report = convert_samples(official, tmp_path / "s.zarr")
    assert (report.n_samples, report.refused) == (17, {"damaged samples": 1})
    assert "sample_4.h5" in caplog.text
    assert "left out: 1 damaged samples" in str(report)
    assert "left out: 1 damaged samples" in describe_samples(tmp_path / "s.zarr")


def test_too_many_damaged_files_stop_it(official, tmp_path):
    for index in range(3, 9):
        (official / f"sample_{index}.h5").write_bytes(b"")
    with pytest.raises(InputError, match="4 damaged samples among the first 7 of 18, the last"):
        convert_samples(official, tmp_path / "s.zarr")
    report = convert_samples(official, tmp_path / "t.zarr", max_bad_share=0.5)
    assert report.n_samples == 12


def test_it_goes_on_after_a_stop(official, tmp_path, monkeypatch):
    convert_samples(official, tmp_path / "whole.zarr")
    reads = []

    def stopped(path):
        reads.append(path.name)
        if path.name == "sample_17.h5" and len(reads) == 18:
            raise KeyboardInterrupt
        return read_official(path)

    monkeypatch.setattr(convert_module, "read_official", stopped)
    with pytest.raises(KeyboardInterrupt):
        convert_samples(official, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="an unfinished store begun with"):
        convert_samples(official, tmp_path / "s.zarr", float32=("srtm",))
    convert_samples(official, tmp_path / "s.zarr")
    assert reads[18:] == ["sample_16.h5", "sample_17.h5"]  # the first shard of 16 was kept
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "whole.zarr")


def test_description_says_what_is_there(official, tmp_path):
    convert_samples(official, tmp_path / "s.zarr")
    text = describe_samples(tmp_path / "s.zarr")
    assert "18 samples of 32 x 32 pixels" in text
    assert "landsat: 17 samples" in text
    assert "sentinel1: 18 samples" in text
    assert "years: 2020 to 2020" in text
    assert "convert them for training" in describe_samples(official)
