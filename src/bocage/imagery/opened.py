"""What a kind of source hands over: readers on one grid, their dates, and what is known of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bocage.errors import ConfigError
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    import numpy as np

    from bocage.geo import Grid
    from bocage.imagery.reader import Reader

PerSensor = float | str | None | dict[str, float] | dict[str, str] | dict[str, Any]
"""One value for everything, or a dict from sensor name to value."""

DB_SCALES = ("db", "db20")
"""Words for a scale: 10*log10 of power, 20*log10 of amplitude."""


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """The options of open_stack that sources share."""

    sensor: str | None = None
    """Read this sensor only; also settles band names that two sensors have."""

    bands: Any = None
    """Names in file order, or a dict from the source's names to band names."""

    date: Any = None
    """A date for everything, or one per file."""

    crs: str | None = None
    """Warp to this CRS; "utm" is the zone of the centre."""

    resolution_m: float = 10.0
    """Pixel side of the stack's grid."""

    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north, in bbox_crs."""

    bbox_crs: str = "EPSG:4326"
    """CRS of bbox; degrees of longitude and latitude by default."""

    scale: PerSensor = None
    """Multiplies values before the offset is added; "db" and "db20" take logarithms instead, of
    Sentinel-1 alone."""

    offset: PerSensor = None
    """Added after the scale, in product units; None takes it from the metadata. With scale "db" or
    "db20" one number is Sentinel-1's."""

    cloud_mask: bool = True
    """Whether SCL, QA_PIXEL or BQA turn clouds into NaN."""

    level: str | None = None
    """"L2A" or "L1C": what the Sentinel-2 product is; "L1C" acknowledges the consequence."""

    def __post_init__(self) -> None:
        if not self.resolution_m > 0:
            raise ConfigError(
                got=f"resolution_m={self.resolution_m}",
                expected="a positive number of metres",
                fix="leave it out: the models read 10 m",
            )
        if self.level not in (None, "L1C", "L2A"):
            raise ConfigError(
                got=f"level={self.level!r}", expected="L1C or L2A", fix="leave level= (--level) out"
            )
        if not (self.bands is None or isinstance(self.bands, str | list | tuple | dict)):
            raise ConfigError(
                got=f"bands={self.bands!r}",
                expected="a list of names, or a dict from the source's names",
                fix='pass for example bands=["B02", "B03"]',
            )
        if self.bbox is not None and len(self.bbox) != 4:
            raise ConfigError(
                got=f"bbox={self.bbox!r}",
                expected="four numbers: west, south, east, north",
                fix="check bbox= (--bbox)",
            )
        for name, value in (("scale", self.scale), ("offset", self.offset)):
            if isinstance(value, dict) and not set(value) <= set(SENSORS):
                raise ConfigError(
                    got=f"{name} for {', '.join(map(str, set(value) - set(SENSORS)))}",
                    expected=f"sensor names: {', '.join(SENSORS)}",
                    fix=f"check the keys of {name}=",
                )
            for part in value.values() if isinstance(value, dict) else (value,):
                _check_number(name, part)

    def scale_of(self, sensor: str) -> float | str | None:
        """The user's scale for a sensor, or None."""
        if self._is_radar_only and sensor != "sentinel1":
            return None
        value = self.scale.get(sensor) if isinstance(self.scale, dict) else self.scale
        return value if value is None or value in DB_SCALES else float(value)

    def offset_of(self, sensor: str) -> float | None:
        """The user's offset for a sensor, or None."""
        if isinstance(self.offset, dict):
            value = self.offset.get(sensor)
        else:
            value = None if self._is_radar_only and sensor != "sentinel1" else self.offset
        return None if value is None else float(value)

    @property
    def _is_radar_only(self) -> bool:
        # Decibels are radar's: scale="db20", offset=-83 for a cube of radar and optical bands must
        # leave the optical ones as they are (their logarithm is negative and was clipped to zero).
        return isinstance(self.scale, str) and self.scale in DB_SCALES


def _check_number(name: str, value: Any) -> None:
    if value is None or (name == "scale" and value in DB_SCALES):
        return
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number) or (name == "scale" and number == 0):
        raise ConfigError(
            got=f"{name}={value!r}",
            expected='a number, or "db" or "db20" for a scale' if name == "scale" else "a number",
            fix=f"pass for example {name}={10000 if name == 'scale' else -1000}, "
            f"or a dict from sensor to number",
        )


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Readers of one source, all on the same grid and time axis."""

    readers: dict[str, Reader]
    """By sensor name."""

    grid: Grid
    """The common grid."""

    dates: list[np.datetime64]
    """One per time step, in order."""

    dates_known: bool
    """False when the source states no date."""

    sources: list[str]
    """Identifiers of the inputs, as the user would look for them."""

    missing_bands: dict[str, list[str]] = field(default_factory=dict)
    """Per sensor, the bands that no input has."""

    level_1c: str = ""
    """Why this looks like Sentinel-2 Level-1C; empty when it does not."""

    offset_settled: bool = False
    """Whether metadata or the user decided about the Sentinel-2 offset."""

    masks: dict[str, str] = field(default_factory=dict)
    """Per sensor, the quality layer that masks clouds."""
