"""Dates of imagery: found in names, kept as days, given to the models as day, month, year.

A month or a year in a name stands for its first day, as the models were trained: the stamp of a
composite is the start of its period. Imagery without any date gets 1 July 2020, the convention of
the official evaluations, with a warning, because later releases use the full date.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Sequence
from datetime import date as day
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNKNOWN_DATE = np.datetime64("2020-07-01", "D")
"""Stands for an unknown date (specification 9.1: data sets without dates)."""

_FULL = re.compile(r"(?<!\d)((?:19|20)\d{2})([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")
_MONTH = re.compile(r"(?<!\d)((?:19|20)\d{2})[-_.]?(0[1-9]|1[0-2])(?!\d)")
# Only at the start of a name: tile_2024.tif is more often a number than a year.
_YEAR = re.compile(r"((?:19|20)\d{2})(?!\d)")


def date_in_name(name: str) -> np.datetime64 | None:
    """The first date in a file or folder name; a lone month or leading year gives its first day.

    >>> date_in_name("T18TWL_20200601T154911_B02_10m"), date_in_name("2024")
    (np.datetime64('2020-06-01'), np.datetime64('2024-01-01'))
    """
    for match in _FULL.finditer(name):
        year, _, month, number = match.groups()
        try:
            return np.datetime64(day(int(year), int(month), int(number)), "D")
        except ValueError:
            continue  # 20230231 is a number, not a date.
    month_found = _MONTH.search(name)
    if month_found:
        return np.datetime64(f"{month_found.group(1)}-{month_found.group(2)}-01", "D")
    year_found = _YEAR.match(name)
    return np.datetime64(f"{year_found.group(1)}-01-01", "D") if year_found else None


def last_day(value: Any) -> Any:
    """What ends a span: the last day of a year or month ("2024", "2024-06"); any other as it is."""
    text = str(value).strip() if isinstance(value, str | int) else ""
    found = re.fullmatch(r"(\d{4})(?:-(0[1-9]|1[0-2]))?", text)
    if found is None:
        return value
    year, month = int(found.group(1)), int(found.group(2) or 12)
    return f"{year:04d}-{month:02d}-{monthrange(year, month)[1]}" if year else value


def parse_date(value: Any) -> np.datetime64:
    """A user's date (text, date, datetime, numpy) as a day; raises InputError naming the value."""
    try:
        text = value.isoformat() if hasattr(value, "isoformat") else value
        if isinstance(text, int):
            text = str(text)
        if isinstance(text, str):
            text = text.strip().removesuffix("Z")
            if re.fullmatch(r"\d{8}", text):
                text = f"{text[:4]}-{text[4:6]}-{text[6:]}"
        parsed = np.datetime64(text, "D")
    except (ValueError, TypeError):
        parsed = np.datetime64("NaT")
    if np.isnat(parsed):
        raise InputError(
            got=f"date {value!r}",
            expected="a date such as 2024-06-01",
            fix="pass date= (--date) as year-month-day",
        )
    return parsed


def timestamps(dates: NDArray[np.datetime64] | Sequence[Any]) -> NDArray[np.int64]:
    """Dates as the models take them: int [T, 3] of day 1..31, month 0..11, year."""
    days = np.asarray(dates, dtype="datetime64[D]").reshape(-1)
    if np.isnat(days).any():
        raise InputError(
            got="a missing date (NaT)",
            expected="a date for every time step",
            fix="pass date= (--date) to open_stack",
        )
    months = days.astype("datetime64[M]")
    years = days.astype("datetime64[Y]")
    return np.stack(
        [
            (days - months).astype(np.int64) + 1,
            (months - years).astype(np.int64),
            years.astype(np.int64) + 1970,
        ],
        axis=-1,
    )
