"""Scores of the encoder while it trains: kNN and a linear probe on labelled crops.

An evaluation set is an ``.npz``, or a folder of ``.npy`` files, with ``images`` [N, T, H, W, C] in
product units (NaN where there is no data) and ``labels`` [N]; with ``lonlat`` [N, 2] the folds are
blocks on the ground. ``timestamps`` [N, T, 3] and ``sensor`` are optional.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bocage.errors import InputError
from bocage.models.config import ModelConfig
from bocage.models.encoder import Encoder
from bocage.models.model import Model
from bocage.scoring.folds import Folds, make_folds
from bocage.scoring.scores import knn_cosine, linear_probe
from bocage.sensors import SENSORS
from bocage.types import FloatArray

PROBES = ("knn", "linear")
NO_DATE = (1, 6, 2020)
"""Day, month and year of crops without dates, as in the official evaluation: 1 July 2020."""

N_FOLDS = 5
BLOCK_M = 50_000.0
"""Side of the blocks on the ground; fixed, so that scores of all steps and runs compare."""

_CHUNK_PIXELS = 1 << 18
"""Pixels x timesteps embedded at once: memory stays small beside a training step."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Labelled crops of one sensor."""

    name: str
    images: FloatArray
    """[N, T, H, W, C] in product units, NaN where there is no data."""

    labels: NDArray[np.int64]
    """[N], from 0."""

    timestamps: NDArray[np.int64]
    """[N, T, 3] day 1..31, month 0..11, year."""

    lonlat: NDArray[np.float64] | None = None
    """[N, 2] degrees; None gives folds at random."""

    sensor: str = "sentinel2_l2a"

    @cached_property
    def folds(self) -> Folds:
        """Blocks on the ground where places are known, else folds at random."""
        if self.lonlat is None:
            return make_folds("random", labels=self.labels, n_folds=N_FOLDS)
        return make_folds(
            "spatial", labels=self.labels, lonlat=self.lonlat, n_folds=N_FOLDS, block_m=BLOCK_M
        )


def read_evaluation_set(path: Path) -> EvaluationSet:
    """Read an ``.npz`` or a folder of ``.npy``; InputError says what is missing or misshapen."""
    arrays = _read_arrays(path)
    missing = [name for name in ("images", "labels") if name not in arrays]
    if missing:
        raise InputError(
            got=f"{path} without {' and '.join(missing)} (it has {', '.join(arrays) or 'nothing'})",
            expected="images [N, T, H, W, C] and labels [N]",
            fix="write them with numpy.savez(path, images=..., labels=...)",
        )
    images, labels = arrays["images"], arrays["labels"]
    sensor = str(arrays.get("sensor", "sentinel2_l2a"))
    n_bands = len(SENSORS[sensor].bands) if sensor in SENSORS else None
    if n_bands is None or images.ndim != 5 or images.shape[-1] != n_bands:
        raise InputError(
            got=f"images of shape {list(images.shape)} for sensor {sensor} in {path}",
            expected=f"[N, T, H, W, {n_bands or 'bands'}] of one of {', '.join(SENSORS)}",
            fix="put the bands last, in the order of the sensor",
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError(
            got=f"labels of shape {list(labels.shape)} and type {labels.dtype} in {path}",
            expected=f"{len(images)} whole numbers from 0",
            fix="number the classes from 0",
        )
    n_images, n_times = images.shape[:2]
    stamps = arrays.get("timestamps", np.broadcast_to(np.array(NO_DATE), (n_images, n_times, 3)))
    lonlat = arrays.get("lonlat")
    for name, x, shape in (
        ("timestamps", stamps, (n_images, n_times, 3)),
        ("lonlat", lonlat, (n_images, 2)),
    ):
        if x is not None and x.shape != shape:
            raise InputError(
                got=f"{name} of shape {list(x.shape)} in {path}",
                expected=f"shape {list(shape)}",
                fix=f"write one per image, or leave {name} out",
            )
    return EvaluationSet(
        name=path.stem,
        images=images,
        labels=labels.astype(np.int64),
        timestamps=np.asarray(stamps, np.int64),
        lonlat=None if lonlat is None else np.asarray(lonlat, np.float64),
        sensor=sensor,
    )


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        if path.is_dir():
            return {
                p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in path.glob("*.npy")
            }
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError("one array instead of named ones")
        with found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            got=f"evaluation set {path} ({type(error).__name__}: {error})",
            expected="an .npz, or a folder of .npy files, with images and labels",
            fix="check the path, or write it again with numpy.savez",
        ) from error


def encoder_of(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Encoder:
    """The encoder alone, with the weights of a pretraining model (names from ``encoder.`` on)."""
    with torch.device("meta"):
        encoder = Encoder(config)
    encoder.load_state_dict(
        {n: tensors[f"encoder.{n}"].detach().cpu().float() for n in encoder.state_dict()},
        assign=True,
    )
    return encoder.eval()


def embed(
    encoder: Encoder,
    dataset: EvaluationSet,
    *,
    patch_size: int = 4,
    device: str | torch.device = "cpu",
) -> FloatArray:
    """One vector per crop [N, D]: the mean of its embedding map."""
    model = Model(encoder, name="training", weights_id="training", device=device, compile=False)
    n_times, rows, cols = dataset.images.shape[1:4]
    rows, cols = rows // patch_size * patch_size, cols // patch_size * patch_size
    step = max(1, _CHUNK_PIXELS // (n_times * rows * cols))
    vectors = []
    for start in range(0, len(dataset.images), step):
        images = np.asarray(dataset.images[start : start + step, :, :rows, :cols], np.float32)
        grid = model.encode_grid(
            {dataset.sensor: images.transpose(0, 2, 3, 1, 4)},
            dataset.timestamps[start : start + step],
            patch_size=patch_size,
            output="pooled",
        )
        vectors.append(grid.flatten(1, 2).nanmean(dim=1).cpu().numpy())
    return np.concatenate(vectors)


def hits(
    x: FloatArray, dataset: EvaluationSet, *, probes: tuple[str, ...] = PROBES
) -> dict[str, NDArray[np.bool_]]:
    """Which crops each probe gets right, predicted once by a model that never saw their fold."""
    right = {probe: np.zeros(len(x), bool) for probe in probes}
    for train, test in dataset.folds.splits():
        known, labels = x[train], dataset.labels[train]
        for probe in probes:
            predicted = (
                knn_cosine(known, labels, x[test])
                if probe == "knn"
                else linear_probe(known, labels, x[test], block=dataset.folds.block[train])
            )
            right[probe][test] = predicted == dataset.labels[test]
    return right


def evaluate(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    datasets: tuple[EvaluationSet, ...],
    *,
    patch_size: int = 4,
    probes: tuple[str, ...] = PROBES,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Scores of the weights of a pretraining model on each set, as ``name/probe``."""
    scores: dict[str, float] = {}
    encoder = encoder_of(config, tensors)
    for dataset in datasets:
        x = embed(encoder, dataset, patch_size=patch_size, device=device)
        for probe, right in hits(x, dataset, probes=probes).items():
            scores[f"{dataset.name}/{probe}"] = float(right.mean())
    return scores
