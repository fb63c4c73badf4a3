"""Fine-tuning on folds: every sample is answered by a network that had not seen its label.

The counterpart of ``bocage.learn.crossval``, which fits probes on the same folds. Of the samples
that may be trained with, whole blocks (a quarter) choose the best epoch.

Axes: N crops, T dates, C bands, H W pixels, h w cells of labels, K classes.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bocage.errors import BocageWarning, InputError
from bocage.learn.datasets.dataset import Dataset
from bocage.learn.finetune.batches import Batches
from bocage.learn.finetune.config import FinetuneConfig
from bocage.learn.finetune.labelled_arrays import make_training_set
from bocage.learn.finetune.loop import finetune
from bocage.learn.finetune.saved import restore
from bocage.learn.finetune.start import Start, start
from bocage.learn.finetune.task import IGNORE
from bocage.learn.finetune.training_set import TrainingSet
from bocage.scoring.folds import make_folds

if TYPE_CHECKING:
    from bocage.models.model import Model
    from bocage.scoring.folds import Folds
    from bocage.types import FloatArray

N_INNER = 4
"""One part of the training samples in so many chooses the best epoch."""

CROP_PX = 32
"""Side of the crops that images with labels per pixel are cut into."""


def cross_finetune(
    dataset: Dataset,
    folds: Folds,
    at: NDArray[np.intp],
    model: Model,
    *,
    config: FinetuneConfig,
    cell_labels: NDArray[Any] | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> NDArray[np.float64]:
    """Class shares or values [n, K] of every tested sample; NaN where no fold tests one.

    ``at`` [n]: the image of each sample of ``folds``, or, with labels per pixel, its cell among
    all cells of all images, rows first; ``cell_labels`` are then the labels of all cells [N, h, w].
    One network is trained per fold, in a temporary folder.
    """
    if not folds.n_folds:
        raise InputError(got="no folds", expected="at least one", fix="choose another split")
    crops = _Crops(dataset, config.patch_size, cell_labels)
    scores = np.full((len(folds.fold), max(len(dataset.classes), 1)), np.nan)
    classes = dataset.task == "classification"
    y = (crops.labels.reshape(-1) if crops.dense else crops.labels)[at] if classes else None
    for i, (train, test) in enumerate(folds.splits()):
        val = _validation(y, train, folds.block, seed=config.seed)
        parts = [at[np.setdiff1d(train, val)], at[val], at[test]]
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # A class that a fold lacks is part of the task's difficulty; the score shows it.
            warnings.filterwarnings("ignore", "no training sample", BocageWarning)
            data, where = crops.training_set(parts)
            done = finetune(data, model, out=Path(folder) / "run", config=config)
            begun = start(model, data, config)
            restore(Path(folder) / "run", begun.module)
        say(f"tuned    fold {i + 1} of {folds.n_folds}: epoch {done.best_epoch + 1} was best")
        found = predict_split(data, begun, config, "test")
        lookup = np.full(crops.n_samples + 1, -1)  # the last: cells outside the image
        lookup[where] = np.arange(len(where))
        scores[test] = found.reshape(-1, found.shape[-1])[lookup[at[test]]]
    return scores


def predict_split(
    data: TrainingSet, begun: Start, config: FinetuneConfig, split: str
) -> NDArray[np.float64]:
    """Shares of the classes, or values, of the crops of a split: [n, K] or [n, h, w, K]."""
    parts = []
    begun.module.eval()
    with torch.no_grad():
        for batch in Batches(data, config, begun.prepare).evaluation(split):
            answers = begun.network(batch.inputs).double()
            if data.task.kind == "regression":
                answers = answers * begun.description.target_std + begun.description.target_mean
            elif data.task.kind == "multilabel":
                answers = answers.sigmoid()
            else:
                answers = answers.softmax(dim=-1)
            parts.append(answers.numpy())
    return np.concatenate(parts)


def _validation(
    y: NDArray[Any] | None, train: NDArray[np.intp], block: NDArray[np.int64], *, seed: int
) -> NDArray[np.intp]:
    """Rows of ``train`` that choose the epoch: whole blocks where there are enough of them."""
    n_blocks = len(np.unique(block[train]))
    grouped = N_INNER <= n_blocks < len(train)
    options: dict[str, Any] = {} if y is None else {"labels": y[train]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BocageWarning)  # as in cross_finetune
        inner = make_folds(
            "group" if grouped or y is None else "random",
            n_folds=N_INNER,
            group=block[train] if grouped else np.arange(len(train)),
            seed=seed,
            **options,
        )
    return train[inner.test(0)]


class _Crops:
    """The images of a data set as crops to train on; ``labels`` of all samples."""

    def __init__(self, dataset: Dataset, patch_size: int, cell_labels: NDArray[Any] | None) -> None:
        self.dataset, self.patch_size = dataset, patch_size
        self.dense = cell_labels is not None
        self.labels = dataset.y if cell_labels is None else cell_labels
        self.n_samples = self.labels.size if self.dense else len(self.labels)
        if not self.dense:
            return
        side = CROP_PX // patch_size * patch_size
        step = side // patch_size  # cells
        n, h, w = self.labels.shape
        ids = np.arange(n * h * w).reshape(n, h, w)
        ids = np.pad(ids, ((0, 0), (0, -h % step), (0, -w % step)), constant_values=-1)
        rows, cols = ids.shape[1] // step, ids.shape[2] // step
        ids = ids.reshape(n, rows, step, cols, step).swapaxes(2, 3)
        self.cells = ids.reshape(-1, step, step)
        """[crops, cells, cells] number of each cell, -1 outside the image."""
        self.corners = [
            (i, r * side, c * side) for i in range(n) for r in range(rows) for c in range(cols)
        ]
        self.side = side

    def training_set(self, parts: list[NDArray[np.intp]]) -> tuple[TrainingSet, NDArray[np.intp]]:
        """Samples to train with, to choose the epoch by and to test; and which a test cell is."""
        images, y, split, where = self._of_cells(parts) if self.dense else self._of_images(parts)
        stamps = self.dataset.timestamps[images[1]]
        kind = "segmentation" if self.dense else "classification"
        if self.dataset.task != "classification":
            kind = self.dataset.task
        classes = list(self.dataset.classes) or None
        if kind in {"classification", "segmentation"} and classes:
            y = np.array([*(c.value for c in classes), IGNORE])[y]
        elif kind == "multilabel":
            y = y.astype(np.int8)
        data = make_training_set(
            images[0],
            y,
            task=kind,
            timestamps=stamps,
            classes=classes,
            split=split,
            source=self.dataset.name,
            check_units=False,
        )
        return data, where

    def _of_images(self, parts: list[NDArray[np.intp]]) -> Any:
        split = np.full(self.n_samples, -1)
        for k, rows in enumerate(parts):
            split[rows] = k
        used = np.flatnonzero(split >= 0)
        whole = slice(None) if len(used) == self.n_samples else used
        pads = [(-n) % self.patch_size for n in self._size]
        pad = ((0, 0), (0, 0), (0, 0), (0, pads[0]), (0, pads[1]))
        x = {}
        for name, v in self.dataset.images.items():
            part = v[whole]
            part = np.pad(part, pad, constant_values=np.nan) if any(pads) else part
            x[name] = np.moveaxis(part, 2, 4)
        return (x, used), self.labels[used], split[used], np.flatnonzero(split == 2)

    def _of_cells(self, parts: list[NDArray[np.intp]]) -> Any:
        flat = self.labels.reshape(-1)
        empty: float = np.nan if flat.dtype.kind == "f" else IGNORE
        chosen, labels, split = [], [], []
        for k, rows in enumerate(parts):
            known = np.full(self.n_samples + 1, empty, flat.dtype)  # the last: outside the image
            known[rows] = flat[rows]
            y = known[self.cells]
            has = np.flatnonzero((np.isfinite(y) if y.dtype.kind == "f" else y >= 0).any((1, 2)))
            chosen.append(has)
            labels.append(y[has])
            split.append(np.full(len(has), k))
        crops = np.concatenate(chosen)
        x = {
            name: np.stack([self._cut(v, *self.corners[i]) for i in crops])
            for name, v in self.dataset.images.items()
        }
        images = np.array([self.corners[i][0] for i in crops])
        where = self.cells[chosen[2]].reshape(-1)
        return (x, images), np.concatenate(labels), np.concatenate(split), where

    def _cut(self, images: FloatArray, image: int, row: int, col: int) -> FloatArray:
        """[T, H, W, C]; NaN outside the image."""
        part = images[image, :, :, row : row + self.side, col : col + self.side]
        found = np.full((*part.shape[:2], self.side, self.side), np.nan, np.float32)
        found[..., : part.shape[2], : part.shape[3]] = part
        return np.moveaxis(found, 1, 3)

    @property
    def _size(self) -> tuple[int, int]:
        height, width = next(iter(self.dataset.images.values())).shape[-2:]
        return int(height), int(width)
