"""Peak memory of a map of change, for an area and for four times the area.

    python bench/change_memory.py [--side 1024] [--dims 32] [--methods magnitude pca logistic]

Two years of int8 embeddings are made of noise in blocks; each map is made by a process of its own,
which reports its VmHWM (resource usage of a child starts from its parent's size). The bands of
`cva` and `irmad` are two plain rasters of 12 bands.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from bocage.embeddings import EmbeddingGrid, create_store, write_shard

ORIGIN = Affine(10, 0, 500_000, 0, -10, 4_500_000)
BANDS = 12

CHILD = """
import sys, warnings
from pathlib import Path
from bocage.change import map_change
warnings.simplefilter("ignore")
before, after, out, method, labels = sys.argv[1:]
options = {"labels": Path(labels)} if method == "logistic" else {}
found = map_change(before, after, out=out, method=method, **options)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line for line in lines if line.startswith("VmHWM")).split()[1], found.wall_s)
"""


def write_years(folder, side, dims):
    """Two stores with one changed square."""
    paths = [folder / f"{year}.zarr" for year in (2024, 2025)]
    for n, path in enumerate(paths):
        grid = EmbeddingGrid(
            crs="EPSG:32618", transform=ORIGIN, shape_yx=(side, side), dims=dims,
            years=(2024 + n,), shard_cells=512, model="noise", attrs={"weights_id": "none"},
        )  # fmt: skip
        create_store(path, grid)
        for i, j in np.ndindex(*grid.shards_yx):
            rng = np.random.default_rng([i, j])
            x = rng.normal(0, 0.2, (dims, *grid.shard_shape(i, j))).astype(np.float32)
            x += n * np.float32(0.05) * rng.standard_normal(x.shape, dtype=np.float32)
            x[:, :64, :64] *= 1 - 2 * n
            write_shard(path, grid, 2024 + n, i, j, x)
    return paths


def write_rasters(folder, side):
    paths = [folder / f"{year}.tif" for year in (2024, 2025)]
    for n, path in enumerate(paths):
        with rasterio.open(
            path, "w", driver="GTiff", count=BANDS, height=side, width=side, dtype="float32",
            crs="EPSG:32618", transform=ORIGIN, tiled=True, compress="zstd",
        ) as file:  # fmt: skip
            for top in range(0, side, 256):
                rng = np.random.default_rng(top)
                x = rng.normal(0, 1, (BANDS, min(256, side - top), side))
                x += n * rng.normal(0, 0.3, x.shape)
                window = rasterio.windows.Window(0, top, side, x.shape[1])
                file.write(x.astype(np.float32), window=window)
    return paths


def write_labels(folder, side):
    import geopandas as gpd

    rng = np.random.default_rng(0)
    cells = rng.integers(0, side, (400, 2))
    cells[:100] = cells[:100] // 512 * 512 + rng.integers(0, 64, (100, 2))
    cells = np.minimum(cells, side - 1)
    changed = (cells % 512 < 64).all(axis=1)
    xy = [ORIGIN @ (c + 0.5, r + 0.5) for r, c in cells]
    frame = gpd.GeoDataFrame(
        {"kind": np.where(changed, "change", "no change")},
        geometry=gpd.points_from_xy(*zip(*xy, strict=True)), crs="EPSG:32618",
    )  # fmt: skip
    frame.to_file(folder / "labels.gpkg")
    return folder / "labels.gpkg"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--dims", type=int, default=32)
    methods = ["magnitude", "difference", "pca", "logistic", "cva", "irmad"]
    parser.add_argument("--methods", nargs="*", default=methods)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        peaks = {method: [] for method in arguments.methods}
        for factor in (1, 2):
            folder = Path(name) / str(factor)
            folder.mkdir()
            side = arguments.side * factor
            of_bands = {"cva", "irmad"} & set(arguments.methods)
            bands = write_rasters(folder, side) if of_bands else None
            years = None
            if set(arguments.methods) - of_bands:
                years = write_years(folder, side, arguments.dims)
            labels = write_labels(folder, side)
            for method in arguments.methods:
                pair = bands if method in of_bands else years
                out = folder / f"{method}.tif"
                command = [sys.executable, "-c", CHILD, *pair, out, method, labels]
                done = subprocess.run(
                    [str(c) for c in command], capture_output=True, text=True, check=True
                )
                peak, wall = done.stdout.split()[-2:]
                peaks[method].append(float(peak) * 1024 / 1e6)
                text = f"{method}, {side} x {side}: {peaks[method][-1]:.0f} MB, {float(wall):.1f} s"
                print(text, flush=True)
        for method, (small, large) in peaks.items():
            print(f"{method}: {small:.0f} to {large:.0f} MB, {large / small - 1:+.0%}")


if __name__ == "__main__":
    main()
