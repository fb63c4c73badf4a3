"""What a raster says of itself, and rasters that say nothing."""

import numpy as np
import pytest
from affine import Affine

from bocage.embeddings import open_embeddings
from bocage.errors import ConfigError, InputError, SourceError
from bocage.zonal.opening import open_layers
from tests.change.conftest import write_store
from tests.zonal.conftest import TRANSFORM, write_raster

WHOLE = slice(0, 6), slice(0, 7)


@pytest.fixture
def numbers():
    return np.random.default_rng(0).normal(0, 1, (2, 6, 7)).astype(np.float32)


def test_numbers_with_their_mask_scale_and_names(tmp_path):
    q = np.arange(42, dtype=np.int16).reshape(1, 6, 7)
    path = write_raster(tmp_path / "ndvi_2021.tif", q, nodata=5, scales=[0.1])
    layers = open_layers(path)
    assert (layers.kind, layers.years, layers.features) == ("values", (2021,), ("band1",))
    expected = np.where(q == 5, np.nan, q * 0.1)
    np.testing.assert_allclose(layers.read(0, *WHOLE), expected, rtol=1e-6)


def test_rows_that_rise_are_turned(tmp_path, numbers):
    rising = Affine(10, 0, 700_000, 0, 10, 3_200_000 - 60)
    path = write_raster(tmp_path / "r.tif", numbers[:, ::-1], transform=rising)
    layers = open_layers(path)
    assert layers.grid.transform == TRANSFORM
    np.testing.assert_array_equal(layers.read(0, *WHOLE), numbers)
    part = layers.read(0, slice(1, 3), slice(2, 5))
    np.testing.assert_array_equal(part, numbers[:, 1:3, 2:5])


def test_infinite_numbers_are_no_data(tmp_path, numbers):
    numbers[0, 2, 3] = np.inf
    path = write_raster(tmp_path / "i.tif", numbers)
    assert np.isnan(open_layers(path).read(0, *WHOLE)[0, 2, 3])


def test_names_of_classes_from_wherever_they_stand(tmp_path):
    q = np.ones((1, 6, 7), np.uint8)
    ours = '[{"value": 1, "name": "water", "color": "#000000"}]'
    path = write_raster(tmp_path / "a.tif", q, tags={"BOCAGE_CLASSES": ours})
    assert open_layers(path).classes == {1: "water"}
    path = write_raster(tmp_path / "b.tif", q, tags={"CLASS_0": "no change", "CLASS_1": "change"})
    assert open_layers(path).classes == {0: "no change", 1: "change"}
    path = write_raster(tmp_path / "c.tif", q)
    (tmp_path / "c.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category></Category>'
        "<Category>lake</Category></CategoryNames></PAMRasterBand></PAMDataset>"
    )
    assert open_layers(path).classes == {1: "lake"}
    path = write_raster(tmp_path / "d.tif", q, colors={1: (0, 0, 255, 255)})
    assert (open_layers(path).kind, open_layers(path).classes) == ("classes", {})
    assert open_layers(path, classes={1: "sea"}).classes == {1: "sea"}
    (tmp_path / "names.csv").write_text("value,name\n1,pond\n")
    assert open_layers(path, classes=tmp_path / "names.csv").classes == {1: "pond"}
    assert open_layers(path, kind="values").kind == "values"


def test_small_whole_numbers_must_be_explained(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.ones((1, 6, 7), np.uint8))
    with pytest.raises(ConfigError, match=r"do not say whether they are classes.*--kind"):
        open_layers(path)
    assert open_layers(path, kind="classes").kind == "classes"
    assert open_layers(path, kind="values").kind == "values"
    assert open_layers(write_raster(tmp_path / "b.tif", np.ones((1, 6, 7), np.int16))).kind == (
        "values"
    )


def test_probabilities_of_a_prediction_are_numbers(tmp_path):
    tags = {"BOCAGE_CLASSES": '[{"value": 1, "name": "water", "color": "#000000"}]'}
    q = np.full((1, 6, 7), 125, np.uint8)
    layers = open_layers(
        write_raster(tmp_path / "p.tif", q, nodata=255, tags=tags, scales=[1 / 250])
    )
    assert layers.kind == "values" and layers.read(0, *WHOLE)[0, 0, 0] == 0.5
    layers = open_layers(write_raster(tmp_path / "m.tif", np.ones((2, 6, 7), np.uint8), tags=tags))
    assert layers.kind == "presence"


def test_embeddings_from_stores_files_and_arrays(tmp_path, numbers):
    from bocage.embeddings import export_cog

    store = write_store(tmp_path / "s.zarr", [numbers, numbers + 1], (2020, 2021))
    found = [open_layers(store), open_layers(open_embeddings(store))]
    export_cog(store, tmp_path / "s.tif", year=2021)
    found.append(open_layers(tmp_path / "s.tif"))
    for layers in found:
        assert (layers.kind, layers.features) == ("embeddings", ("000", "001"))
        np.testing.assert_allclose(layers.read(-1, *WHOLE), numbers + 1, atol=0.05)
    assert open_layers(store, years=[2021]).years == (2021,)
    np.testing.assert_array_equal(open_layers(store, years=[2021]).read(0, *WHOLE), numbers + 1)
    with pytest.raises(InputError, match=r"2019 of .*2020, 2021"):
        open_layers(store, years=[2019])
    with pytest.raises(ConfigError, match="which holds embeddings, as classes"):
        open_layers(store, kind="classes")
    with pytest.raises(ConfigError, match="which holds embeddings, as values"):
        open_layers(tmp_path / "s.tif", kind="values")  # its codes are no values


def test_rasters_of_several_years_are_one(tmp_path, numbers):
    paths = [write_raster(tmp_path / f"m_{y}.tif", numbers + y) for y in (2020, 2023)]
    layers = open_layers(paths)
    assert layers.years == (2020, 2023)
    np.testing.assert_array_equal(layers.read(1, *WHOLE), numbers + 2023)
    np.testing.assert_array_equal(open_layers(paths, years=[2023]).read(0, *WHOLE), numbers + 2023)
    with pytest.raises(InputError, match="of the years 2020, 2020"):
        open_layers([paths[0], paths[0]])
    other = write_raster(tmp_path / "x_2024.tif", numbers[:, :5])
    with pytest.raises(InputError, match="differ in their year only"):
        open_layers([paths[0], other])
    same = write_raster(tmp_path / "same.tif", numbers)
    with pytest.raises(InputError, match="2020, unknown"):
        open_layers([paths[0], same])


def test_files_that_are_none(tmp_path, numbers):
    with pytest.raises(SourceError, match="does not exist"):
        open_layers(tmp_path / "no.tif")
    (tmp_path / "half.tif").write_bytes(b"II*\0nothing")
    with pytest.raises(SourceError, match=r"half.tif"):
        open_layers(tmp_path / "half.tif")
    path = write_raster(tmp_path / "bare.tif", numbers, crs=None)
    with pytest.raises(InputError, match="without a CRS"):
        open_layers(path)
    with pytest.raises(ConfigError, match="holds no embeddings"):
        open_layers(write_raster(tmp_path / "v.tif", numbers), dims=1)


def test_numbers_that_are_none_of_ours(tmp_path, numbers):
    path = write_raster(tmp_path / "c.tif", numbers.astype(np.complex64))
    with pytest.raises(InputError, match="complex numbers"):
        open_layers(path)
    path = write_raster(tmp_path / "h.tif", numbers.astype(np.float64) * 1e300)
    with pytest.raises(InputError, match=r"numbers beyond 3.4e\+38"):
        open_layers(path).read(0, *WHOLE)
