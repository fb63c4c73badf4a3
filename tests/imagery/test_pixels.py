"""Stored numbers in a window, against a loop over its pixels."""

from dataclasses import dataclass

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from bocage.geo import Grid
from bocage.imagery.pixels import fill_window, place, to_units
from bocage.sensors import SENSORS

BANDS = SENSORS["sentinel2_l2a"].band_names


@dataclass
class Band:
    band: str
    transform: Affine
    values: np.ndarray
    nodata: float | None = None
    scale: float | str = 1.0
    offset: float = 0.0


def grid_of(resolution=10.0, shape=(90, 70)):
    transform = Affine(resolution, 0, 500_000, 0, -resolution, 5_000_000)
    return Grid(crs="EPSG:32631", transform=transform, shape_yx=shape)


def filled(bands, grid, rows, cols):
    out = np.full((len(BANDS), rows.stop - rows.start, cols.stop - cols.start), 7, np.float32)
    pieces = []
    for band in bands:
        where = place(band.transform, band.values.shape, grid, rows, cols)
        if where is not None:
            pieces.append((band, where, band.values[where.rows, where.cols]))
    fill_window("sentinel2_l2a", pieces, out)
    return out


def source_pixel(band, grid, row, col):
    """The number whose pixel holds the centre of a grid pixel; None outside."""
    x, y = grid.transform @ (col + 0.5, row + 0.5)
    across, down = ~band.transform @ (x, y)
    i, j = int(np.floor(down + 1e-6)), int(np.floor(across + 1e-6))
    inside = 0 <= i < band.values.shape[0] and 0 <= j < band.values.shape[1]
    return band.values[i, j] if inside else None


def naive(bands, grid, rows, cols, is_missing):
    out = np.full((len(BANDS), rows.stop - rows.start, cols.stop - cols.start), np.nan, np.float32)
    for band in bands:
        image = out[BANDS.index(band.band)]
        for r in range(*rows.indices(10**6)):
            for c in range(*cols.indices(10**6)):
                stored = [source_pixel(b, grid, r, c) for b in bands]
                mine = stored[bands.index(band)]
                if mine is not None and not is_missing([v for v in stored if v is not None]):
                    image[r - rows.start, c - cols.start] = np.float32(mine)
    return out


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_pixel_is_the_one_that_holds_its_centre(data):
    """Bands of one resolution share their nodata; here three of them share all their pixels."""
    draw = data.draw
    step = draw(st.sampled_from([5, 10, 15, 20, 30, 40, 60]))
    shift = draw(st.integers(-12, 12)) * 2.5, draw(st.integers(-12, 12)) * 2.5
    grid = grid_of(draw(st.sampled_from([10.0, 10.0, 20.0])), (30, 26))
    transform = Affine(step, 0, 500_000 + shift[0], 0, -step, 5_000_000 + shift[1])
    dtype = draw(st.sampled_from(["uint16", "int16", "uint8", "float32", "int32", ">u2"]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = draw(st.integers(1, 330 // step + 2)), draw(st.integers(1, 330 // step + 2))
    holes = rng.random(shape) < draw(st.sampled_from([0, 0.02, 0.5]))
    code = draw(st.sampled_from([None, 0, 65535 if np.dtype(dtype).kind == "u" else -9999]))
    code = 0 if code == 65535 and np.dtype(dtype).itemsize == 1 else code
    bands = []
    for name in ("B02", "B05", "B8A"):
        values = rng.integers(0 if code is None else 1, 200, shape).astype(dtype)
        values[holes] = 0 if code is None else code
        bands.append(Band(name, transform, values, code))
    top, left = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    rows = slice(top, draw(st.integers(top + 1, 30)))
    cols = slice(left, draw(st.integers(left + 1, 26)))

    def is_missing(stored):
        return all(v == 0 for v in stored) if code is None else any(v == code for v in stored)

    np.testing.assert_array_equal(
        filled(bands, grid, rows, cols), naive(bands, grid, rows, cols, is_missing)
    )


def test_bands_a_fraction_of_a_pixel_apart_each_take_their_own_pixels():
    values = np.random.default_rng(0).integers(1, 900, (40, 40)).astype(np.uint16)
    values[10:14, 9] = 0
    near = Affine(20, 0, 499_990, 0, -20, 5_000_010)
    far = Affine(20, 0, 499_985, 0, -20, 5_000_010)
    bands = [Band("B05", near, values), Band("B06", far, values)]
    grid, rows, cols = grid_of(), slice(4, 60), slice(3, 50)
    expected = naive(bands, grid, rows, cols, lambda _: False)
    expected[expected == 0] = np.nan
    np.testing.assert_array_equal(filled(bands, grid, rows, cols), expected)


def test_a_hole_that_a_coarser_grid_passes_over_is_none():
    values = np.random.default_rng(0).integers(1, 900, (180, 140)).astype(np.uint16)
    values[7, 8] = 0  # centres of the grid lie in odd rows and columns
    band = Band("B05", Affine(5, 0, 500_000, 0, -5, 5_000_000), values)
    out = filled([band], grid_of(), slice(0, 90), slice(0, 70))[BANDS.index("B05")]
    np.testing.assert_array_equal(out, values[1::2, 1::2].astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_missing_floats_and_never_used_codes_are_holes_in_all_bands_of_the_resolution(dtype):
    rng = np.random.default_rng(0)
    transform = grid_of().transform
    bands = [
        Band(name, transform, rng.uniform(-0.0, 3000, (90, 70)).astype(dtype))
        for name in ("B02", "B03", "B04")
    ]
    bands[0].values[3, 4], bands[1].values[5, 6], bands[2].values[70:, :9] = np.nan, -9999, 65535
    bands[2].values[50] = np.inf
    holes = np.zeros((90, 70), bool)
    holes[3, 4] = holes[5, 6] = holes[70:, :9] = True
    out = filled(bands, grid_of(), slice(0, 90), slice(0, 70))
    for band in bands:
        expected = np.where(holes, np.nan, band.values).astype(np.float32)
        np.testing.assert_array_equal(out[BANDS.index(band.band)], expected)


@pytest.mark.parametrize("step", [10, 20, 30])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, -1000.0), (0.5, 0.0), (2.0, -300.0)])
def test_units_are_those_of_the_whole_image(step, scale, offset):
    values = np.random.default_rng(0).integers(1, 3000, (900 // step, 700 // step))
    transform = Affine(step, 0, 500_000, 0, -step, 5_000_000)
    band = Band("B03", transform, values.astype(np.uint16), None, scale, offset)
    out = filled([band], grid_of(), slice(5, 99), slice(7, 77))[BANDS.index("B03")]
    whole = np.maximum(values.astype(np.float32) * np.float32(scale) + np.float32(offset), 0)
    whole = whole if offset else values.astype(np.float32) * np.float32(scale)
    repeated = whole.repeat(step // 10, axis=0).repeat(step // 10, axis=1)
    height, width = repeated.shape
    np.testing.assert_array_equal(out[: height - 5, : width - 7], repeated[5:, 7:])
    assert np.isnan(out[height - 5 :]).all()
    assert np.isnan(out[:, width - 7 :]).all()


def test_decibels_are_ten_logarithms_and_no_echo_is_missing():
    power = np.array([[0.0, 1.0], [0.1, 1e-20]])
    np.testing.assert_allclose(
        to_units(power, "sentinel1", "db", 0.0), [[np.nan, 0], [-10, -100]], rtol=1e-6
    )
    np.testing.assert_allclose(
        to_units(power, "sentinel1", "db20", -83.0), [[np.nan, -83], [-103, -283]], rtol=1e-6
    )
