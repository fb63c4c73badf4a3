import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bocage.errors import InputError
from bocage.imagery import open_stack, read_window
from bocage.sensors import SENTINEL2_L2A
from tests.imagery.conftest import plausible


@pytest.fixture
def stack(write_raster):
    path = write_raster(
        "2023-01-01.tif", plausible((12, 40, 50)), descriptions=SENTINEL2_L2A.band_names
    )
    return open_stack(path)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(st.integers(-70, 70), st.integers(1, 90), st.integers(-70, 70), st.integers(1, 90))
def test_a_window_is_the_padded_scene_cut_out(stack, row, height, col, width):
    pad = 170
    scene = stack.sentinel2_l2a.values
    padded = np.pad(scene, [(0, 0), (0, 0), (pad, pad), (pad, pad)], constant_values=np.nan)
    window = read_window(stack, slice(row, row + height), slice(col, col + width))
    expected = padded[:, :, row + pad :, col + pad :][:, :, :height, :width]
    np.testing.assert_array_equal(window.values["sentinel2_l2a"], expected)
    assert window.values["sentinel2_l2a"].dtype == np.float32
    assert window.dates.tolist() == [np.datetime64("2023-01-01").item()]
    np.testing.assert_array_equal(window.gaps, np.isnan(expected).any(axis=(0, 1)))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(st.data())
def test_gaps_are_exactly_the_missing_pixels_of_a_scene(write_raster, data):
    """Of bands of two resolutions, with nodata, under clouds, in decibels."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    fine, coarse = plausible((4, 40, 52)), plausible((6, 20, 26))
    for x in (fine, coarse):
        if data.draw(st.booleans()):
            x[:, rng.random(x.shape[1:]) < 0.05] = 0
    names = SENTINEL2_L2A.band_names
    folder = f"2023-01-0{data.draw(st.integers(1, 9))}"
    write_raster(f"{folder}/fine.tif", fine, descriptions=("B02", "B03", "B04", "B08"))
    rest = tuple(n for n in names if n not in ("B01", "B09", "B02", "B03", "B04", "B08"))
    path = write_raster(f"{folder}/coarse.tif", coarse, res=20.0, descriptions=rest)
    if data.draw(st.booleans()):
        classes = rng.choice([4, 5, 9], p=[0.5, 0.45, 0.05], size=(1, 20, 26)).astype("u1")
        write_raster(f"{folder}/scl.tif", classes, res=20.0, descriptions=("SCL",))
    if data.draw(st.booleans()):
        for name in ("B01", "B09"):
            far = data.draw(st.sampled_from([0, 60]))
            sixty = plausible((1, 7, 9))
            write_raster(f"{folder}/{name}.tif", sixty, res=60.0, west=500_000.0 + far)
    stack = open_stack(path.parent, date="2023-01-05")
    window = read_window(stack, slice(-3, 39), slice(4, 60))
    x = window.values["sentinel2_l2a"]
    np.testing.assert_array_equal(window.gaps, np.isnan(x).any(axis=(0, 1)))


def test_a_gap_of_one_scene_that_another_fills_is_none(write_raster):
    x = plausible((12, 30, 30))
    holes = np.zeros((2, 30, 30), bool)
    holes[0, 3:9, 4:8] = holes[1, 5:20, 6:12] = True  # the top one, and the one below
    for product, hole in zip("ab", holes, strict=True):
        part = np.where(hole, 0, x).astype(x.dtype)
        path = write_raster(
            f"{product}/2023-01-01.tif", part, descriptions=SENTINEL2_L2A.band_names
        )
    window = read_window(open_stack(path.parents[1]), slice(0, 30), slice(0, 30))
    np.testing.assert_array_equal(window.gaps, holes.all(axis=0))
    missing = np.isnan(window.values["sentinel2_l2a"]).any(axis=(0, 1))
    np.testing.assert_array_equal(missing, holes.all(axis=0))


def test_radar_without_an_echo_is_a_gap(write_raster):
    power = np.random.default_rng(0).uniform(0.001, 0.3, (2, 30, 30)).astype("f4")
    power[0, 3:6, 7] = 0
    path = write_raster("2023-01-01.tif", power, descriptions=("VV", "VH"))
    stack = open_stack(path, scale="db")
    window = read_window(stack, slice(0, 30), slice(0, 30))
    assert window.gaps.sum() == 3
    np.testing.assert_array_equal(
        window.gaps, np.isnan(window.values["sentinel1"]).any(axis=(0, 1))
    )


@pytest.mark.parametrize("rows", [slice(5, 5), slice(9, 3), slice(0, 8, 2)])
def test_an_empty_or_strided_range_is_refused(stack, rows):
    with pytest.raises(InputError, match="rows="):
        read_window(stack, rows, slice(0, 10))


def test_a_dataset_that_is_no_stack_is_refused(stack):
    with pytest.raises(InputError, match="open_stack"):
        read_window(stack.rename(sentinel2_l2a="picture"), slice(0, 4), slice(0, 4))


def test_a_stack_travels_to_another_process(stack):
    there = pickle.loads(pickle.dumps(stack))
    here = read_window(stack, slice(3, 9), slice(1, 5)).values["sentinel2_l2a"]
    np.testing.assert_array_equal(
        read_window(there, slice(3, 9), slice(1, 5)).values["sentinel2_l2a"], here
    )


def test_changed_values_are_the_ones_that_are_read(stack):
    changed = stack.assign(sentinel2_l2a=stack.sentinel2_l2a * 2)
    there = read_window(changed, slice(3, 9), slice(1, 5)).values["sentinel2_l2a"]
    here = read_window(stack, slice(3, 9), slice(1, 5)).values["sentinel2_l2a"]
    np.testing.assert_array_equal(there, here * 2)


def test_some_dates_are_read_without_a_task_graph(write_raster, monkeypatch):
    paths = [
        write_raster(
            f"2023-0{month}-01.tif",
            plausible((12, 20, 30), seed=month),
            descriptions=SENTINEL2_L2A.band_names,
        )
        for month in (1, 2, 3)
    ]
    stack = open_stack(paths)
    chosen = stack.isel(time=[2, 0])
    expected = chosen.sentinel2_l2a.values

    def refuse(*_args, **_kwargs):
        raise AssertionError("computed by dask")

    monkeypatch.setattr("dask.array.Array.__array__", refuse)
    window = read_window(stack, slice(-2, 20), slice(0, 30), times=[2, 0])
    np.testing.assert_array_equal(window.values["sentinel2_l2a"][:, :, 2:], expected)
    assert np.isnan(window.values["sentinel2_l2a"][:, :, :2]).all()
    assert window.dates.tolist() == chosen["time"].values.astype("datetime64[D]").tolist()
