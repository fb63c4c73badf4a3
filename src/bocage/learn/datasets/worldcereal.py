"""WorldCereal's public extractions: labelled pixels with twelve months of Sentinel-1 and -2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.learn.classes import make_classes
from bocage.learn.datasets.dataset import Dataset, need
from bocage.sensors import SENTINEL1, SENTINEL2_L2A

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

NODATA = 65_535
N_MONTHS = 12
MIN_SAMPLES = 10
"""Rarer classes become "other": nothing can be said about them."""


def read_worldcereal(path: Path, *, column: str = "finetune_class") -> Dataset:
    """Monthly composites of single pixels; months without data are NaN."""
    import pandas

    need(path, "worldcereal", "https://github.com/WorldCereal/worldcereal-classification")
    table = pandas.read_parquet(path)
    sentinel2 = _values(table, "OPTICAL", SENTINEL2_L2A.band_names)
    amplitude = _values(table, "SAR", tuple(b.upper() for b in SENTINEL1.band_names))
    sentinel1 = 20 * np.log10(amplitude) - np.float32(83)
    names = np.asarray(table[column].astype(str))
    found, counts = np.unique(names, return_counts=True)
    rare = set(found[counts < MIN_SAMPLES])
    names = np.array(["other" if n in rare else n for n in names])
    known = np.unique(names)
    return Dataset(
        name="worldcereal",
        images={
            "sentinel2_l2a": sentinel2[..., None, None],
            "sentinel1": sentinel1[..., None, None].astype(np.float32),
        },
        timestamps=_months(table["start_date"]),
        y=np.searchsorted(known, names).astype(np.int64),
        task="classification",
        classes=make_classes([str(n) for n in known]),
        lonlat=np.asarray(table[["lon", "lat"]], np.float64),
        group=np.unique(np.asarray(table["ref_id"]), return_inverse=True)[1].reshape(-1),
        note="single pixels, 12 months; B01 and B09 are not there",
    )


def _values(table: Any, kind: str, bands: tuple[str, ...]) -> FloatArray:
    """[n, T, C]; NaN for what is missing and for bands that the table does not have."""
    found = np.full((len(table), N_MONTHS, len(bands)), np.nan, np.float32)
    for c, band in enumerate(bands):
        for t in range(N_MONTHS):
            names = [f"{kind}-{band}-ts{t}-{m}m" for m in (10, 20)]
            name = next((n for n in names if n in table.columns), None)
            if name is not None:
                values = np.asarray(table[name], np.float32)
                found[:, t, c] = np.where((values == NODATA) | (values <= 0), np.nan, values)
    return found


def _months(start: Any) -> NDArray[np.int64]:
    import pandas

    first = pandas.to_datetime(start)
    month = np.asarray(first.dt.year) * 12 + np.asarray(first.dt.month) - 1
    months = month[:, None] + np.arange(N_MONTHS)
    day = np.full_like(months, 15)  # composites of a month
    return np.stack([day, months % 12, months // 12], axis=2).astype(np.int64)
