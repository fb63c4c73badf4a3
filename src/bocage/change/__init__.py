"""Two times of one place to a map of what changed.

Reading order: config (the methods), pair (two times on one grid), measure, components, cva, irmad
and clicked (the methods one by one), outputs (the files), detection (all of it).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bocage.change.config import ChangeConfig
    from bocage.change.detection import describe_pair, fit_measure, map_change
    from bocage.change.pair import Pair, open_pair
    from bocage.change.result import ChangeResult

_HOME = {
    "ChangeConfig": "config",
    "ChangeResult": "result",
    "Pair": "pair",
    "describe_pair": "detection",
    "fit_measure": "detection",
    "map_change": "detection",
    "open_pair": "pair",
}

__all__ = [
    "ChangeConfig",
    "ChangeResult",
    "Pair",
    "describe_pair",
    "fit_measure",
    "map_change",
    "open_pair",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"bocage.change.{_HOME[name]}"), name)
    raise AttributeError(f"module 'bocage.change' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
