"""What each modality of pretraining looks like: bands, band sets, range, stored type.

Sensors come from ``bocage.sensors``; the maps' ranges are those of the official normalization
tables (``computed.json`` mean +- 2 std; ``predefined.json`` for OpenStreetMap and WorldCereal,
which have no computed entry). 0 is the low end, 1 the high end, and nothing is clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from bocage.errors import InputError
from bocage.sensors import MAPS, SENSORS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from bocage.types import FloatArray

BandSetsName: TypeAlias = Literal["v1", "single"]
"""How bands share tokens: v1 has 3 sets for Sentinel-2 and 2 for Landsat, later releases one."""


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One layer of a pretraining sample."""

    name: str
    """Name of the official packages."""

    bands: tuple[str, ...]
    """In tensor order."""

    is_map: bool
    """Maps do not change over time and are only ever decoded."""

    band_sets_v1: tuple[tuple[int, ...], ...]
    """Bands that share a token in v1."""

    low: tuple[float, ...]
    """Per band, the product value that becomes 0."""

    high: tuple[float, ...]
    """Per band, the product value that becomes 1."""

    dtype: str
    """Type in the store: whole numbers are kept as such."""

    missing: float
    """The stored value that means no data; NaN for float32."""

    def band_sets(self, which: BandSetsName) -> tuple[tuple[int, ...], ...]:
        """Indices of the bands of each token."""
        return self.band_sets_v1 if which == "v1" else (tuple(range(len(self.bands))),)


_STORED: dict[str, tuple[str, float]] = {
    "sentinel2_l2a": ("uint16", 65535),
    "sentinel1": ("float32", float("nan")),
    "landsat": ("uint16", 65535),
    "worldcover": ("uint8", 255),
    "srtm": ("int16", -32768),
    "openstreetmap_raster": ("uint8", 255),
    "wri_canopy_height_map": ("uint8", 255),
    "cdl": ("uint8", 255),
    "worldcereal": ("uint8", 255),
}

_MAP_RANGES: dict[str, tuple[float, float]] = {
    "worldcover": (
        34.04615796218091 - 2 * 24.232421963981864,
        34.04615796218091 + 2 * 24.232421963981864,
    ),
    "srtm": (
        677.0219719644446 - 2 * 993.1721306513513,
        677.0219719644446 + 2 * 993.1721306513513,
    ),
    "openstreetmap_raster": (0.0, 1.0),
    "wri_canopy_height_map": (10.0 - 2 * 5.0, 10.0 + 2 * 5.0),
    "cdl": (100.0 - 2 * 50.0, 100.0 + 2 * 50.0),
    "worldcereal": (0.0, 100.0),
}


def _modalities() -> Iterable[Modality]:
    for sensor in SENSORS.values():
        yield Modality(
            name=sensor.name,
            bands=sensor.band_names,
            is_map=False,
            band_sets_v1=sensor.band_sets_v1,
            low=tuple(band.mean - 2 * band.std for band in sensor.bands),
            high=tuple(band.mean + 2 * band.std for band in sensor.bands),
            dtype=_STORED[sensor.name][0],
            missing=_STORED[sensor.name][1],
        )
    for layer in MAPS.values():
        low, high = _MAP_RANGES[layer.name]
        n_bands = len(layer.bands)
        yield Modality(
            name=layer.name,
            bands=layer.bands,
            is_map=True,
            band_sets_v1=(tuple(range(n_bands)),),
            low=(low,) * n_bands,
            high=(high,) * n_bands,
            dtype=_STORED[layer.name][0],
            missing=_STORED[layer.name][1],
        )


MODALITIES: dict[str, Modality] = {m.name: m for m in _modalities()}
"""Everything a sample may hold, in the order of the released configurations."""


def modality(name: str) -> Modality:
    """The table of one modality; InputError with the known names."""
    if name not in MODALITIES:
        raise InputError(
            got=f"modality {name!r}",
            expected=f"one of {', '.join(MODALITIES)}",
            fix="leave it out, or rename it",
        )
    return MODALITIES[name]


def normalize(name: str, x: NDArray[Any]) -> FloatArray:
    """Product units [..., C] to the range the models see; NaN stays NaN, nothing is clipped."""
    low, width = _low_width(name)
    return (np.asarray(x, np.float32) - low) / width


def _low_width(name: str) -> tuple[FloatArray, FloatArray]:
    table = modality(name)
    low, high = np.asarray(table.low), np.asarray(table.high)
    return low.astype(np.float32), (high - low).astype(np.float32)
