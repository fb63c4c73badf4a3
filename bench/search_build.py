"""Encode and write vectors to shards: rows per second and peak memory.

    python bench/search_build.py [--rows 1000000] [--dims 1024] [--code auto]

Vectors are made batch by batch, so that the memory is the build's. The published figure is 18,359
rows per second on 8 workers (2,295 per worker); the bound here is 13,800 on two cores.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from bocage.memory import peak_resident_mb
from bocage.search import IndexOptions, index
from bocage.search.sources import BATCH_ROWS, ArraySource


class Stream:
    """Clustered vectors on a country, made when read; one batch exists at a time."""

    model = "bench"

    def __init__(self, n_rows: int, dims: int) -> None:
        self.n_rows = n_rows
        rng = np.random.default_rng(0)
        self.noise = rng.normal(0, 0.3, (BATCH_ROWS, dims)).astype(np.float32)
        self.centers = rng.normal(0, 1, (64, dims)).astype(np.float32)
        self.seconds = 0.0

    def _batch(self, i: int):
        start = time.perf_counter()
        rng = np.random.default_rng(i)
        n = min(BATCH_ROWS, self.n_rows - i * BATCH_ROWS)
        x = self.centers[rng.integers(0, 64, n)]
        x += np.roll(self.noise, int(rng.integers(BATCH_ROWS)), axis=0)[:n]
        lonlat = np.stack([rng.uniform(5, 15, n), rng.uniform(45, 55, n)], axis=1)
        date = np.full(n, 19_000, np.int32)
        batch = next(ArraySource(x, lonlat, date=date).batches())
        self.seconds += time.perf_counter() - start
        return batch

    def batches(self):
        for i in range(-(-self.n_rows // BATCH_ROWS)):
            yield self._batch(i)

    def sample(self, n_rows, seed):
        del seed  # batches are alike
        for i in range(min(-(-n_rows // BATCH_ROWS), -(-self.n_rows // BATCH_ROWS))):
            yield self._batch(i)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=1024)
    parser.add_argument("--code", default="auto")
    parser.add_argument("--folder", default=None, help="where to write; /tmp by default")
    options = parser.parse_args()
    source = Stream(options.rows, options.dims)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    start = time.perf_counter()
    result = index(source, folder / "i", options=IndexOptions(code=options.code))
    seconds = time.perf_counter() - start
    peak = peak_resident_mb()
    print(
        f"{result.n_rows} x {options.dims}: {result.n_rows / seconds:,.0f} rows/s "
        f"({result.n_rows / (seconds - source.seconds):,.0f} without making the vectors), "
        f"{seconds:.0f} s, peak {peak:.0f} MB, {result.n_bytes / result.n_rows:.0f} bytes per row "
        f"in {result.n_shards} shards"
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
