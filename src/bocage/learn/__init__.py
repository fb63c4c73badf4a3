"""From labels to maps: labels, probes, prediction, suites of tasks.

Public names are found on first use, so that importing this package loads neither geopandas nor
scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bocage.learn.examine import ProbeConfig, fit_probe
    from bocage.learn.labels import Labels, read_labels
    from bocage.learn.mask import read_mask
    from bocage.learn.pooling import pool
    from bocage.learn.probe import Probe, load_probe
    from bocage.learn.sample import Samples

_HOME = {
    "Labels": "labels",
    "Probe": "probe",
    "ProbeConfig": "examine",
    "Samples": "sample",
    "fit_probe": "examine",
    "load_probe": "probe",
    "pool": "pooling",
    "read_labels": "labels",
    "read_mask": "mask",
}

__all__ = [
    "Labels",
    "Probe",
    "ProbeConfig",
    "Samples",
    "fit_probe",
    "load_probe",
    "pool",
    "read_labels",
    "read_mask",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"bocage.learn.{_HOME[name]}"), name)
    raise AttributeError(f"module 'bocage.learn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
