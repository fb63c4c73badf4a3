"""Labelled crops with their split: what a network is trained, chosen and tested on.

Axes: N crops, T dates, H W pixels, C bands, K classes.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bocage.errors import BocageWarning, InputError
from bocage.learn.finetune.task import IGNORE, Task

SPLITS = ("train", "val", "test")


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
            warnings.warn(
                f"no training sample of {', '.join(unseen)}: the network cannot learn it, and its "
                "test samples count as errors",
                BocageWarning,
                stacklevel=3,
            )
