"""A Stack can be sliced like any xarray object; dask fuses the slices into the read."""

import numpy as np
import pytest
import xarray as xr

from bocage.imagery.reader import lazy_array

VALUES = np.random.default_rng(0).uniform(size=(3, 4, 600, 530)).astype(np.float32)


class InMemory:
    shape = VALUES.shape
    present = (True, True, True)

    def read(self, times, rows, cols, out=None):
        assert out is None
        return VALUES[list(times), :, rows, cols]


@pytest.mark.parametrize(
    "selection",
    [
        {},
        {"t": 1},
        {"t": 0, "c": 2, "y": 599, "x": 0},
        {"t": -1, "y": slice(None, None, 4), "x": slice(3, 520, 7)},
        {"c": [3, 0], "y": slice(500, 600), "x": slice(None, None, -1)},
        {"c": slice(None, None, -1), "y": [5, 590, 7]},
        {"y": slice(10, 10)},
    ],
    ids=str,
)
def test_any_selection_equals_that_of_the_array_in_memory(selection):
    lazy = xr.DataArray(lazy_array(InMemory(), "test"), dims=("t", "c", "y", "x"))
    expected = xr.DataArray(VALUES, dims=("t", "c", "y", "x")).isel(selection)
    np.testing.assert_array_equal(lazy.isel(selection).values, expected.values)
