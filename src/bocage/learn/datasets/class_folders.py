"""GeoTIFFs in one folder per class, as EuroSAT comes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bocage.errors import InputError
from bocage.learn.classes import make_classes
from bocage.learn.datasets.dataset import Dataset, need, same_date
from bocage.sensors import SENTINEL2_L2A

EUROSAT_BANDS = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A",
)  # fmt: skip
"""Order of the published all-band files, which end with B8A."""


def read_class_folders(
    path: Path, *, bands: Sequence[str] = EUROSAT_BANDS, name: str = "eurosat"
) -> Dataset:
    """Sentinel-2 patches; every folder is a class and every patch a sample of it."""
    import rasterio
    from rasterio.warp import transform

    need(path, name, "https://github.com/phelber/EuroSAT (all bands)")
    folders = sorted(p for p in path.iterdir() if p.is_dir())
    files = [(i, f) for i, p in enumerate(folders) for f in sorted(p.glob("*.tif"))]
    if len({i for i, _ in files}) < 2:
        raise InputError(
            got=f"{path} with {len(folders)} folders and {len(files)} GeoTIFFs",
            expected="one folder of GeoTIFFs for each of several classes",
            fix="name the folder that holds the folders of the classes",
        )
    order = [bands.index(b) for b in SENTINEL2_L2A.band_names if b in bands]
    slots = [i for i, b in enumerate(SENTINEL2_L2A.band_names) if b in bands]
    images, places = [], []
    for _, file in files:
        with rasterio.open(file) as opened:
            if opened.count != len(bands):
                raise InputError(
                    got=f"{file.name} with {opened.count} bands",
                    expected=f"{len(bands)}: {' '.join(bands)}",
                    fix="name the bands in file order",
                )
            values = opened.read(out_dtype="float32")
            left, bottom, right, top = opened.bounds
            lon, lat = transform(
                opened.crs, "EPSG:4326", [(left + right) / 2], [(bottom + top) / 2]
            )
        image = np.full((len(SENTINEL2_L2A.bands), *values.shape[1:]), np.nan, np.float32)
        image[slots] = values[order]
        image[:, (values == 0).all(axis=0)] = np.nan
        images.append(image)
        places.append((lon[0], lat[0]))
    return Dataset(
        name=name,
        images={"sentinel2_l2a": np.stack(images)[:, None]},
        timestamps=same_date(len(files)),
        y=np.array([i for i, _ in files], np.int64),
        task="classification",
        classes=make_classes([p.name for p in folders]),
        lonlat=np.array(places),
        note="Level-1C; dates unknown",
    )
