"""The example patch of eo-learn: one square kilometre in Slovenia with a land-use map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bocage.learn.classes import LabelClass
from bocage.learn.datasets.dataset import Dataset, need
from bocage.sensors import SENTINEL2_L2A

L1C_BANDS = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12",
)  # fmt: skip

CLEAR = {2: "2015-09-09", 3: "2015-08-30", 4: "2015-07-11"}
"""Position and date of the scenes without clouds."""

CLASSES = {
    1: ("cultivated land", "#e8c547"),
    2: ("forest", "#1f7a3a"),
    3: ("grassland", "#9ccc65"),
    4: ("shrubland", "#7d8f3f"),
    8: ("artificial surface", "#b3372c"),
}


def read_eolearn(path: Path) -> Dataset:
    """Three clear Level-1C dates and land use per pixel; 0 is not labelled."""
    where = "https://github.com/sentinel-hub/eo-learn (example_data)"
    scenes = np.load(need(path / "REFERENCE_SCENES.npy", "eolearn_slovenia", where))
    patch = path / "TestEOPatch"
    codes = np.load(need(patch / "mask_timeless" / "LULC.npy", "eolearn_slovenia", where))[..., 0]
    box = json.loads((patch / "bbox.geojson").read_text())["coordinates"][0]
    west, north = min(p[0] for p in box), max(p[1] for p in box)
    order = [L1C_BANDS.index(b) for b in SENTINEL2_L2A.band_names]
    images = np.moveaxis(scenes[list(CLEAR)][..., order], -1, 1)[None] * np.float32(10_000)
    dates = [tuple(int(v) for v in d.split("-")) for d in sorted(CLEAR.values())]
    by_date = np.argsort(list(CLEAR.values()))
    values = np.array(sorted(CLASSES))
    index = np.searchsorted(values, codes)
    known = np.isin(codes, values)
    return Dataset(
        name="eolearn_slovenia",
        images={"sentinel2_l2a": np.ascontiguousarray(images[:, by_date], np.float32)},
        timestamps=np.array([[(day, month - 1, year) for year, month, day in dates]]),
        y=np.where(known, index, -1).astype(np.int64)[None],
        task="classification",
        classes=tuple(
            LabelClass(value=v, name=n, color=c) for v, (n, c) in sorted(CLASSES.items())
        ),
        corner_xy_m=np.array([[west, north]]),
        note="Level-1C; one square kilometre: a check that all works, no more",
    )
