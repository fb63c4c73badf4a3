"""GEO-Bench 1 read through its own package, on small data written by that package."""

import json
import sys

import numpy as np
import pytest

from bocage.errors import InputError, SourceError
from bocage.learn.datasets.geobench import BANDS, read_geobench
from bocage.learn.datasets.ready import read_dataset
from bocage.sensors import SENTINEL2_L2A


@pytest.fixture
def geobench(tmp_path, monkeypatch):
    monkeypatch.setenv("GEO_BENCH_DIR", str(tmp_path / "unused"))
    return pytest.importorskip("geobench", reason="pip install --no-deps geobench")


def test_without_the_package_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GEO_BENCH_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "geobench", None)
    with pytest.raises(SourceError, match=r"m_eurosat without the package.*--no-deps geobench"):
        read_geobench(tmp_path, task="m_eurosat")


def test_landsat_is_refused(tmp_path):
    with pytest.raises(InputError, match="m_forestnet of L8"):
        read_geobench(tmp_path, task="m_forestnet")


def test_names_of_bands_are_those_of_the_package(geobench):
    theirs = [band.name for band in geobench.sentinel2_13_bands]
    assert [b for b in theirs if "Cirrus" not in b] == [BANDS[b] for b in sorted(BANDS, key=_place)]


def _place(band):
    return 8.5 if band == "B8A" else int(band[1:])


def write_task(geobench, folder, label, *, left_out=(), size=8, n=2):
    """A task as the package writes it: value of a pixel = 1000 * band + number of the sample."""
    folder.mkdir(parents=True)
    bands = [b for b in geobench.sentinel2_13_bands if b.name not in left_out]
    partition = geobench.Partition()
    kind = None
    for k in range(3 * n):
        parts = []
        for band in bands:
            side = size if band.spatial_resolution == 10 else size // 2
            value = 1000 * geobench.sentinel2_13_bands.index(band) + k
            parts.append(geobench.Band(np.full((side, side), value, np.int16), band, 10))
        y, kind = label(geobench, k)
        geobench.Sample(parts, y, f"sample_{k}").write(str(folder))
        partition.add(("train", "valid", "test")[k % 3], f"sample_{k}")
    partition.save(str(folder), "default")
    geobench.TaskSpecifications(
        folder.name, bands, 10.0, folder.parent.name, (size, size), 1, kind
    ).save(str(folder))


def one_class(geobench, k):
    return k % 10, geobench.Classification(10)


def flags(geobench, k):
    y = np.zeros(43, np.int64)
    y[k] = 1
    return y, geobench.MultiLabelClassification(43)


def per_pixel(geobench, k):
    kind = geobench.SegmentationClasses("label", 10.0, 10)
    y = np.arange(64, dtype=np.int16).reshape(8, 8) % 10
    return geobench.Band(np.roll(y, k, 1), kind, 10), kind


def test_images_come_in_the_order_of_the_sensor(geobench, tmp_path):
    write_task(geobench, tmp_path / "classification_v1.0/m-eurosat", one_class)
    found = read_dataset("m_eurosat", reader=None, path=None, root=tmp_path, options={})
    x = found.images["sentinel2_l2a"]
    assert x.shape == (6, 1, 12, 8, 8)
    names = [b.name for b in geobench.sentinel2_13_bands]
    number = {"train": 0, "val": 1, "test": 2}
    for i, split in enumerate(found.split):
        k = number[split] + 3 * (i % 2)  # two of each split, in order
        assert found.y[i] == k
        for c, band in enumerate(SENTINEL2_L2A.band_names):
            assert x[i, 0, c] == pytest.approx(1000 * names.index(BANDS[band]) + k, abs=1)
    assert found.split.tolist() == ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    few = read_geobench(tmp_path, task="m_eurosat", max_per_split=1)
    assert few.split.tolist() == ["train", "val", "test"]


def test_bands_that_a_task_lacks_are_missing_and_reflectance_is_scaled(geobench, tmp_path):
    left_out = ("01 - Coastal aerosol", "09 - Water vapour", "10 - SWIR - Cirrus")
    write_task(geobench, tmp_path / "m-so2sat", one_class, left_out=left_out)
    x = read_geobench(tmp_path, task="m_so2sat").images["sentinel2_l2a"]
    lost = [SENTINEL2_L2A.band_names.index(b) for b in ("B01", "B09")]
    assert np.isnan(x[:, :, lost]).all() and np.isfinite(np.delete(x, lost, axis=2)).all()
    assert x[0, 0, 0, 0, 0] == 10_000 * 1000  # B02 of the first sample


def test_flags_and_maps_keep_their_shape(geobench, tmp_path):
    write_task(geobench, tmp_path / "classification_v1.0/m-bigearthnet", flags)
    found = read_geobench(tmp_path, task="m_bigearthnet")
    assert found.task == "multilabel" and found.y.dtype == bool and found.y.shape == (6, 43)
    assert found.y.argmax(axis=1).tolist() == [0, 3, 1, 4, 2, 5]
    write_task(geobench, tmp_path / "segmentation_v1.0/m-SA-crop-type", per_pixel)
    found = read_geobench(tmp_path, task="m_sa_crop_type")
    assert found.per_pixel and found.y.shape == (6, 8, 8)
    assert found.y[2].tolist() == np.roll(np.arange(64).reshape(8, 8) % 10, 1, 1).tolist()


def test_data_that_are_not_there_are_said(geobench, tmp_path):
    with pytest.raises(SourceError, match=r"m_brick_kiln: no folder m-brick-kiln in .*download"):
        read_geobench(tmp_path, task="m_brick_kiln")
    left_out = [b.name for b in geobench.sentinel2_13_bands if "Cirrus" not in b.name]
    write_task(geobench, tmp_path / "m-brick-kiln", one_class, left_out=left_out)
    with pytest.raises(SourceError, match="without bands of Sentinel-2"):
        read_geobench(tmp_path, task="m_brick_kiln")
    assert json.loads((tmp_path / "m-brick-kiln/default_partition.json").read_text())
