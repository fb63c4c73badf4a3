"""Labelled crops in a folder: one .npy per array, which are read where they lie.

    set.json              task, classes, sensors with their bands
    SENSOR.npy            float32 [N, T, H, W, C] in product units, NaN where there is no data
    labels.npy            index of the class int16 (-1: no label), or 0/1 uint8 [N, K], or float32
    timestamps.npy        int64 [N, T, 3] day 1-31, month 0-11, year
    split.npy             int8 [N]: 0 train, 1 validation, 2 test
    lonlat.npy            float64 [N, 2], optional

Axes: N crops, T dates, H W pixels, C bands, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bocage.embeddings.atomic import write_file
from bocage.errors import BocageWarning, ConfigError, InputError, SourceError
from bocage.learn.classes import LabelClass, check_classes, make_classes
from bocage.learn.finetune.task import IGNORE, Task
from bocage.sensors import SENSORS
from bocage.types import PathLike
from bocage.units import check_units as check_product_units

SPLITS = ("train", "val", "test")
SET_FILE = "set.json"

_CHECKED_CROPS = 64


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Labelled crops, and which of them serve training, validation and the final test."""

    task: Task
    sensors: dict[str, tuple[str, ...]]
    """Bands of each sensor in the order of the last axis."""

    x: dict[str, NDArray[np.float32]]
    """Per sensor [N, T, H, W, C] in product units, NaN for missing."""

    labels: NDArray[Any]
    """[N] or [N, h, w] index of the class, -1 without a label; [N, K] 0/1; float32 numbers."""

    timestamps: NDArray[np.int64]
    split: NDArray[np.int8]
    lonlat: NDArray[np.float64] | None = None
    source: str = "memory"

    def __len__(self) -> int:
        return len(self.split)

    @property
    def n_timesteps(self) -> int:
        """Dates per crop."""
        return int(self.timestamps.shape[1])

    @property
    def crop_px(self) -> tuple[int, int]:
        """Rows and columns of a crop."""
        rows, cols = next(iter(self.x.values())).shape[2:4]
        return int(rows), int(cols)

    def rows(self, split: str) -> NDArray[np.intp]:
        """Numbers of the crops of a split."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def labelled(self, split: str) -> NDArray[Any]:
        """All labels of a split, flat; several per crop stay [n, K]."""
        y = self.labels[self.rows(split)]
        if self.task.kind == "multilabel":
            return np.asarray(y[(y >= 0).all(axis=1)])
        return np.asarray(y[np.isfinite(y) if self.task.kind == "regression" else y != IGNORE])

    def counts(self, split: str) -> NDArray[np.int64]:
        """Labels of each class in a split."""
        y = self.labelled(split)
        if self.task.kind == "multilabel":
            return np.asarray(y.sum(axis=0), np.int64)
        return np.bincount(y.astype(np.int64), minlength=self.task.n_outputs)

    def moments(self) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
        """Mean and standard deviation of each band over the valid training pixels."""
        mean: dict[str, tuple[float, ...]] = {}
        std: dict[str, tuple[float, ...]] = {}
        for name, x in self.x.items():
            n = np.zeros(x.shape[-1])
            total, squares = np.zeros_like(n), np.zeros_like(n)
            center: NDArray[np.float64] | None = None
            for i in self.rows("train"):
                flat = x[i].reshape(-1, x.shape[-1]).astype(np.float64)
                if center is None:  # near the mean, so that the squares keep their digits
                    center = np.nan_to_num(np.nanmean(np.where(np.isfinite(flat), flat, 0), axis=0))
                flat -= center
                valid = np.isfinite(flat)
                n += valid.sum(axis=0)
                flat = np.where(valid, flat, 0)
                total += flat.sum(axis=0)
                squares += (flat**2).sum(axis=0)
            count = np.maximum(n, 1)
            m = total / count
            offset = center if center is not None else 0.0
            mean[name] = tuple(float(v) for v in m + offset)
            std[name] = tuple(float(v) for v in np.sqrt(np.maximum(squares / count - m**2, 0)))
        return mean, std

    def fingerprint(self) -> str:
        """Short hash of labels, dates, split and a few pixels of each crop."""
        digest = hashlib.sha256(json.dumps(self.task.to_json(), sort_keys=True).encode())
        for part in (self.labels, self.timestamps, self.split):
            digest.update(np.ascontiguousarray(part).tobytes())
        for name, x in self.x.items():
            rows, cols = x.shape[2] // 2, x.shape[3] // 2
            digest.update(f"{name}{x.shape}".encode())
            digest.update(np.ascontiguousarray(x[:, :, rows, cols]).tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """What is in it, as a person reads it."""
        rows, cols = self.crop_px
        parts = ", ".join(f"{len(self.rows(s))} {s}" for s in SPLITS)
        lines = [
            f"data     {len(self)} crops of {cols} x {rows} px, {self.n_timesteps} date(s), "
            f"{', '.join(self.sensors)} ({parts})"
        ]
        if self.task.kind == "regression":
            y = self.labelled("train")
            lines.append(
                f"target   {y.min():.6g} to {y.max():.6g}, mean {y.mean():.6g}, {len(y):,} in train"
            )
        else:
            pairs = zip(self.task.classes, self.counts("train"), strict=True)
            found = ", ".join(f"{c.name} {n:,}" for c, n in pairs)
            lines.append(f"classes  {found} in train")
        return "\n".join(lines)


def make_training_set(
    x: Mapping[str, ArrayLike],
    labels: ArrayLike,
    *,
    task: str,
    timestamps: ArrayLike,
    classes: Sequence[LabelClass] | Mapping[int, str] | Sequence[str] | None = None,
    split: ArrayLike | str = "random",
    lonlat: ArrayLike | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    ignore: Sequence[int] = (IGNORE,),
    seed: int = 0,
    source: str = "memory",
    check_units: bool = True,
) -> TrainingSet:
    """A training set of arrays, checked.

    Args:
        x: Per sensor [N, T, H, W, C] in product units, NaN for missing.
        labels: Values of classes [N] (classification) or [N, H, W] (segmentation; or coarser by a
            whole factor); 0/1 [N, K] (multilabel); numbers [N] or [N, H, W] (regression), where
            NaN pixels have no label.
        task: classification, multilabel, segmentation or regression.
        timestamps: [N, T, 3] day 1-31, month 0-11, year.
        classes: Their values and names; by default each value that occurs.
        split: 0 train, 1 validation, 2 test per crop, or these words; or a way to choose: "random",
            or "spatial", which keeps neighbors together and needs ``lonlat``.
        lonlat: Degrees [N, 2].
        bands: Names of the bands of sensors that bocage does not know.
        ignore: Values of pixels without a label.
        seed: Of the split.
        source: For people: where the arrays come from.
        check_units: Refuse values that cannot be the sensor's product units.

    Raises InputError for shapes that do not fit, one class only, NaN targets, labels that are all
    ignored, and splits without samples.
    """
    arrays = {name: np.asarray(v, np.float32) for name, v in x.items()}
    sensors = _check_images(arrays, bands)
    if check_units:
        for name, v in arrays.items():
            if name in SENSORS:
                step = max(1, len(v) // _CHECKED_CROPS)
                check_product_units(name, v[::step], where=source)
    n, _, rows, _, _ = next(iter(arrays.values())).shape
    stamps = np.asarray(timestamps)
    y = np.asarray(labels)
    if len(y) != n or stamps.shape != (n, next(iter(arrays.values())).shape[1], 3):
        raise InputError(
            got=f"{n} crops, labels {list(y.shape)}, timestamps {list(stamps.shape)}",
            expected="a label and dates [N, T, 3] for each crop",
            fix="give one row per crop in each array",
        )
    label_px = _label_px(y, task, rows)
    y, known = _read_labels(y, task, classes, ignore)
    found = TrainingSet(
        task=Task(kind=task, classes=known, label_px=label_px),
        sensors=sensors,
        x=arrays,
        labels=y,
        timestamps=stamps.astype(np.int64),
        split=_split(split, n, y, task, lonlat, seed),
        lonlat=None if lonlat is None else np.asarray(lonlat, np.float64),
        source=source,
    )
    check_training_set(found)
    return found


def write_training_set(folder: PathLike, data: TrainingSet) -> Path:
    """Put a training set into a folder; set.json comes last and makes it whole."""
    folder = Path(folder)
    if (folder / SET_FILE).exists():
        raise ConfigError(
            got=f"{folder}, which holds a training set already",
            expected="a new folder",
            fix="choose another name, or delete it",
        )
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


def check_training_set(data: TrainingSet) -> None:
    """Refuse what cannot be learned from: no samples, no labels, one class, NaN targets."""
    for split in ("train", "val"):
        if not len(data.rows(split)):
            raise InputError(
                got=f"{data.source} without {split} samples",
                expected="samples to train on and others to choose the best epoch by",
                fix="give some crops the split 1 (val), or use split='random'",
            )
        if not len(data.labelled(split)):
            raise InputError(
                got=f"{data.source}, where all labels of {split} are ignored",
                expected="labelled pixels or crops",
                fix="check the ignored value and the values of the classes",
            )
    if data.task.kind in {"classification", "segmentation"}:
        counts = data.counts("train")
        names = [c.name for c in data.task.classes]
        if (counts > 0).sum() < 2:
            only = ", ".join(n for n, c in zip(names, counts, strict=True) if c)
            raise InputError(
                got=f"one class only ({only}) in the training samples of {data.source}",
                expected="at least two classes",
                fix="add labels of another class, or change the split",
            )
        unseen = [
            name
            for name, train, others in zip(
                names, counts, data.counts("val") + data.counts("test"), strict=True
            )
            if others and not train
        ]
        if unseen:
            import warnings

            warnings.warn(
                f"no training sample of {', '.join(unseen)}: the network cannot learn it, and its "
                "test samples count as errors",
                BocageWarning,
                stacklevel=3,
            )


def _check_images(
    arrays: Mapping[str, NDArray[np.float32]], bands: Mapping[str, Sequence[str]] | None
) -> dict[str, tuple[str, ...]]:
    if not arrays:
        raise InputError(got="no images", expected="at least one sensor", fix="pass x={name: ...}")
    shapes = {name: v.shape for name, v in arrays.items()}
    if any(len(s) != 5 for s in shapes.values()) or len({s[:4] for s in shapes.values()}) > 1:
        raise InputError(
            got=f"images of shapes {shapes}",
            expected="[N, T, H, W, C] with one N, T, H, W for all sensors",
            fix="fill the dates a sensor lacks with NaN",
        )
    sensors = {}
    for name, shape in shapes.items():
        if bands and name in bands:
            sensors[name] = tuple(bands[name])
        elif name in SENSORS:
            sensors[name] = SENSORS[name].band_names
        else:
            sensors[name] = tuple(f"band{i + 1}" for i in range(shape[-1]))
        if len(sensors[name]) != shape[-1]:
            raise InputError(
                got=f"{name} with {shape[-1]} bands",
                expected=f"{len(sensors[name])}: {' '.join(sensors[name])}",
                fix="put the bands in this order, NaN for those you do not have",
            )
    return sensors


def _label_px(y: NDArray[Any], task: str, rows: int) -> int | None:
    wanted = {"classification": 1, "multilabel": 2, "segmentation": 3}.get(task)
    if (wanted is not None and y.ndim != wanted) or (task == "regression" and y.ndim not in {1, 3}):
        raise InputError(
            got=f"labels of shape {list(y.shape)} for {task}",
            expected={1: "[N]", 2: "[N, K] of 0 and 1", 3: "[N, H, W]"}.get(
                wanted or 0, "[N] or [N, H, W]"
            ),
            fix="correct the task or the labels",
        )
    if y.ndim != 3:
        return None
    if y.shape[1] == 0 or rows % y.shape[1]:
        raise InputError(
            got=f"labels of {y.shape[1]} rows for crops of {rows}",
            expected="labels of the crop's resolution, or coarser by a whole factor",
            fix="resample the labels onto the grid of the imagery",
        )
    return rows // int(y.shape[1])


def _read_labels(
    y: NDArray[Any], task: str, classes: Any, ignore: Sequence[int]
) -> tuple[NDArray[Any], tuple[LabelClass, ...]]:
    if task == "regression":
        numbers = y.astype(np.float32)
        n_bad = int((~np.isfinite(numbers)).sum())
        if np.isinf(numbers).any() or (y.ndim == 1 and n_bad):
            raise InputError(
                got=f"{n_bad} of {numbers.size} targets that are NaN or infinite",
                expected="a number for each crop",
                fix="drop the crops without a target",
            )
        return numbers, ()
    if y.dtype.kind == "f":
        if not np.isfinite(y).all() or (y != np.round(y)).any():
            raise InputError(
                got=f"labels with {int((~np.isfinite(y)).sum())} NaN and fractions",
                expected=f"whole numbers, {IGNORE} where there is no label",
                fix="use --task regression for numbers",
            )
        y = y.astype(np.int64)
    if task == "multilabel":
        known = _classes(classes, range(y.shape[1]))
        if len(known) != y.shape[1] or not np.isin(y, (0, 1, IGNORE)).all():
            raise InputError(
                got=f"labels [N, {y.shape[1]}] of {sorted(set(np.unique(y)))[:5]} for "
                f"{len(known)} classes",
                expected="one column of 0 and 1 per class",
                fix="encode each class as its own column",
            )
        return y.astype(np.int8), known
    values, counts = np.unique(y, return_counts=True)
    present = [int(v) for v in values if v not in ignore]
    known = _classes(classes, present)
    strange = [v for v in present if v not in {c.value for c in known}]
    if strange:
        n = sum(int(c) for v, c in zip(values, counts, strict=True) if v in strange)
        raise InputError(
            got=f"label values {strange[:8]} ({n} times) outside the classes "
            f"{[c.value for c in known]}",
            expected="values of the given classes",
            fix="add them to the classes, or to the ignored values",
        )
    index = np.full(y.shape, IGNORE, np.int16)
    for i, c in enumerate(known):
        index[y == c.value] = i
    return index, known


def _classes(classes: Any, present: Any) -> tuple[LabelClass, ...]:
    if classes is None:
        return make_classes({v: str(v) for v in present})
    if not isinstance(classes, Mapping) and all(isinstance(c, LabelClass) for c in classes):
        return check_classes(list(classes))
    return make_classes(classes)


def _split(  # noqa: PLR0917 - each is a property of the set
    split: ArrayLike | str, n: int, y: NDArray[Any], task: str, lonlat: Any, seed: int
) -> NDArray[np.int8]:
    if isinstance(split, str):
        from bocage.scoring.folds import make_folds

        if split not in {"random", "spatial"}:
            raise ConfigError(
                got=f"split {split!r}",
                expected="random, spatial, or 0, 1, 2 for each crop",
                fix="correct --split",
            )
        whole = y if y.ndim == 1 and task == "classification" and (y >= 0).all() else None
        options: dict[str, Any] = {"labels": whole} if whole is not None else {}
        if split == "spatial":
            if lonlat is None:
                raise ConfigError(
                    got="a spatial split without places",
                    expected="longitude and latitude of each crop",
                    fix="pass lonlat, or use --split random",
                )
            values = y if y.ndim == 1 else np.nanmean(y.reshape(n, -1), axis=1)
            options |= {"lonlat": np.asarray(lonlat, float), "values": values}
        elif whole is None:
            options = {"group": np.arange(n)}
        kind: Any = "group" if "group" in options else split
        fold = make_folds(kind, n_folds=5, seed=seed, **options).fold
        chosen = np.zeros(n, np.int8)
        chosen[fold == 1], chosen[fold == 0] = 1, 2
        return chosen
    given = np.asarray(split)
    if given.dtype.kind == "U":
        lookup = {name: i for i, name in enumerate(SPLITS)} | {"validation": 1}
        given = np.array([lookup.get(str(v), 9) for v in given])
    if given.shape != (n,) or not np.isin(given, (0, 1, 2)).all():
        raise InputError(
            got=f"a split {list(given.shape)} of {sorted(map(str, set(given.flat)))[:5]}",
            expected=f"0 (train), 1 (val) or 2 (test) for each of {n} crops",
            fix="or pass split='random' or 'spatial'",
        )
    return given.astype(np.int8)
