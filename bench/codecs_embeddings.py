"""Embeddings of real imagery for the codec and search benchmarks, as .npz (x, labels, lonlat).

    python bench/codecs_embeddings.py india   OUT.npz [--model bocage-nano] [--weights hub]
    python bench/codecs_embeddings.py world   OUT.npz
    python bench/codecs_embeddings.py eurosat OUT.npz [FOLDER of classes]

With --weights random the network keeps the structure of real imagery, but has no trained features.
The offset of processing baseline 04.00 is taken off the worldwide patches that show it, as for the
training of bocage-nano. Dates: July stands for all.
"""

import argparse
import os
import warnings
from pathlib import Path

import numpy as np

import bocage

DATA = Path(os.environ.get("BOCAGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
ORDER = ["B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"]
WORLD = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
EUROSAT = [*(f"B{n:02}" for n in range(1, 13)), "B8A"]


def read(path: Path) -> tuple[np.ndarray, object, str]:
    import rasterio

    with rasterio.open(path) as source:
        return source.read().astype(np.float32), source.transform, source.crs.to_string()


def centers(transform, crs: str, h: int, w: int, step: int) -> np.ndarray:
    from pyproj import Transformer

    row, col = np.mgrid[0:h, 0:w] * step + step / 2
    x, y = transform.a * col + transform.c, transform.e * row + transform.f
    lon, lat = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform(x, y)
    return np.stack([lon.ravel(), lat.ravel()], axis=1)


def encode(model, pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """[h, w, D] of one image [C, H, W]."""
    x = pixels.transpose(1, 2, 0)[None, :, :, None, :]  # [1, H, W, 1, C]
    when = np.array([[[1, 6, 2024]]])
    found = model.encode({"sentinel2_l2a": x}, when, patch_size=patch_size, check_units=False)
    return np.asarray(found.pooled()[0], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["india", "world", "eurosat"])
    parser.add_argument("out")
    parser.add_argument("--model", default="bocage-nano")
    parser.add_argument("--weights", default="hub", help="hub, a file, or random")
    parser.add_argument("folder", nargs="?", type=Path, help="EuroSAT, by class, 13 bands")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    weights = None if options.weights == "random" else options.weights
    model = bocage.load_model(options.model, weights=weights)
    vectors, labels, places = [], [], []
    if options.what == "india":
        for path in sorted((DATA / "s2_india_2024_2025").rglob("*.tif")):
            pixels, transform, crs = read(path)
            for top in range(0, 256, 64):
                for left in range(0, 256, 64):
                    crop = pixels[:, top : top + 64, left : left + 64]
                    if (crop == 0).all(axis=0).any():
                        continue
                    moved = transform * transform.translation(left, top)
                    vectors.append(encode(model, crop, 4).reshape(256, -1))
                    places.append(centers(moved, crs, 16, 16, 4))
                    labels += [path.parent.parent.name] * 256
    elif options.what == "world":
        rows = [WORLD.index(band) for band in ORDER]
        for path in sorted((DATA / "s2_100k_sample").rglob("patch_*.tif")):
            pixels, transform, crs = read(path)
            pixels = pixels[rows]
            if np.quantile(pixels, 0.005) > 1000:
                pixels = (pixels - 1000).clip(min=1)
            for top in range(0, 256, 64):
                for left in range(0, 256, 64):
                    crop = pixels[:, top : top + 64, left : left + 64]
                    moved = transform * transform.translation(left, top)
                    vectors.append(encode(model, crop, 4).reshape(256, -1))
                    places.append(centers(moved, crs, 16, 16, 4))
                    labels += [path.stem] * 256
    else:
        rows = [EUROSAT.index(band) for band in ORDER]
        for path in sorted((options.folder or DATA / "eurosat_ms_200").rglob("*.tif")):
            pixels, transform, crs = read(path)
            grid = encode(model, pixels[rows], 4)
            vectors.append(grid.mean(axis=(0, 1))[None])
            places.append(centers(transform, crs, 1, 1, 64))
            labels.append(path.parent.name)
    x = np.concatenate(vectors)
    np.savez(options.out, x=x, labels=np.array(labels), lonlat=np.concatenate(places))
    print(options.out, x.shape)


if __name__ == "__main__":
    main()
