import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bocage.errors import ConfigError
from bocage.imagery import composite, open_stack, read_window
from bocage.imagery.composite import nan_median, period_starts
from tests.imagery.conftest import plausible
from tests.imagery.test_xarray_source import cube


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
        elements=st.one_of(st.just(np.nan), st.floats(-1000, 20000, width=32)),
    )
)
def test_the_median_is_numpys_nanmedian(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = np.nanmedian(x.astype(np.float64), axis=0)
    np.testing.assert_allclose(nan_median(x), expected, rtol=1e-6, atol=1e-3)


def test_periods_start_at_their_first_day():
    dates = np.array(["2024-01-31", "2024-02-01", "2024-02-29", "2025-01-01"], "datetime64[D]")
    starts = [str(d) for d in period_starts(dates, "month")]
    assert starts == ["2024-01-01", "2024-02-01", "2024-02-01", "2025-01-01"]
    assert [str(d) for d in period_starts(dates, "year")] == ["2024-01-01"] * 3 + ["2025-01-01"]
    assert [str(d) for d in period_starts(dates, "30d")][:3] == ["2024-01-31"] * 3
    assert str(period_starts(dates, "30d")[3]) == "2024-12-26"


@pytest.fixture
def month():
    """Three dates of one month and one of the next; the first has a cloud, the second is clear."""
    values = plausible((3, 12, 40, 50)).astype("f4")
    values[0, :, :20] = np.nan
    values[2, :, 10:] = np.nan
    dataset = cube(values, times=3)
    times = np.array(["2024-05-02", "2024-05-12", "2024-05-30"], "datetime64[ns]")
    return open_stack(dataset.assign_coords(time=times)), values


def test_a_month_becomes_the_median_of_its_usable_values(month):
    stack, values = month
    result = composite(stack, period="month", method="median")
    assert [str(t)[:10] for t in result.time.values] == ["2024-05-01"]
    x = read_window(result, slice(0, 40), slice(0, 50)).values["sentinel2_l2a"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        np.testing.assert_allclose(x, np.nanmedian(values, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(result.sentinel2_l2a.values[0], x)


def test_least_cloudy_takes_the_clearest_date_and_fills_its_gaps(month):
    stack, values = month
    values = values.copy()
    # The second date is the clearest, then the first, then the third.
    dataset = stack.assign(
        sentinel2_l2a=stack.sentinel2_l2a.where(~((stack.time.dt.day == 12) & (stack.x < 500_050)))
    )
    values[1, :, :, :5] = np.nan
    x = read_window(composite(dataset, method="least_cloudy"), slice(0, 40), slice(0, 50))
    expected = np.where(np.isnan(values[1]), values[0], values[1])
    expected = np.where(np.isnan(expected), values[2], expected)
    np.testing.assert_array_equal(x.values["sentinel2_l2a"][0], expected)


def test_a_window_of_a_composite_is_the_composite_of_the_window(month):
    stack, _ = month
    for method in ("median", "least_cloudy"):
        whole = composite(stack, method=method)
        part = read_window(whole, slice(5, 25), slice(8, 30)).values["sentinel2_l2a"]
        np.testing.assert_array_equal(part, whole.sentinel2_l2a.values[:, :, 5:25, 8:30])


@pytest.mark.parametrize("options", [{"period": "weekly"}, {"period": "0d"}, {"method": "mean"}])
def test_unknown_words_are_refused(month, options):
    with pytest.raises(ConfigError):
        composite(month[0], **options)
