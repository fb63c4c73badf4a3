"""Scale and offset of stored numbers, from metadata: what brings them to product units.

Product units of Sentinel-2 are reflectance x 10000 without the +1000 of processing baseline 04.00
(January 2022 on). In order: what the user says, the band's own scale and offset, the product's
MTD_MSIL2A.xml, the baseline in the product's name. Landsat stays as stored (Level-1 numbers).
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

_BASELINE = re.compile(r"_N(\d{2})(\d{2})_")
_OFFSET = re.compile(
    r"<(?:BOA_ADD_OFFSET|RADIO_ADD_OFFSET)\s+band_id=\"(\d+)\"\s*>\s*(-?\d+)\s*</", re.IGNORECASE
)
_BAND_ID = [
    "B01",
    "B02",
    "B03",
    "B04",
    "B05",
    "B06",
    "B07",
    "B08",
    "B8A",
    "B09",
    "B10",
    "B11",
    "B12",
]
"""Order of band_id in Sentinel-2 metadata."""

_REFLECTANCE_UNITS = 10_000.0


def from_scale_and_offset(sensor: str, scale: float, offset: float) -> tuple[float, float] | None:
    """The (scale, offset) to product units of a band's stored ones; None if they say nothing.

    A scale below 0.01 gives reflectance 0..1, which Sentinel-2 product units count in 1/10000.
    """
    if (scale, offset) == (1.0, 0.0) or sensor == "landsat":
        return None
    if sensor == "sentinel2_l2a" and scale < 0.01:
        return scale * _REFLECTANCE_UNITS, offset * _REFLECTANCE_UNITS
    return scale, offset


def from_product(path: str, band: str) -> float | None:
    """The Sentinel-2 offset that a SAFE product's metadata or name states, or None."""
    offsets = None if "://" in path else _product_offsets(str(Path(path).parent))
    return from_baseline(path) if offsets is None else offsets.get(band, 0.0)


@lru_cache(maxsize=256)
def _product_offsets(folder: str) -> dict[str, float] | None:
    """Per band, from the metadata of the product that a folder lies in; None if there is none."""
    for parent in (Path(folder), *Path(folder).parents):
        for name in ("MTD_MSIL2A.xml", "MTD_MSIL1C.xml"):
            offsets = _read_metadata(parent / name)
            if offsets is not None:
                return offsets
        if parent.name.endswith(".SAFE"):
            break
    return None


def from_baseline(text: str) -> float | None:
    """The Sentinel-2 offset that a baseline in a product's name implies (_N0510_), or None."""
    match = _BASELINE.search(text)
    if match is None:
        return None
    # 00.xx and 02.xx, 03.xx have none; 04.00 and all later ones, 99.99 of test products aside, do.
    return -1000.0 if 4 <= int(match.group(1)) < 99 else 0.0


def _read_metadata(path: Path) -> dict[str, float] | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return {_BAND_ID[int(band)]: float(value) for band, value in _OFFSET.findall(text)}
