import numpy as np
import pytest

from bocage.mapping import seam_figure


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
