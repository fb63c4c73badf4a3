"""Sums over tiles against numpy over everything at once."""

import numpy as np
import pytest

from bocage.zonal.coverage import Covered
from bocage.zonal.moments import Moments


def covered(zones, cells, shares):
    return Covered(
        zone=np.asarray(zones),
        start=np.concatenate([[0], np.cumsum([len(c) for c in cells])]),
        cell=np.concatenate(cells).astype(np.int32),
        share=np.concatenate(shares),
    )


@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (3000, 1e-2), (-8e6, 2)])
@pytest.mark.parametrize("n_tiles", [1, 7])
def test_weighted_mean_and_spread_in_any_number_of_tiles(offset, spread, n_tiles):
    rng = np.random.default_rng(0)
    x = (offset + spread * rng.normal(0, 1, (3, 7 * 50))).astype(np.float32)
    shares = [rng.random(350), rng.random(350)]
    moments = Moments(4, 3, ("mean", "std", "min", "max", "sum"))
    for part in np.split(np.arange(350), n_tiles):
        cells = [np.arange(len(part)), np.arange(len(part))]
        moments.add(x[:, part], covered([1, 3], cells, [s[part] for s in shares]))
    for zone, share in zip([1, 3], shares, strict=True):
        mean = np.average(x.astype(np.float64), axis=1, weights=share)
        std = np.sqrt(
            np.average((x.astype(np.float64) - mean[:, None]) ** 2, axis=1, weights=share)
        )
        np.testing.assert_allclose(moments.result("mean")[zone], mean, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(moments.result("std")[zone], std, rtol=1e-10)
        np.testing.assert_allclose(moments.result("sum")[zone], mean * share.sum(), rtol=1e-12)
        np.testing.assert_array_equal(moments.result("min")[zone], x.min(axis=1))
        np.testing.assert_array_equal(moments.result("max")[zone], x.max(axis=1))
    assert moments.weight[[0, 2]].tolist() == [0, 0]
    assert all(np.isnan(moments.result(n)[[0, 2]]).all() for n in ("mean", "std", "sum", "min"))


def test_cells_without_a_zone_do_not_enter_anything():
    x = np.array([[np.nan, 5, np.nan, 1e30, 7]], np.float32)
    moments = Moments(1, 1, ("mean", "std", "min", "max", "sum"))
    moments.add(x, covered([0], [[1, 4]], [np.array([1.0, 0.5])]))
    assert moments.result("mean")[0, 0] == pytest.approx((5 + 3.5) / 1.5, rel=1e-14)
    assert moments.result("max")[0, 0] == 7


def test_one_cell_has_no_spread():
    moments = Moments(1, 1, ("std",))
    x = np.array([[0.1]], np.float32)
    for _ in range(3):
        moments.add(x, covered([0], [[0]], [np.array([0.3])]))
    assert moments.result("std")[0, 0] == 0
    assert moments.result("mean")[0, 0] == np.float32(0.1)
