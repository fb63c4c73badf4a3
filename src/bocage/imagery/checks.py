"""What is wrong with an opened source: wrong units, nothing but nodata, missing bands, L1C.

Looks at a few small windows, so that opening stays cheap; only where all of them are empty does it
look further.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np

from bocage.errors import BocageWarning, InputError
from bocage.sensors import SENSORS
from bocage.units import check_units, lacks_offset, offset_evidence, sample_pixels

if TYPE_CHECKING:
    from bocage.imagery.opened import Opened, OpenOptions
    from bocage.imagery.reader import Reader
    from bocage.types import FloatArray

log = logging.getLogger(__name__)

_SIDE = 64
_FRACTIONS = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))
"""Centres of the sample windows; five tiles of a tiled file at most."""

_MANY_DATES = 24
_BLOCK = 1024


def check_opened(opened: Opened, options: OpenOptions) -> None:
    """Raise InputError or warn with BocageWarning about an opened source."""
    _check_bands(opened)
    if opened.level_1c and options.level != "L1C" and "sentinel2_l2a" in opened.readers:
        warnings.warn(
            f"Sentinel-2 Level-1C ({opened.level_1c}) where the models were trained on L2A surface "
            "reflectance: the atmosphere brightens blue bands and embeddings shift; use L2A, or "
            'pass level="L1C" (--level L1C) to accept this',
            BocageWarning,
            stacklevel=3,
        )
    if not opened.dates_known:
        warnings.warn(
            "the imagery has no date, so 1 July 2020 is assumed; the models read day, month and "
            "year, so embeddings would differ with the true date: pass date= (--date)",
            BocageWarning,
            stacklevel=3,
        )
    for sensor, reader in opened.readers.items():
        _check_values(sensor, reader, opened)


def _check_bands(opened: Opened) -> None:
    for sensor, missing in opened.missing_bands.items():
        total = len(SENSORS[sensor].bands)
        if not missing:
            continue
        listed = " ".join(missing)
        if len(missing) > 0.2 * total:
            warnings.warn(
                f"{SENSORS[sensor].title} lacks {len(missing)} of {total} bands ({listed}); the "
                "models fill them by rule, but were not meant for so few: expect weaker embeddings",
                BocageWarning,
                stacklevel=4,
            )
        else:
            log.info("%s lacks %s; the models fill them by rule", SENSORS[sensor].title, listed)


def _check_values(sensor: str, reader: Reader, opened: Opened) -> None:
    times = [t for t, there in enumerate(reader.present) if there]
    if len(times) > _MANY_DATES:
        picks = np.linspace(0, len(times) - 1, _MANY_DATES).round().astype(int)
        times = [times[i] for i in picks]
    some = False
    samples = {time: sample_pixels(sample(reader, time)) for time in times}
    dark_eras = {
        _era(opened, t) for t, x in samples.items() if sensor == "sentinel2_l2a" and lacks_offset(x)
    }
    for time, x in samples.items():
        valid = np.isfinite(x).any(axis=-1)
        if not valid.any():
            continue
        some = True
        day = str(opened.dates[time]) if opened.dates_known else ""
        where = ", ".join(part for part in (_source_name(opened), day) if part)
        settled = opened.offset_settled or (
            _era(opened, time) in dark_eras and offset_evidence(x) != "strong"
        )
        check_units(sensor, x, where=where, offset_settled=settled)
        if sensor in opened.masks:
            log.info(
                "%s %s: %s and nodata mask about %.0f %% of the pixels",
                SENSORS[sensor].title,
                day,
                opened.masks[sensor],
                100 * (1 - valid.mean()),
            )
    if not some and not _has_data(reader):
        clouds = " or cloud" if sensor in opened.masks else ""
        raise InputError(
            got=f"{SENSORS[sensor].title} in {_source_name(opened)}, all of it nodata{clouds}",
            expected="at least one usable pixel",
            fix="check the area, the nodata value of the files"
            + (", or pass cloud_mask=False (--no-cloud-mask)" if clouds else ""),
        )


def _era(opened: Opened, time: int) -> bool:
    """Whether a date lies after the start of baseline 04.00; within an era one clear date tells."""
    return bool(opened.dates[time] >= np.datetime64("2022-01-25"))


def _source_name(opened: Opened) -> str:
    first = opened.sources[0] if opened.sources else "the input"
    more = len(opened.sources) - 1
    return f"{first} and {more} more" if more > 0 else first


def sample(reader: Reader, time: int) -> FloatArray:
    """Pixels [n, C] of five small windows of one date, or all of a small scene."""
    _, bands, height, width = reader.shape
    if height * width <= len(_FRACTIONS) * _SIDE**2:
        whole = reader.read([time], slice(0, height), slice(0, width))
        return np.asarray(whole[0].reshape(bands, -1).T)
    parts = []
    for fy, fx in _FRACTIONS:
        top = int(np.clip(fy * height - _SIDE / 2, 0, max(0, height - _SIDE)))
        left = int(np.clip(fx * width - _SIDE / 2, 0, max(0, width - _SIDE)))
        rows, cols = slice(top, min(top + _SIDE, height)), slice(left, min(left + _SIDE, width))
        parts.append(reader.read([time], rows, cols)[0].reshape(bands, -1).T)
    return np.concatenate(parts)


def _has_data(reader: Reader) -> bool:
    """Whether any pixel of any date is usable; reads until it finds one."""
    _, _, height, width = reader.shape
    for time, there in enumerate(reader.present):
        for top in range(0, height if there else 0, _BLOCK):
            for left in range(0, width, _BLOCK):
                rows = slice(top, min(top + _BLOCK, height))
                cols = slice(left, min(left + _BLOCK, width))
                if np.isfinite(reader.read([time], rows, cols)).any():
                    return True
    return False
