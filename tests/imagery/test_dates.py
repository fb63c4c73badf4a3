from datetime import date, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bocage.errors import InputError
from bocage.imagery.dates import date_in_name, parse_date, timestamps


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("T18TWL_20200601T154911_B02_10m", "2020-06-01"),
        ("LC08_L1TP_018033_20200601_20200820_02_T1_B2", "2020-06-01"),
        ("mosaic_2024-05", "2024-05-01"),
        ("2024", "2024-01-01"),
        ("S2_2021.03.04", "2021-03-04"),
        ("20230231_20230301", "2023-03-01"),
        ("patch_511198", None),
        ("tile_2024", None),
        ("S2A_MSIL2A_N0214", None),
    ],
)
def test_dates_in_names(name, expected):
    found = date_in_name(name)
    assert (None if found is None else str(found)) == expected


@given(st.dates(min_value=date(1980, 1, 1), max_value=date(2060, 12, 31)))
def test_timestamps_agree_with_the_calendar(day):
    """Day from 1, month from 0, year, as the models take them (specification 1.3)."""
    stamp = timestamps(np.array([day], dtype="datetime64[ns]"))
    assert stamp.tolist() == [[day.day, day.month - 1, day.year]]


@pytest.mark.parametrize(
    "value",
    [
        "2024-06-01",
        "20240601",
        date(2024, 6, 1),
        datetime(2024, 6, 1, 12),
        20240601,
        "2024-06-01T10:00:00Z",
        np.datetime64("2024-06-01T10:00"),
    ],
)
def test_dates_are_taken_in_many_spellings(value):
    assert parse_date(value) == np.datetime64("2024-06-01")


@pytest.mark.parametrize("value", ["yesterday", "2024-13-01", None, "", 3.5])
def test_a_wrong_date_is_named(value):
    with pytest.raises(InputError, match="date"):
        parse_date(value)
