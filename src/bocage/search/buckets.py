"""Rows on their way from the source's order to that of the Hilbert curve, in bounded memory.

Rows are appended to at most 64 bucket files, each a stretch of the curve; then one bucket at a time
is sorted in memory. A bucket that came out too large is cut again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEY = "hilbert"
"""Column with the position on the curve; not stored."""

MAX_BUCKETS = 64
BUCKET_BYTES = 64 << 20
"""Rows of one bucket in memory; sorting and writing hold about three times as much."""


class Buckets:
    """Files of rows, one per stretch of the Hilbert curve."""

    def __init__(self, folder: Path, cuts: NDArray[np.uint64]) -> None:
        folder.mkdir(parents=True)
        self.folder, self.cuts = folder, cuts
        self.writers: dict[int, Any] = {}

    def add(self, table: Any) -> None:
        """Append rows to the buckets of their places."""
        import pyarrow as pa

        bucket = np.searchsorted(self.cuts, table[KEY].to_numpy(), side="right")
        order = np.argsort(bucket, kind="stable")
        starts = np.searchsorted(bucket[order], np.arange(len(self.cuts) + 2))
        for i in np.unique(bucket):
            rows = order[starts[i] : starts[i + 1]]
            part = table if len(rows) == len(table) else table.take(pa.array(rows))
            if i not in self.writers:
                self.writers[i] = pa.ipc.new_file(self.folder / f"{i}.arrow", table.schema)
            self.writers[i].write_table(part)

    def close(self) -> list[Path]:
        """The files, in order of the curve."""
        for writer in self.writers.values():
            writer.close()
        return [self.folder / f"{i}.arrow" for i in sorted(self.writers)]


def sorted_parts(paths: list[Path], scratch: Path) -> Iterator[Any]:
    """The rows of bucket files in order of the curve, in tables of bounded size."""
    import pyarrow as pa

    for path in paths:
        n_bytes = path.stat().st_size
        with pa.memory_map(str(path)) as mapped:
            stored = pa.ipc.open_file(mapped)
            batches = (stored.get_batch(i) for i in range(stored.num_record_batches))
            if n_bytes <= 2 * BUCKET_BYTES:
                table = pa.Table.from_batches(list(batches))
                order = np.argsort(table[KEY].to_numpy(), kind="stable")
                yield table.take(pa.array(order))
                del table
            else:
                yield from _split(list(batches), n_bytes, scratch)
        path.unlink()


def _split(batches: list[Any], n_bytes: int, scratch: Path) -> Iterator[Any]:
    """Cut a bucket that is too large again, at exact quantiles; one place only needs no sorting."""
    import pyarrow as pa

    keys = np.concatenate([np.asarray(b[KEY]) for b in batches])
    if keys.min() == keys.max():
        for batch in batches:
            yield pa.Table.from_batches([batch])
        return
    n_parts = int(np.clip(-(-n_bytes // BUCKET_BYTES), 2, MAX_BUCKETS))
    cuts = np.unique(np.quantile(keys, np.linspace(0, 1, n_parts + 1)[1:-1]).astype(np.uint64))
    # The middle between the extremes parts at least one row off, whatever the quantiles were.
    cuts = np.unique(np.append(cuts, keys.min() + (keys.max() - keys.min()) // 2 + 1))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        parts = Buckets(Path(folder) / "parts", cuts)
        for batch in batches:
            parts.add(pa.Table.from_batches([batch]))
        yield from sorted_parts(parts.close(), Path(folder))
