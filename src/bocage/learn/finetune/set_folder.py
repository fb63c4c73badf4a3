"""A training set in a folder: one .npy per array, which are read where they lie.

    set.json              task, classes, sensors with their bands
    SENSOR.npy            float32 [N, T, H, W, C] in product units, NaN where there is no data
    labels.npy            index of the class int16 (-1: no label), or 0/1 uint8 [N, K], or float32
    timestamps.npy        int64 [N, T, 3] day 1-31, month 0-11, year
    split.npy             int8 [N]: 0 train, 1 validation, 2 test
    lonlat.npy            float64 [N, 2], optional

Axes: N crops, T dates, H W pixels, C bands, K classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bocage.embeddings.atomic import naming_failures, write_file
from bocage.errors import ConfigError, SourceError
from bocage.learn.finetune.task import Task
from bocage.learn.finetune.training_set import TrainingSet, check_training_set
from bocage.types import PathLike

SET_FILE = "set.json"


def write_training_set(folder: PathLike, data: TrainingSet) -> Path:
    """Put a training set into a folder; set.json comes last and makes it whole."""
    folder = Path(folder)
    if (folder / SET_FILE).exists():
        raise ConfigError(
            got=f"{folder}, which holds a training set already",
            expected="a new folder",
            fix="choose another name, or delete it",
        )
    with naming_failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {
        **data.x,
        "labels": data.labels,
        "timestamps": data.timestamps,
        "split": data.split,
    }
    if data.lonlat is not None:
        arrays["lonlat"] = data.lonlat
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    content = {
        **data.task.to_json(),
        "sensors": {name: list(bands) for name, bands in data.sensors.items()},
        "source": data.source,
    }
    write_file(folder / SET_FILE, (json.dumps(content, indent=1) + "\n").encode())
    return folder


def open_training_set(folder: PathLike) -> TrainingSet:
    """Open what ``write_training_set`` wrote; images stay on disk until they are needed."""
    folder = Path(folder)
    try:
        raw = json.loads((folder / SET_FILE).read_text(encoding="utf-8"))
        task = Task.from_json(raw)
        sensors = {name: tuple(bands) for name, bands in raw["sensors"].items()}
        x = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in sensors
        }
        small = {
            name: np.load(folder / f"{name}.npy", allow_pickle=False)
            for name in ("labels", "timestamps", "split")
        }
        lonlat = folder / "lonlat.npy"
        data = TrainingSet(
            task=task,
            sensors=sensors,
            x=x,
            **small,
            lonlat=np.load(lonlat, allow_pickle=False) if lonlat.exists() else None,
            source=str(folder),
        )
        consistent = {len(v) for v in (*x.values(), *small.values())} == {len(data)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            got=f"{folder} ({type(error).__name__}: {error})",
            expected=f"a training set: a folder with {SET_FILE} and its arrays",
            fix="make one with bocage finetune SCENE LABELS --data FOLDER, or make_training_set",
        ) from error
    if not consistent:
        raise SourceError(
            got=f"{folder} with arrays of different lengths",
            expected="one row per crop in each",
            fix="make the training set again",
        )
    check_training_set(data)
    return data
