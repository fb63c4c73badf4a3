"""Speed of writing shards and of reading back, by shard and inner chunk size.

    python bench/embeddings_store.py

Values are normal with standard deviation 0.23, as the public v1.3 archive reports of its own, and
smooth over 4 cells; real ratios of size differ. One process; zarr uses its own threads.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from affine import Affine

from bocage.embeddings import EmbeddingGrid, create_store, export_cog, open_embeddings, write_shard
from bocage.embeddings.codecs import signed_power

DIMS = 128
SIDE = 1024


def main() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 0.23, (DIMS, SIDE // 4, SIDE // 4)).astype(np.float32)
    x = coarse.repeat(4, axis=1).repeat(4, axis=2)
    x += rng.normal(0, 0.02, x.shape).astype(np.float32)
    gigabytes = x.nbytes / 1e9
    start = time.perf_counter()
    signed_power.encode(x)
    print(
        f"encode alone                {gigabytes / (time.perf_counter() - start):6.2f} GB/s float32"
    )
    folder = Path(tempfile.mkdtemp(prefix="bocage-bench-"))
    try:
        for shard_cells in (128, 256, 512, 1024):
            _measure(folder / f"{shard_cells}.zarr", x, shard_cells)
        start = time.perf_counter()
        export_cog(folder / "1024.zarr", folder / "e.tif")
        spent = time.perf_counter() - start
        print(f"export_cog                  {gigabytes / spent:6.2f} GB/s float32")
    finally:
        shutil.rmtree(folder)


def _measure(path: Path, x: np.ndarray, shard_cells: int) -> None:
    grid = EmbeddingGrid(
        crs="EPSG:32618",
        transform=Affine(10, 0, 5e5, 0, -10, 4.5e6),
        shape_yx=(SIDE, SIDE),
        dims=DIMS,
        years=(2024,),
        shard_cells=shard_cells,
    )
    create_store(path, grid)
    n_bytes, start = 0, time.perf_counter()
    for row in range(grid.shards_yx[0]):
        for col in range(grid.shards_yx[1]):
            rows = slice(row * shard_cells, (row + 1) * shard_cells)
            cols = slice(col * shard_cells, (col + 1) * shard_cells)
            n_bytes += write_shard(path, grid, 2024, row, col, x[:, rows, cols])
    write_s = time.perf_counter() - start
    opened = open_embeddings(path)
    start = time.perf_counter()
    opened.data.map_blocks(lambda b: b[..., :1, :1]).compute()
    read_s = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(10):
        opened[0, :, i * 97 % SIDE, i * 61 % SIDE].compute()
    pixel_ms = (time.perf_counter() - start) * 100
    print(
        f"shard {shard_cells:4} inner {grid.inner_cells:3}   write {x.nbytes / write_s / 1e9:5.2f}"
        f"  read {x.nbytes / read_s / 1e9:5.2f} GB/s float32   one pixel {pixel_ms:5.1f} ms"
        f"   size {n_bytes / x.size:.3f} of int8"
    )


if __name__ == "__main__":
    main()
