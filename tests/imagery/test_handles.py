"""Open files go from thread to thread, and are never in two hands."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio

from bocage.errors import SourceError
from bocage.imagery import handles, open_stack, read_window
from bocage.imagery.handles import borrowed, file_stamp
from bocage.sensors import SENTINEL2_L2A
from tests.imagery.conftest import plausible


@pytest.fixture(autouse=True)
def fresh_shelf(monkeypatch):
    monkeypatch.setattr(handles, "_shelves", [handles._Shelf()])


@pytest.fixture
def path(write_raster):
    return str(write_raster("a.tif", plausible((1, 40, 50))))


def test_a_file_in_use_is_opened_once_more_and_a_returned_one_again(path):
    stamp = file_stamp(path)
    with borrowed(path, stamp) as first, borrowed(path, stamp) as second:
        assert first is not second
    with borrowed(path, stamp) as third, borrowed(path, stamp) as fourth:
        assert third is first  # returned last
        assert fourth is second
    with borrowed(path, (0, 0)) as other:
        assert other not in (first, second)


def test_a_file_whose_reading_failed_is_closed(path):
    with pytest.raises(ValueError, match="broken"), borrowed(path, (1, 1)) as dataset:
        raise ValueError("broken")
    assert dataset.closed
    with borrowed(path, (1, 1)) as again:
        assert not again.closed


def test_those_that_waited_longest_are_closed(path, monkeypatch):
    monkeypatch.setattr(handles, "_MOST_IDLE", 3)
    used = []
    for number in (1, 2, 3, 1, 4, 5):
        with borrowed(path, (number, 0)) as dataset:
            used.append(dataset)
    one, two, three, again, four, five = used
    assert again is one
    assert two.closed
    assert three.closed
    assert not (one.closed or four.closed or five.closed)


def test_of_a_file_in_several_hands_the_copies_used_last_are_kept(path, monkeypatch):
    monkeypatch.setattr(handles, "_MOST_IDLE", 3)
    with borrowed(path, (1, 0)) as one, borrowed(path, (1, 0)) as spare:
        pass
    with borrowed(path, (2, 0)) as two:
        pass
    with borrowed(path, (1, 0)) as again:
        assert again is one
    with borrowed(path, (3, 0)) as three:
        pass
    assert two.closed
    with borrowed(path, (4, 0)):
        pass
    assert spare.closed
    assert not (one.closed or three.closed)


def test_opening_a_stack_leaves_its_files_for_the_first_reader(write_raster, monkeypatch):
    path = write_raster(
        "2023-01-01.tif", plausible((12, 40, 50)), descriptions=SENTINEL2_L2A.band_names
    )
    stack = open_stack(path)

    def refuse(*_args, **_kwargs):
        raise AssertionError("opened again")

    monkeypatch.setattr(rasterio, "open", refuse)
    with ThreadPoolExecutor(1) as pool:
        window = pool.submit(read_window, stack, slice(0, 40), slice(0, 50)).result()
    assert np.isfinite(window.values["sentinel2_l2a"]).all()


def test_many_threads_read_what_gdal_reads(write_raster):
    values = plausible((12, 300, 280))
    path = write_raster(
        "2023-01-01.tif",
        values,
        descriptions=SENTINEL2_L2A.band_names,
        tiled=True,
        blockxsize=64,
        blockysize=64,
        compress="deflate",
    )
    stack, warped = open_stack(path), open_stack(path, crs="EPSG:32632")
    rng = np.random.default_rng(0)
    with rasterio.vrt.WarpedVRT(
        rasterio.open(path),
        crs="EPSG:32632",
        transform=_transform(warped),
        width=warped.sizes["x"],
        height=warped.sizes["y"],
        src_nodata=0,
        nodata=0,
    ) as vrt:
        there = vrt.read().astype(np.float32)
    there[:, (there == 0).all(axis=0)] = np.nan

    def look(_):
        top, left = (int(n) for n in rng.integers(0, 200, 2))
        rows, cols = slice(top, top + 90), slice(left, left + 70)
        for image, expected in ((stack, values), (warped, there)):
            read = read_window(image, rows, cols).values["sentinel2_l2a"][0]
            shape = expected[:, rows, cols].shape
            np.testing.assert_array_equal(read[:, : shape[1], : shape[2]], expected[:, rows, cols])
        return True

    for _ in range(3):  # threads come and go
        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(look, range(40)))


def _transform(stack):
    c, a, b, f, d, e = (float(n) for n in stack.spatial_ref.GeoTransform.split())
    return rasterio.Affine(a, b, c, d, e, f)


def test_a_rewritten_file_is_opened_again(write_raster):
    def write(seed):
        return write_raster(
            "2023-01-01.tif",
            plausible((12, 40, 50), seed=seed),
            descriptions=SENTINEL2_L2A.band_names,
        )

    open_stack(write(1))
    time.sleep(0.01)
    stack = open_stack(write(2))
    np.testing.assert_array_equal(
        stack.sentinel2_l2a.values[0], plausible((12, 40, 50), seed=2).astype(np.float32)
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_opens_its_own(path):
    stamp = file_stamp(path)
    with borrowed(path, stamp) as mine:
        pass
    child = os.fork()
    if child == 0:
        try:
            with borrowed(path, stamp) as own:
                fine = own is not mine and own.read().shape == (1, 40, 50) and not mine.closed
        except BaseException:
            fine = False
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with borrowed(path, stamp) as again:
        assert again is mine


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "no.tif").write_text("nothing")
    with pytest.raises(SourceError, match=r"no\.tif"), borrowed(str(tmp_path / "no.tif"), (0, 0)):
        pass
