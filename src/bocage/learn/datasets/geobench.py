"""GEO-Bench 1 through its own package, where a user has installed it and has its data.

The package asks for old versions of pandas and huggingface_hub but works with new ones:
``pip install --no-deps geobench``. GEO-Bench 2 (geobenchv2) needs torchvision and torchgeo, and
has no reader here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError, SourceError
from bocage.learn.classes import make_classes
from bocage.learn.datasets.dataset import Dataset, same_date
from bocage.learn.datasets.official import OFFICIAL, OfficialTask
from bocage.sensors import SENTINEL2_L2A

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

BANDS = {
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
"""Names that the package gives the bands of Sentinel-2 (geobench.sentinel2_13_bands)."""

SPLITS = {"train": "train", "val": "valid", "test": "test"}
"""Our names and theirs."""


def read_geobench(
    path: Path, *, task: OfficialTask | str, max_per_split: int | None = None
) -> Dataset:
    """A Sentinel-2 task of GEO-Bench 1 with its official split; missing bands are NaN.

    ``path`` holds the folder of the task, or the benchmark that holds it (GEO_BENCH_DIR); all
    images are read into memory, of the first ``max_per_split`` samples of each split if given.
    Raises SourceError where package or data are missing, InputError for tasks of other sensors.
    """
    task = OFFICIAL[task] if isinstance(task, str) else task
    if task.sensors != "S2":
        raise InputError(
            got=f"task {task.name} of {task.sensors}",
            expected="a Sentinel-2 task of GEO-Bench 1",
            fix="leave it out of the suite",
        )
    # Its import makes this folder; without the variable, one in the user's home.
    os.environ.setdefault("GEO_BENCH_DIR", str(path))
    try:
        import geobench  # type: ignore[import-not-found]
    except ImportError as error:
        raise SourceError(
            got=f"task {task.name} without the package geobench",
            expected=task.source,
            fix="pip install --no-deps geobench (its versions of pandas and huggingface_hub are "
            "old), then geobench-download; its data take 65 GB",
        ) from error
    folder = _find(Path(path), Path(geobench.GEO_BENCH_DIR), task)
    known = {band.name for band in geobench.load_task_specs(folder).bands_info}
    bands = [b for b in SENTINEL2_L2A.band_names if BANDS[b] in known]
    if not bands:
        raise SourceError(
            got=f"{folder} without bands of Sentinel-2 ({', '.join(sorted(known)[:4])})",
            expected=f"bands named as {BANDS['B02']!r}",
            fix="check that the data are GEO-Bench 1, version 1.0",
        )
    images, labels, splits = [], [], []
    for split, theirs in SPLITS.items():
        found = geobench.GeobenchDataset(folder, split=theirs, band_names=[BANDS[b] for b in bands])
        for i in range(len(found) if max_per_split is None else min(max_per_split, len(found))):
            sample = found[i]
            images.append(_image(sample, bands, factor=10_000 if task.name == "m_so2sat" else 1))
            labels.append(_label(sample.label))
            splits.append(split)
    y = np.stack(labels)
    flags = y.ndim == 2
    return Dataset(
        name=task.name,
        images={"sentinel2_l2a": np.stack(images)[:, None]},
        timestamps=same_date(len(y)),
        y=y.astype(bool) if flags else y.astype(np.int64),
        task="multilabel" if flags else "classification",
        classes=make_classes([str(i) for i in range(task.n_classes)]),
        split=np.array(splits),
        note="GEO-Bench 1, official split",
    )


def _find(path: Path, usual: Path, task: OfficialTask) -> Path:
    """The folder of a task, whose name is written m-SA-crop-type or m-brick-kiln."""
    wanted = task.name.replace("_", "-").lower()
    for root in dict.fromkeys((path, usual)):
        for folder in (root, *sorted(root.glob("*_v1.0")), *sorted(root.glob("*/*_v1.0"))):
            for found in sorted(folder.iterdir()) if folder.is_dir() else []:
                if found.name.lower() == wanted and (found / "task_specs.pkl").exists():
                    return found
    raise SourceError(
        got=f"task {task.name}: no folder {wanted} in {path} or {usual}",
        expected=task.source,
        fix="run geobench-download, or set GEO_BENCH_DIR to where the data are",
    )


def _image(sample: Any, bands: list[str], *, factor: int) -> FloatArray:
    """[C, H, W]; so2sat comes as reflectance, the models learned from ten thousand times that."""
    values, _ = sample.pack_to_3d(band_names=[BANDS[b] for b in bands], resample=True)
    image = np.full((len(SENTINEL2_L2A.bands), *values.shape[:2]), np.nan, np.float32)
    for c, band in enumerate(SENTINEL2_L2A.band_names):
        if band in bands:
            image[c] = values[..., bands.index(band)]
    return image * np.float32(factor)


def _label(label: Any) -> NDArray[Any]:
    """A class, flags, or the classes of all pixels [H, W]."""
    y = np.asarray(getattr(label, "data", label)) if not np.isscalar(label) else np.asarray(label)
    return y[..., 0] if y.ndim == 3 else y
