"""Reading the inner chunks of one sample straight from a shard file.

zarr reads the index of the whole shard (49 kB here) and goes through an event loop for every
chunk; a crop needs one sample's part of the index and a few chunks. This does that with two or
three ``pread`` calls, for exactly the layout that ``store`` writes, and says so if it meets
another.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ENTRY_BYTES = 16
_CRC_BYTES = 4
_ABSENT = np.uint64(2**64 - 1)
_JOIN_BYTES = 16_384
"""Chunks closer than this are read together."""


class ShardedArray:
    """One array [sample, time, band, y, x] of a store, readable by box from many threads."""

    def __init__(self, folder: Path) -> None:
        """Read the array's metadata; StoreError if it is not one that ``store`` writes."""
        from numcodecs.zstd import decompress  # type: ignore[import-untyped]

        self.folder = folder
        try:
            meta = json.loads((folder / "zarr.json").read_bytes())
            sharding = meta["codecs"][0]["configuration"]
            self.shape = tuple(int(n) for n in meta["shape"])
            self.shard_shape = tuple(
                int(n) for n in meta["chunk_grid"]["configuration"]["chunk_shape"]
            )
            self.chunk_shape = tuple(int(n) for n in sharding["chunk_shape"])
            codecs = [codec["name"] for codec in sharding["codecs"]]
            index = [codec["name"] for codec in sharding["index_codecs"]]
            self.dtype = np.dtype(meta["data_type"]).newbyteorder("<")
            self.missing = float(meta["fill_value"])
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise _foreign(folder, f"unreadable zarr.json ({error})") from error
        if (
            codecs != ["bytes", "zstd"]
            or index != ["bytes", "crc32c"]
            or sharding.get("index_location", "end") != "end"
            or (self.chunk_shape[0], self.chunk_shape[2]) != (1, self.shape[2])
            or self.shard_shape[1:] != self.shape[1:]
        ):
            raise _foreign(folder, f"codecs {codecs}, chunks {self.chunk_shape}")
        grid = [s // c for s, c in zip(self.shard_shape, self.chunk_shape, strict=True)]
        self._grid = (grid[1], grid[3], grid[4])  # of one sample: time, y, x
        self._decompress = decompress
        self._checked: set[Path] = set()
        self._lock = threading.Lock()
        self.n_bytes = 0
        self.n_chunks = 0

    def read(self, sample: int, rows: slice, cols: slice, steps: tuple[int, ...]) -> NDArray[Any]:
        """Stored codes [len(steps), C, H, W] of a box inside one sample."""
        times, side = self.chunk_shape[1], self.chunk_shape[3]
        shape = (len(steps), self.chunk_shape[2], rows.stop - rows.start, cols.stop - cols.start)
        out = np.full(shape, self.missing, self.dtype)
        wanted = [
            (t, y, x)
            for t in sorted({step // times for step in steps})
            for y in range(rows.start // side, -(-rows.stop // side))
            for x in range(cols.start // side, -(-cols.stop // side))
        ]
        for (t, y, x), chunk in self._chunks(sample, wanted):
            y0, x0 = y * side, x * side
            top, bottom = max(rows.start, y0), min(rows.stop, y0 + side)
            left, right = max(cols.start, x0), min(cols.stop, x0 + side)
            inside = [i for i, step in enumerate(steps) if step // times == t]
            piece = chunk[:, :, top - y0 : bottom - y0, left - x0 : right - x0]
            target = out[..., top - rows.start : bottom - rows.start, :]
            target = target[..., left - cols.start : right - cols.start]
            for i in inside:
                target[i] = piece[steps[i] - t * times]
        return out

    def _chunks(self, sample: int, wanted: list[tuple[int, int, int]]) -> Any:
        """Pairs of chunk position and decoded chunk [T, C, y, x]; absent chunks are left out."""
        shard, row = divmod(sample, self.shard_shape[0])
        path = self.folder / "c" / str(shard) / "0" / "0" / "0" / "0"
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise _damaged(path, str(error.strerror)) from error
        try:
            entries = self._index(file, path, row, wanted)
            pieces = _read_joined(file, path, [e for e in entries if e[0] != _ABSENT])
        finally:
            os.close(file)
        with self._lock:
            self.n_chunks += len(pieces)
            self.n_bytes += sum(map(len, pieces.values()))
        return [
            (key, self._decode(pieces[int(offset)], path))
            for key, (offset, _) in zip(wanted, entries, strict=True)
            if offset != _ABSENT
        ]

    def _index(self, file: int, path: Path, row: int, wanted: list[tuple[int, int, int]]) -> Any:
        """Offset and length of each wanted chunk; the index is checked once per file."""
        n_times, n_rows, n_cols = self._grid
        sample_bytes = n_times * n_rows * n_cols * _ENTRY_BYTES
        index_bytes = self.shard_shape[0] * sample_bytes
        end = os.fstat(file).st_size - _CRC_BYTES
        if end < index_bytes:
            raise _damaged(path, "the file is too short")
        if path not in self._checked:
            _check_index(os.pread(file, index_bytes + _CRC_BYTES, end - index_bytes), path)
            self._checked.add(path)
        data = os.pread(file, sample_bytes, end - index_bytes + row * sample_bytes)
        with self._lock:
            self.n_bytes += len(data)
        index = np.frombuffer(data, "<u8").reshape(n_times, n_rows, n_cols, 2)
        return [index[key] for key in wanted]

    def _decode(self, data: bytes, path: Path) -> NDArray[Any]:
        try:
            raw = self._decompress(data)
            return np.frombuffer(raw, self.dtype).reshape(self.chunk_shape[1:])
        except (RuntimeError, ValueError) as error:
            raise _damaged(path, str(error)) from error


def _check_index(data: bytes, path: Path) -> None:
    """Compare an index with the checksum behind it: a wrong offset may be another chunk's."""
    import google_crc32c  # zarr depends on it

    stated = int.from_bytes(data[-_CRC_BYTES:], "little")
    if google_crc32c.value(data[:-_CRC_BYTES]) != stated:
        raise _damaged(path, "its index fails the checksum")


def _read_joined(file: int, path: Path, entries: list[Any]) -> dict[int, bytes]:
    """Bytes by offset; neighbors are read in one call."""
    spans = sorted({(int(offset), int(length)) for offset, length in entries})
    pieces: dict[int, bytes] = {}
    group: list[tuple[int, int]] = []
    for span in [*spans, None]:
        if group and (span is None or span[0] - sum(group[-1]) > _JOIN_BYTES):
            first = group[0][0]
            data = os.pread(file, sum(group[-1]) - first, first)
            for offset, length in group:
                pieces[offset] = data[offset - first : offset - first + length]
                if len(pieces[offset]) != length:
                    raise _damaged(path, "the file is too short")
            group = []
        if span is not None:
            group.append(span)
    return pieces


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(
        got=f"a damaged shard {path} ({reason})",
        expected="what bocage pretrain build or convert wrote",
        fix="delete the store and make it again",
    )


def _foreign(folder: Path, reason: str) -> StoreError:
    return StoreError(
        got=f"{folder} with {reason}",
        expected="an array of samples, made by bocage pretrain build or convert",
        fix="make the store again with this version",
    )
