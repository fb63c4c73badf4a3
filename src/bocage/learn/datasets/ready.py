"""Data sets by name: who reads them, and how they are scored unless a suite says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bocage.errors import ConfigError
from bocage.learn.datasets.class_folders import read_class_folders
from bocage.learn.datasets.dataset import Dataset
from bocage.learn.datasets.eolearn import read_eolearn
from bocage.learn.datasets.geobench import read_geobench
from bocage.learn.datasets.official import OFFICIAL, refuse
from bocage.learn.datasets.worldcereal import read_worldcereal

READERS: dict[str, Callable[..., Dataset]] = {
    "class_folders": read_class_folders,
    "eolearn": read_eolearn,
    "worldcereal": read_worldcereal,
    "geobench": read_geobench,
}


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A known data set."""

    reader: str
    path: str
    """Below the folder of data."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a task."""


READY: dict[str, Ready] = {
    "eurosat_ms_200": Ready(
        reader="class_folders",
        path="eurosat_ms_200",
        defaults={"patch_size": 4, "protocol": "linear", "metric": "accuracy"},
    ),
    "eolearn_slovenia": Ready(
        reader="eolearn",
        path="eolearn_slovenia",
        defaults={
            "patch_size": 2,
            "protocol": "linear",
            "metric": "miou",
            "block_m": 200.0,
            "normalization": ["pretraining"],
        },
    ),
    "worldcereal": Ready(
        reader="worldcereal",
        path="worldcereal/test_public_extractions.parquet",
        defaults={"patch_size": 1, "protocol": "linear", "metric": "f1_macro", "pooling": ["mean"]},
    ),
}


def read_dataset(
    name: str, *, reader: str | None, path: Path | None, root: Path, options: Mapping[str, Any]
) -> Dataset:
    """Read a data set by its own name, or with a named reader.

    ConfigError for names nobody knows; SourceError where the data are missing.
    """
    if reader is not None:
        if reader not in READERS:
            raise ConfigError(
                got=f"reader {reader!r} of task {name}",
                expected=f"one of {', '.join(READERS)}",
                fix="correct the suite",
            )
        return READERS[reader](path or root, **options)
    if name in READY:
        known = READY[name]
        return READERS[known.reader](path or root / known.path, **options)
    if name in OFFICIAL:
        task = OFFICIAL[name]
        if name.startswith("m_") and task.sensors == "S2":
            return read_geobench(path or root, task=task)
        raise refuse(task)
    raise ConfigError(
        got=f"task {name!r}",
        expected=f"one of {', '.join([*READY, *OFFICIAL])}, or a reader of its own",
        fix=f"add reader = one of {', '.join(READERS)} and a path",
    )
