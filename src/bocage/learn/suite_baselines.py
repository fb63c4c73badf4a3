"""What a model of a suite has to beat: the bands of the images, and their indices."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from bocage.learn.baselines import spectral_indices
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    from bocage.learn.datasets.dataset import Dataset
    from bocage.types import FloatArray

INDICES = ("NDVI", "NDWI")


def baselines(dataset: Dataset, patch_size: int) -> dict[str, FloatArray]:
    """Features [samples, D] without a model, by name; a sample is an image or a cell.

    Of each date: the mean over a cell, or mean and spread over an image. Holes are filled by the
    mean of all samples.
    """
    bands = [_per_sample(dataset, x, patch_size) for x in dataset.images.values()]
    found = {"raw bands": _filled(bands)}
    indices = [
        _per_sample(dataset, x, patch_size)
        for sensor, images in dataset.images.items()
        if (x := _indices(sensor, images)) is not None
    ]
    if indices:
        found[", ".join(INDICES)] = _filled(indices)
    return found


def _indices(sensor: str, images: FloatArray) -> FloatArray | None:
    """[n, T, indices, H, W]; None for sensors without these bands."""
    names = tuple(f"{sensor}:{b}" for b in SENSORS[sensor].band_names)
    parts = []
    for image in images:  # one at a time: the images may fill the memory
        n_times, n_bands, height, width = image.shape
        flat = np.moveaxis(image, 1, -1).reshape(-1, n_bands)
        found = spectral_indices(flat, names)
        if not all(name in found for name in INDICES):
            return None
        x = np.stack([found[name] for name in INDICES], axis=-1)
        parts.append(np.moveaxis(x.reshape(n_times, height, width, -1), -1, 1))
    return np.stack(parts)


def _per_sample(dataset: Dataset, x: FloatArray, p: int) -> FloatArray:
    """[samples, D] of images [n, T, C, H, W]."""
    n, n_times, n_bands, height, width = x.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all of a band or date may be missing
        if not dataset.per_pixel:
            parts = [np.nanmean(x, axis=(3, 4)).reshape(n, -1)]
            if height * width > 1:
                parts.append(np.nanstd(x, axis=(3, 4)).reshape(n, -1))
            return np.concatenate(parts, axis=1)
        h, w = -(-height // p), -(-width // p)
        pad = ((0, 0), (0, 0), (0, 0), (0, h * p - height), (0, w * p - width))
        cells = np.pad(x, pad, constant_values=np.nan).reshape(n, n_times, n_bands, h, p, w, p)
        mean = np.nanmean(cells, axis=(4, 6))
    return np.asarray(np.moveaxis(mean, (3, 4), (1, 2)).reshape(n * h * w, -1))


def _filled(parts: list[FloatArray]) -> FloatArray:
    found = np.concatenate(parts, axis=1)
    found = found[:, np.isfinite(found).any(axis=0)]
    return np.where(np.isfinite(found), found, np.nanmean(found, axis=0)).astype(np.float32)
