"""Which band of which sensor is this? Judged from file names, descriptions and variable names.

A name alone may be ambiguous: B4 is red for Sentinel-2 and for Landsat, and "red" is both. So names
become tokens first; the sensor follows from the product name, from tokens that only one sensor
has, or from the pixel size. What stays ambiguous is an error, never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bocage.errors import InputError
from bocage.sensors import LANDSAT, SENSORS, SENTINEL1, SENTINEL2_L2A

CLOUD_TOKENS = {"SCL": "sentinel2_l2a", "QA_PIXEL": "landsat", "BQA": "landsat"}
"""Quality layers that are read as cloud masks, with their sensor."""

_COLORS = [
    "COASTAL",
    "BLUE",
    "GREEN",
    "RED",
    "REDEDGE1",
    "REDEDGE2",
    "REDEDGE3",
    "NIR",
    "NIR08",
    "NIR09",
    "SWIR16",
    "SWIR22",
    "CIRRUS",
    "PAN",
    "LWIR11",
]
_LANDSAT_COLORS = {
    "COASTAL": "B1",
    "BLUE": "B2",
    "GREEN": "B3",
    "RED": "B4",
    "NIR08": "B5",
    "SWIR16": "B6",
    "SWIR22": "B7",
    "PAN": "B8",
    "CIRRUS": "B9",
    "LWIR11": "B10",
    "LWIR12": "B11",
}
_TOKEN = re.compile(
    r"(?<![A-Z0-9])(B(?:0[1-9]|1[0-2]|8A|[1-9])|VV|VH|HH|HV|SCL|QA_PIXEL|BQA)"
    r"(?=$|[^A-Z0-9]|_(?:10|15|20|30|60)M(?![A-Z0-9]))"
)
_PRODUCT = (
    ("sentinel2_l2a", re.compile(r"(?<![A-Z0-9])S2[ABC]?(?![A-Z0-9])|SENTINEL-?_?2|MSIL[12][AC]")),
    ("sentinel2_l2a", re.compile(r"(?<![A-Z0-9])T\d{2}[A-Z]{3}_\d{8}")),
    ("landsat", re.compile(r"(?<![A-Z0-9])L[COT]0[89]_|(?<![A-Z0-9])L[89](?![A-Z0-9])|LANDSAT")),
    ("sentinel1", re.compile(r"(?<![A-Z0-9])S1[ABC]?(?![A-Z0-9])|SENTINEL-?_?1")),
)
_LEVEL_1C = re.compile(r"MSIL1C|(?<![A-Z0-9])L1C(?![A-Z0-9])")


@dataclass(frozen=True, kw_only=True)
class NamedBand:
    """What a name turned out to mean."""

    sensor: str
    """One of sensors.py."""

    band: str
    """Band name of sensors.py, or SCL / QA_PIXEL / BQA."""

    is_cloud_mask: bool = False
    """Whether this is a quality layer rather than an image band."""


def band_token(text: str) -> str | None:
    """The band token in a file stem, description or variable name, upper case, or None.

    >>> band_token("T18TWL_20200601T154911_B02_10m"), band_token("S1-SIGMA0-VV"), band_token("TCI")
    ('B02', 'VV', None)
    """
    upper = text.strip().upper()
    if upper in _COLORS or upper in _LANDSAT_COLORS:
        return upper
    found = _TOKEN.findall(upper)
    if found:
        return str(found[-1])
    last = re.split(r"[_\-. ]", upper)[-1]
    return last if last in _COLORS or last in _LANDSAT_COLORS else None


def product_sensor(text: str) -> str | None:
    """The sensor that a path or product name states, the last part of the path first."""
    for part in reversed(re.split(r"[/\\]", text.upper())):
        for name, pattern in _PRODUCT:
            if pattern.search(part):
                return name
    return None


def is_level_1c(text: str) -> bool:
    """Whether a path or product name says Sentinel-2 Level-1C."""
    return _LEVEL_1C.search(text.upper()) is not None


def name_band(
    token: str,
    *,
    sensor: str | None = None,
    neighbours: frozenset[str] = frozenset(),
    resolution_m: float | None = None,
    where: str = "",
) -> NamedBand | None:
    """The band that a token means, or None for a layer that no sensor's model input has.

    ``sensor`` is what the user or the product name says; ``neighbours`` are the tokens of the same
    file or folder, which often decide; ``resolution_m`` decides between Sentinel-2 and Landsat
    when nothing else does. Raises InputError when the token stays ambiguous.
    """
    if token in CLOUD_TOKENS:
        owner = CLOUD_TOKENS[token]
        if sensor not in (None, owner):
            return None
        return NamedBand(sensor=owner, band=token, is_cloud_mask=True)
    if sensor is None:
        sensor = _deduce(token, neighbours, resolution_m)
    if sensor is None:
        raise InputError(
            got=f"band {token}{' in ' + where if where else ''}, which Sentinel-2 and Landsat "
            "both have",
            expected="a name that states the sensor",
            fix=f"pass sensor= (--sensor), one of {', '.join(SENSORS)}",
        )
    name = _band_of(sensor, token)
    return NamedBand(sensor=sensor, band=name) if name else None


def _band_of(sensor: str, token: str) -> str | None:
    if sensor == "landsat" and token in _LANDSAT_COLORS:
        return _LANDSAT_COLORS[token]
    return SENSORS[sensor].band_name(token)


def _deduce(token: str, neighbours: frozenset[str], resolution_m: float | None) -> str | None:
    if token in ("VV", "VH", "HH", "HV"):
        return SENTINEL1.name
    tokens = neighbours | {token}
    if tokens & {"B8A", "B12", "SCL", "REDEDGE1"} or any(
        re.fullmatch("B0[1-9]", t) for t in tokens
    ):
        return SENTINEL2_L2A.name
    if tokens & {"QA_PIXEL", "BQA", "PAN", "LWIR11"}:
        return LANDSAT.name
    if resolution_m is not None:
        for name, steps in (("landsat", (15, 30)), ("sentinel2_l2a", (10, 20, 60))):
            if any(abs(resolution_m - step) < 0.02 * step for step in steps):
                return name
    return None
