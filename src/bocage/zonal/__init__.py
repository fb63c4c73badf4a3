"""Statistics of maps per zone: districts, fields, census blocks.

Reading order: zones (polygons), layers, bands and opening (what is under them), coverage (shares of
cells), moments, shares and quantiles (what is added up), sums (one walk over the tiles), table and
files, statistics (all of it).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bocage.zonal.config import ZonalConfig
    from bocage.zonal.result import ZonalResult
    from bocage.zonal.statistics import zonal_statistics

_HOME = {
    "ZonalConfig": "config",
    "ZonalResult": "result",
    "zonal_statistics": "statistics",
}

__all__ = ["ZonalConfig", "ZonalResult", "zonal_statistics"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"bocage.zonal.{_HOME[name]}"), name)
    raise AttributeError(f"module 'bocage.zonal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
