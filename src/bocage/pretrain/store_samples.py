"""Samples of a store, as the loader reads them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import StoreError
from bocage.pretrain.store import FORMAT, JOURNAL, VERSION, decode
from bocage.pretrain.store_shards import ShardedArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bocage.types import FloatArray, PathLike, ValidArray


class StoreSamples:
    """A finished store; opening reads its small tables only."""

    def __init__(self, path: PathLike) -> None:
        """Open a store; StoreError if it is unfinished, foreign or missing."""
        import zarr

        self.path = Path(path)
        attributes = _attributes(self.path)
        layout = attributes["layout"]
        self.modalities: tuple[str, ...] = tuple(layout["modalities"])
        self.size_px = int(layout["size_px"])
        self.max_steps = int(layout["max_steps"])
        self.refused: dict[str, int] = attributes["refused"]
        self.arrays = {name: ShardedArray(self.path / name) for name in self.modalities}
        group: Any = zarr.open_group(str(self.path), mode="r")
        self.timestamps: NDArray[np.int64] = group["timestamps"][...].astype(np.int64)
        self.present: ValidArray = group["present"][...]  # [sample, modality, time]
        self.latlon: FloatArray = group["latlon"][...]
        self._n_steps: NDArray[np.int16] = group["n_steps"][...]
        self._ids: NDArray[np.uint8] = group["ids"][...]

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self._n_steps)

    def n_steps(self, index: int) -> int:
        """Timesteps of a sample."""
        return int(self._n_steps[index])

    def sample_id(self, index: int) -> str:
        """Name of a sample: its source and window."""
        return bytes(self._ids[index]).rstrip(b"\0").decode()

    @contextmanager
    def sample(self, index: int) -> Iterator[_OpenSample]:
        """Open a sample."""
        n_steps = self.n_steps(index)
        present = {}
        for name, array in self.arrays.items():
            steps = self.present[index, self.modalities.index(name), : array.shape[1]]
            if bool(steps.any()):
                present[name] = steps[:n_steps]
        yield _OpenSample(
            id=self.sample_id(index),
            timestamps=self.timestamps[index, :n_steps],
            present=present,
            arrays=self.arrays,
            index=index,
        )


@dataclass(frozen=True, kw_only=True)
class _OpenSample:
    id: str
    timestamps: NDArray[np.int64]
    present: dict[str, ValidArray]
    arrays: dict[str, ShardedArray]
    index: int

    def read(self, name: str, rows: slice, cols: slice, steps: tuple[int, ...]) -> FloatArray:
        array = self.arrays[name]
        codes = array.read(self.index, rows, cols, steps)
        return np.moveaxis(decode(codes, array.missing), (0, 1), (2, 3))


def _attributes(path: Path) -> dict[str, Any]:
    if (path / JOURNAL).exists():
        raise StoreError(
            got=f"{path}, which is not finished",
            expected="a store that was written to its end",
            fix="run the command that began it again; it goes on where it stopped",
        )
    try:
        attributes: dict[str, Any] = json.loads((path / "zarr.json").read_bytes())["attributes"]
        known = attributes["format"] == FORMAT
    except (OSError, ValueError, KeyError):
        known = False
    if not known:
        raise StoreError(
            got=f"{path}, which is not a store of samples",
            expected="a store made by bocage pretrain build or convert",
            fix="make one, or check the path",
        )
    if attributes["version"] != VERSION:
        raise StoreError(
            got=f"version {attributes['version']} of {path}",
            expected=f"version {VERSION}",
            fix="make the store again with this version of bocage",
        )
    return attributes
