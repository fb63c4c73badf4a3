"""A training set of arrays in memory, checked.

Axes: N crops, T dates, H W pixels, C bands, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bocage.errors import ConfigError, InputError
from bocage.learn.classes import LabelClass, check_classes, make_classes
from bocage.learn.finetune.task import IGNORE, Task
from bocage.learn.finetune.training_set import SPLITS, TrainingSet, check_training_set
from bocage.sensors import SENSORS
from bocage.units import check_units as check_product_units

_CHECKED_CROPS = 64


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
