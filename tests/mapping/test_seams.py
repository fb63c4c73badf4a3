import numpy as np
import pytest

from bocage.errors import InputError
from bocage.mapping import seam_figure, window_sensitivity


def test_noise_without_seams_gives_one():
    x = np.random.default_rng(0).standard_normal((16, 96, 96)).astype(np.float32)
    assert seam_figure(x, 12) == pytest.approx(1, abs=0.01)


def test_steps_at_borders_are_found_with_their_size():
    # A ramp of slope 1 everywhere, and an extra step of 2 after every fourth cell.
    ramp = np.arange(32.0) + 2 * (np.arange(32) // 4)
    x = np.broadcast_to(ramp, (1, 32, 32)) + np.broadcast_to(ramp[:, None], (1, 32, 32))
    assert seam_figure(x.astype(np.float32), 4) == pytest.approx(3)
    # With borders looked for where there are none, they are hidden in the mean.
    assert seam_figure(x.astype(np.float32), 5) < 1.1


def test_missing_cells_are_left_out():
    x = np.random.default_rng(1).standard_normal((4, 40, 40)).astype(np.float32)
    x[:, :3] = np.nan
    assert np.isfinite(seam_figure(x, 8))


def blended_offsets(n, window, start, offset):
    """Windows of a map along one axis: each adds its own offset, faded over half a window."""
    at = (np.arange(n) - start) / window
    low = np.floor(at).astype(int) % len(offset)
    share = np.clip(2 * (at - np.floor(at)) - 0.5, 0, 1)  # flat, then a ramp
    return (1 - share) * offset[low] + share * offset[(low + 1) % len(offset)]


def test_offsets_that_a_blend_hides_from_the_seam_figure_are_seen():
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((2, 160, 160)) * 0.3
    offset = np.array([0.0, 2.0, -1.0, 1.0, -2.0, 0.5, 3.0, -1.5])
    windows = [blended_offsets(160, 20, start, offset) for start in (0, 10)]
    first, second = (noise + w for w in windows)
    assert seam_figure(first, 20) < 1.05
    found = window_sensitivity(first, second)
    assert found.mean > 0.5
    assert found.p99 > found.mean
    assert window_sensitivity(noise + 5, noise + 5) == (0, 0)


def test_sensitivity_is_one_for_maps_that_share_nothing_and_a_share_of_their_spread():
    rng = np.random.default_rng(3)
    a, b, e = rng.standard_normal((3, 8, 200, 200))
    assert window_sensitivity(a, b).mean == pytest.approx(1, abs=0.01)
    # Noise of a tenth of the spread in one of the maps, which also widens it by a little.
    assert window_sensitivity(a, a + 0.1 * e).mean == pytest.approx(
        np.sqrt(0.01 / (1 + 1.01)), rel=0.01
    )
    assert window_sensitivity(7 * a + 3, 7 * b + 3).mean == pytest.approx(
        window_sensitivity(a, b).mean
    )
    b[0, :50] = np.nan
    assert window_sensitivity(a, b).mean == pytest.approx(1, abs=0.01)


def test_maps_that_cannot_be_compared_are_refused():
    a = np.ones((2, 4, 4))
    with pytest.raises(InputError, match="maps of shapes"):
        window_sensitivity(a, a[:, 1:])
    with pytest.raises(InputError, match="no variation"):
        window_sensitivity(a, a)
    with pytest.raises(InputError, match="0 common cells"):
        window_sensitivity(a, np.full_like(a, np.nan))
