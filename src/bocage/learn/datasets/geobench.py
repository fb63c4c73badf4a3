"""GEO-Bench 1 through its own package, where a user has installed it and has its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bocage.errors import SourceError
from bocage.learn.classes import make_classes
from bocage.learn.datasets.dataset import Dataset, same_date
from bocage.learn.datasets.official import OFFICIAL, OfficialTask
from bocage.sensors import SENTINEL2_L2A

_BANDS = {
    "B01": "01 - Coastal aerosol",
    "B02": "02 - Blue",
    "B03": "03 - Green",
    "B04": "04 - Red",
    "B05": "05 - Vegetation Red Edge",
    "B06": "06 - Vegetation Red Edge",
    "B07": "07 - Vegetation Red Edge",
    "B08": "08 - NIR",
    "B8A": "08A - Vegetation Red Edge",
    "B09": "09 - Water vapour",
    "B11": "11 - SWIR",
    "B12": "12 - SWIR",
}
"""Names that the package gives the bands of Sentinel-2."""


def read_geobench(
    path: Path, *, task: OfficialTask | str, max_per_split: int | None = None
) -> Dataset:
    """A Sentinel-2 task of GEO-Bench 1; SourceError where package or data are missing."""
    task = OFFICIAL[task] if isinstance(task, str) else task
    try:
        import geobench  # type: ignore[import-not-found]
    except ImportError as error:
        raise SourceError(
            got=f"task {task.name} without the package geobench",
            expected=task.source,
            fix="pip install geobench, then geobench-download; its data take 65 GB",
        ) from error
    found = _find(geobench, task, path)
    parts = [_read_split(found, task, split, max_per_split) for split in ("train", "valid", "test")]
    images = np.concatenate([x for x, _ in parts])
    y = np.concatenate([y for _, y in parts])
    split = np.repeat(["train", "val", "test"], [len(y) for _, y in parts])
    flags = task.name == "m_bigearthnet"
    return Dataset(
        name=task.name,
        images={"sentinel2_l2a": images[:, None]},
        timestamps=same_date(len(y)),
        y=y.astype(bool) if flags else y.astype(np.int64),
        task="multilabel" if flags else "classification",
        classes=make_classes([str(i) for i in range(task.n_classes)]),
        split=split,
        note="GEO-Bench 1, official split",
    )


def _find(geobench: Any, task: OfficialTask, path: Path) -> Any:
    kind = "segmentation_v1.0" if task.metric == "miou" else "classification_v1.0"
    wanted = task.name.replace("_", "-", 1)
    try:
        for found in geobench.task_iterator(benchmark_name=kind):
            if found.dataset_name == wanted:
                return found
    except (OSError, AssertionError, ValueError) as error:
        raise SourceError(
            got=f"GEO-Bench without its data ({error})",
            expected=task.source,
            fix="run geobench-download, or set GEO_BENCH_DIR to where the data are",
        ) from error
    raise SourceError(
        got=f"GEO-Bench without {wanted} (looked for beside {path})",
        expected=task.source,
        fix="run geobench-download again",
    )


def _read_split(found: Any, task: OfficialTask, split: str, limit: int | None) -> Any:
    dataset = found.get_dataset(split=split)
    n = len(dataset) if limit is None else min(limit, len(dataset))
    images, labels = [], []
    for i in range(n):
        sample = dataset[i]
        have = {band.band_info.name for band in sample.bands}
        image = None
        for c, name in enumerate(SENTINEL2_L2A.band_names):
            if _BANDS[name] not in have:
                continue
            values = np.asarray(sample.pack_to_3d(band_names=[_BANDS[name]])[0], np.float32)[..., 0]
            if image is None:
                image = np.full((len(SENTINEL2_L2A.bands), *values.shape), np.nan, np.float32)
            image[c] = values
        if image is None:
            raise SourceError(
                got=f"{task.name} without Sentinel-2 bands",
                expected="a Sentinel-2 task",
                fix="leave it out of the suite",
            )
        # so2sat comes as reflectance, the models were trained on ten thousand times that.
        images.append(image * np.float32(10_000 if task.name == "m_so2sat" else 1))
        label = sample.label
        labels.append(np.asarray(getattr(label, "data", label)))
    return np.stack(images), np.stack(labels)
