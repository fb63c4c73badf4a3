"""How the windows of a strip share batches, and what a batch costs in copies."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bocage.geo import Block, Window
from bocage.mapping.worker import Strip, StripPlace, _gather, _group_by_missing, _split

SIDE = 8


def strip_of(arrays, corners):
    windows = tuple(
        Window(row_px=r, col_px=c, core_row_px=r, core_col_px=c, core_shape_yx=(SIDE, SIDE))
        for r, c in corners
    )
    place = StripPlace(
        block=Block(index_yx=(0, 0), row_px=0, col_px=0, shape_yx=(40, 40)),
        year=2024,
        number=0,
        windows=windows,
        rows=slice(3, 43),
        cols=slice(5, 45),
    )
    gaps = np.any([np.isnan(x).any(axis=(0, 1)) for x in arrays.values()], axis=0)
    return Strip(place=place, values=arrays, timestamps=np.zeros((2, 3), np.int64), gaps=gaps)


@pytest.mark.parametrize(
    ("corners", "copies"),
    [
        ([(3, 5)], False),
        ([(4, 5), (4, 11), (4, 17)], False),
        ([(3, 6), (10, 6), (17, 6)], False),
        ([(3, 5), (8, 10), (13, 15)], False),
        ([(3, 5), (3, 9), (3, 15)], True),
        ([(3, 9), (3, 5)], False),
    ],
)
def test_a_batch_holds_the_pixels_of_its_windows_and_even_ones_are_not_copied(corners, copies):
    x = np.random.default_rng(0).standard_normal((2, 3, 40, 40)).astype(np.float32)
    strip = strip_of({"sentinel2_l2a": x}, corners)
    batch = _gather(x, strip, list(strip.place.windows), SIDE)
    expected = np.stack([x[:, :, r - 3 : r + 5, c - 5 : c + 3] for r, c in corners])
    np.testing.assert_array_equal(batch, expected)
    assert np.shares_memory(batch, x) != copies


@settings(max_examples=200, deadline=None)
@given(
    columns=st.lists(st.integers(0, 30), min_size=1, max_size=9, unique=True),
    rows=st.lists(st.integers(0, 30), min_size=1, max_size=5, unique=True),
    n=st.integers(1, 12),
)
def test_batches_hold_every_window_once_and_long_even_runs_are_not_copied(columns, rows, n):
    corners = [(3 + r, 5 + c) for r in sorted(rows) for c in sorted(columns)]
    x = np.zeros((1, 1, 40, 40), np.float32)
    strip = strip_of({"sentinel2_l2a": x}, corners)
    found = _split(list(strip.place.windows), n)
    assert sorted((w.row_px, w.col_px) for batch in found for w in batch) == sorted(corners)
    assert all(1 <= len(batch) <= n for batch in found)
    if (
        len(rows) == 1
        and len(columns) > 1
        and len({b - a for a, b in pairwise(sorted(columns))}) == 1
    ):
        assert len(found) == -(-len(columns) // n)  # No more calls than there must be.
        assert all(np.shares_memory(_gather(x, strip, batch, SIDE), x) for batch in found)


def test_the_first_window_of_a_row_costs_the_others_no_copy():
    # At the edge of a scene the first step is shorter; the odd windows of all rows share a batch.
    corners = [(3 + r, 5 + c) for r in (0, 10, 20) for c in (0, 4, 10, 16, 22, 28)]
    x = np.zeros((1, 1, 40, 40), np.float32)
    strip = strip_of({"sentinel2_l2a": x}, corners)
    found = _split(list(strip.place.windows), 5)
    assert [len(batch) for batch in found] == [5, 5, 5, 3]
    assert {w.col_px for w in found[-1]} == {5}
    assert all(np.shares_memory(_gather(x, strip, batch, SIDE), x) for batch in found)


def naive_groups(strip):
    """Windows by the exact set of (sensor, date, band) that are absent, and whether a pixel is."""
    groups = {}
    for window in strip.place.windows:
        row, col = window.row_px - 3, window.col_px - 5
        absent, partly, n_valid = [], False, 0
        for x in strip.values.values():
            for date in x:
                for band in date:
                    missing = np.isnan(band[row : row + SIDE, col : col + SIDE])
                    absent.append(bool(missing.all()))
                    partly |= bool(missing.any() and not missing.all())
                    n_valid += int((~missing).sum())
        if n_valid:
            groups.setdefault((tuple(absent), partly), []).append(window)
    return list(groups.values())


def test_windows_share_a_batch_when_they_miss_the_same():
    rng = np.random.default_rng(1)
    s2 = rng.standard_normal((2, 3, 40, 40)).astype(np.float32)
    s1 = rng.standard_normal((2, 2, 40, 40)).astype(np.float32)
    corners = [(3 + r, 5 + c) for r in range(0, 33, 8) for c in range(0, 33, 8)]
    cells = [(slice(r, r + 8), slice(c, c + 8)) for r in range(0, 40, 8) for c in range(0, 40, 8)]
    for cell in cells[2:4]:  # nothing at all
        s2[(..., *cell)] = s1[(..., *cell)] = np.nan
    for cell in cells[5:9]:  # one band of one date
        s2[(1, 2, *cell)] = np.nan
    for cell in cells[7:11]:  # one sensor
        s1[(..., *cell)] = np.nan
    s2[0, 1, 30:34, 2:30] = np.nan  # some pixels
    s1[1, 1, 39, 39] = np.inf  # not missing, and not a number to be summed
    strip = strip_of({"sentinel2_l2a": s2, "sentinel1": s1}, corners)
    assert _group_by_missing(strip, SIDE) == naive_groups(strip)
    assert len(naive_groups(strip)) > 4


def test_numbers_too_large_to_be_summed_are_not_missing():
    x = np.full((2, 3, 40, 40), 3e38, np.float32)
    x[0, :, :20] *= -1
    strip = strip_of({"sentinel2_l2a": x}, [(3, 5), (20, 20)])
    assert _group_by_missing(strip, SIDE) == [list(strip.place.windows)]
