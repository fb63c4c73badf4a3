from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bocage.errors import ConfigError
from bocage.geo import lay_out


@st.composite
def layouts(draw):
    patch = draw(st.sampled_from([1, 2, 4, 8]))
    halo = draw(st.integers(0, 3)) * patch
    core = draw(st.integers(1, 8)) * patch
    return lay_out(
        (draw(st.integers(1, 25 * patch)), draw(st.integers(1, 25 * patch))),
        patch_size=patch,
        window_px=core + 2 * halo,
        halo_px=halo,
        block_px=draw(st.integers(1, 40 * patch)),
    )


@settings(deadline=None)  # a shared machine pauses at will
@given(layouts())
def test_cores_tile_the_padded_image_exactly_once(layout):
    seen = np.zeros(layout.shape_yx, int)
    for block in layout.blocks():
        windows = list(layout.windows(block))
        assert len(windows) == layout.n_windows(block)
        for w in windows:
            rows, cols = w.core_shape_yx
            seen[w.core_row_px : w.core_row_px + rows, w.core_col_px : w.core_col_px + cols] += 1
    assert (seen == 1).all()


@settings(deadline=None)  # a shared machine pauses at will
@given(layouts())
def test_windows_have_a_full_halo_inside_the_image_and_stay_on_the_patch_lattice(layout):
    for block in layout.blocks():
        for w in layout.windows(block):
            for start, keep, kept, length in (
                (w.row_px, w.core_row_px, w.core_shape_yx[0], layout.shape_yx[0]),
                (w.col_px, w.core_col_px, w.core_shape_yx[1], layout.shape_yx[1]),
            ):
                end = start + layout.window_px
                assert 0 <= start <= keep
                assert keep - start >= layout.halo_px or start == 0
                assert end - (keep + kept) >= layout.halo_px or end >= length
                assert end <= max(length, layout.window_px)
                assert start % layout.patch_size == keep % layout.patch_size == 0


@settings(deadline=None)  # a shared machine pauses at will
@given(layouts())
def test_blocks_all_start_on_multiples_of_the_block_side(layout):
    for block in layout.blocks():
        i, j = block.index_yx
        assert (block.row_px, block.col_px) == (i * layout.block_px, j * layout.block_px)
        assert max(block.shape_yx) <= layout.block_px


@settings(deadline=None)  # a shared machine pauses at will
@given(layouts())
def test_windows_reach_only_into_blocks_that_are_neighbours(layout):
    for block in layout.blocks():
        around = {b.index_yx for b in layout.neighbours(block)} | {block.index_yx}
        side = layout.block_px
        for w in layout.windows(block):
            for start, core, n, axis in (
                (w.row_px, w.core_row_px, w.core_shape_yx[0], 0),
                (w.col_px, w.core_col_px, w.core_shape_yx[1], 1),
            ):
                first = max(start, core - layout.halo_px)
                last = min(start + layout.window_px, core + n + layout.halo_px) - 1
                last = min(last, layout.shape_yx[axis] - 1)
                assert {first // side, last // side} <= {index[axis] for index in around}


@settings(deadline=None)  # a shared machine pauses at will
@given(layouts(), st.integers(1, 40))
def test_where_blocks_fall_changes_no_window(layout, n_cores):
    other = replace(layout, block_px=n_cores * layout.core_px)
    windows, others = (
        {window for block in of.blocks() for window in of.windows(block)} for of in (layout, other)
    )
    assert windows == others


@pytest.mark.parametrize(("length", "n"), [(160, 1), (161, 2), (224, 2), (225, 3), (320, 3)])
def test_what_is_left_of_an_image_within_a_halo_needs_no_window(length, n):
    layout = lay_out((length, 40), patch_size=1, window_px=160, halo_px=32, block_px=96 * 10)
    assert sum(layout.n_windows(block) for block in layout.blocks()) == n


@pytest.mark.parametrize(("window", "halo"), [(100, 8), (96, 9), (32, 16)])
def test_sizes_that_do_not_divide_are_refused_with_a_size_that_does(window, halo):
    with pytest.raises(ConfigError, match="use --"):
        lay_out((100, 100), patch_size=8, window_px=window, halo_px=halo, block_px=512)
