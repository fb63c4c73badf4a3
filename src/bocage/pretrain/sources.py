"""Opening a collection of samples, whatever its kind."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bocage.errors import InputError
from bocage.pretrain.modalities import MODALITIES
from bocage.pretrain.sample import (
    Sample,
    Samples,
    StoredSample,
    check_sample,
    present_steps,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from bocage.types import FloatArray, PathLike, ValidArray


def open_samples(source: PathLike | Samples | Sequence[PathLike] | Sequence[Sample]) -> Samples:
    """A store of samples, a folder of official H5 files, several of these, or samples in memory.

    Raises StoreError or SourceError if a path is neither, InputError if several do not fit.
    """
    if isinstance(source, str | Path):
        from bocage.pretrain.official_h5 import H5Samples, is_official
        from bocage.pretrain.store_samples import StoreSamples

        return H5Samples(source) if is_official(Path(source)) else StoreSamples(source)
    if isinstance(source, list | tuple):
        if source and all(isinstance(part, Sample) for part in source):
            return MemorySamples(source)
        return JoinedSamples([open_samples(part) for part in source])
    return source  # type: ignore[return-value]  # what remains is a Samples already


class JoinedSamples:
    """Several collections as one, in the order given."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        """InputError if there is none, or if their samples have different sizes."""
        self.parts = list(parts)
        sides = sorted({part.size_px for part in parts})
        if len(sides) != 1:
            raise InputError(
                got=f"{len(self.parts)} collections with samples of {sides} pixels",
                expected="one or more collections of one sample size",
                fix="build them with the same --size",
            )
        self.size_px = sides[0]
        self.max_steps = max(part.max_steps for part in parts)
        self.modalities = tuple(
            name for name in MODALITIES if any(name in part.modalities for part in parts)
        )
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        """How many samples there are in all."""
        return int(self._ends[-1])

    def n_steps(self, index: int) -> int:
        """Timesteps of a sample."""
        part, local = self._find(index)
        return part.n_steps(local)

    def sample_id(self, index: int) -> str:
        """Name of a sample."""
        part, local = self._find(index)
        return part.sample_id(local)

    def sample(self, index: int) -> AbstractContextManager[StoredSample]:
        """Open a sample."""
        part, local = self._find(index)
        return part.sample(local)

    def _find(self, index: int) -> tuple[Samples, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[number], index - (int(self._ends[number - 1]) if number else 0)


class MemorySamples:
    """Samples that are in memory already, for small collections and tests."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        """Check that the samples share their size."""
        self.samples = [check_sample(sample) for sample in samples]
        sides = {next(iter(s.values.values())).shape[0] for s in self.samples}
        if len(sides) != 1:
            raise InputError(
                got=f"{len(self.samples)} samples with sides {sorted(sides)}",
                expected="one or more samples of one size",
                fix="cut all to the same size",
            )
        self.size_px: int = sides.pop()
        self.max_steps = max(len(s.timestamps) for s in self.samples)
        self.modalities = tuple(
            name for name in MODALITIES if any(name in s.values for s in self.samples)
        )

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.samples)

    def n_steps(self, index: int) -> int:
        """Timesteps of a sample."""
        return len(self.samples[index].timestamps)

    def sample_id(self, index: int) -> str:
        """Name of a sample."""
        return self.samples[index].id

    @contextmanager
    def sample(self, index: int) -> Iterator[_OpenSample]:
        """Open a sample."""
        sample = self.samples[index]
        present = {name: present_steps(x) for name, x in sample.values.items()}
        yield _OpenSample(
            id=sample.id,
            timestamps=np.asarray(sample.timestamps, np.int64),
            present=present,
            values=sample.values,
        )


@dataclass(frozen=True, kw_only=True)
class _OpenSample:
    id: str
    timestamps: NDArray[np.int64]
    present: dict[str, ValidArray]
    values: dict[str, FloatArray]

    def read(self, name: str, rows: slice, cols: slice, steps: tuple[int, ...]) -> FloatArray:
        return np.asarray(self.values[name][rows, cols][:, :, list(steps)], np.float32)
