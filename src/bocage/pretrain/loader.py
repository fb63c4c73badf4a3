"""Samples to batches: what step k sees depends on the seed and k alone.

Order, crop shape, positions and flips come from counters, not from a running generator, so step k
can be had without the steps before it, on any number of ranks and threads. Damaged samples are
named, counted and replaced by the next of the epoch; too many of them stop the run.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bocage.errors import BocageError, BocageWarning, ConfigError, InputError
from bocage.pretrain.augmentation import apply_symmetry, draw_symmetry
from bocage.pretrain.batch import Batch
from bocage.pretrain.modalities import modality, normalize
from bocage.pretrain.official_h5 import H5Samples
from bocage.pretrain.sampling import CropShape, SamplingConfig, draw_shape, draw_start

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bocage.pretrain.sample import Samples
    from bocage.types import FloatArray

logger = logging.getLogger(__name__)

_ORDER, _SHAPE, _CROP = range(3)
"""What a random generator is for; part of its seed."""

_BAD_BEFORE_STOP = 3
"""So few damaged samples never stop a run, however small the collection."""


@dataclass(frozen=True, kw_only=True)
class _Crop:
    id: str
    values: dict[str, FloatArray]  # [H, W, T, C] product units, NaN where missing
    timestamps: NDArray[np.int64]  # [T, 3]


class Loader:
    """Batches of normalized crops of a collection of samples."""

    def __init__(
        self,
        source: Samples,
        sampling: SamplingConfig,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        n_workers: int = 0,
        augment: bool = False,
        modalities: Sequence[str] | None = None,
        max_bad_share: float = 0.01,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            source: ``open_samples(path)``, or samples in memory.
            sampling: Crop sizes.
            batch_size: Samples of a step over all ranks together; each rank gets its share.
            seed: Of order, crops and flips.
            rank: This process.
            world_size: How many processes share the batch.
            n_workers: Threads that read ahead in ``batches``; 0 reads when asked.
            augment: Flip and rotate each sample at random.
            modalities: Those to read; all that the source has by default.
            max_bad_share: Share of the collection that may be damaged before the run stops.

        Raises:
            ConfigError: Numbers that do not fit together, or a modality the source lacks.
        """
        self.source, self.sampling, self.seed = source, sampling, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.n_workers, self.augment, self.max_bad_share = n_workers, augment, max_bad_share
        self.modalities = _checked_modalities(source, modalities)
        if isinstance(source, H5Samples):
            warnings.warn(
                "official H5 files decompress a whole sample for every crop, which takes about "
                "three times as long; make a store of them: bocage pretrain convert",
                BocageWarning,
                stacklevel=2,
            )
        self.bad: dict[int, str] = {}
        """Damaged samples met so far: number and reason."""
        self._lock = threading.Lock()
        self._epoch_order: tuple[int, NDArray[np.int64]] | None = None
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise ConfigError(
                got=f"batch_size={batch_size} on rank {rank} of {world_size}",
                expected="a batch that divides evenly among the ranks",
                fix="choose a multiple of the number of processes",
            )
        if batch_size > len(source):
            raise ConfigError(
                got=f"batch_size={batch_size} with {len(source)} samples",
                expected="at most as many as there are samples",
                fix="choose a smaller batch or build more samples (a smaller --stride)",
            )

    def __len__(self) -> int:
        """Steps of an epoch; the rest of the samples wait for the next one."""
        return len(self.source) // self.batch_size

    def batch(self, step: int) -> Batch:
        """Give this rank's share of a step; InputError if too many samples are damaged."""
        epoch, index = divmod(step, len(self))
        order = self._order(epoch)
        first = index * self.batch_size
        everyone = order[first : first + self.batch_size]
        shape = draw_shape(
            self.sampling,
            self.modalities,
            size_px=self.source.size_px,
            max_steps=self.source.max_steps,
            rng=np.random.default_rng([self.seed, _SHAPE, step]),
        )
        longest = max(self.source.n_steps(int(i)) for i in everyone)
        n_steps = min(shape.n_steps, longest)
        share = self.batch_size // self.world_size
        positions = range(self.rank * share, (self.rank + 1) * share)
        crops = [self._crop(step, order, first + p, p, shape, n_steps) for p in positions]
        return self._collate(crops, shape, n_steps)

    def batches(self, first_step: int = 0) -> Iterator[Batch]:
        """Steps without end from the given one, read ahead by the worker threads."""
        if self.n_workers == 0:
            yield from map(self.batch, itertools.count(first_step))
        pool = ThreadPoolExecutor(self.n_workers, thread_name_prefix="bocage-loader")
        try:
            ahead: deque[Future[Batch]] = deque()
            for step in itertools.count(first_step):
                ahead.append(pool.submit(self.batch, step))
                # One more than are kept ahead: the one that the caller gets now.
                if len(ahead) > 2 * self.n_workers:
                    yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        cached = self._epoch_order
        if cached is None or cached[0] != epoch:
            rng = np.random.default_rng([self.seed, _ORDER, epoch])
            cached = (epoch, rng.permutation(len(self.source)))
            self._epoch_order = cached
        return cached[1]

    def _crop(  # noqa: PLR0917 - all of them decide the crop
        self,
        step: int,
        order: NDArray[np.int64],
        place: int,
        position: int,
        shape: CropShape,
        n_steps: int,
    ) -> _Crop:
        """The crop at a place of the epoch's order, or of another sample if that is damaged."""
        candidates = itertools.chain(
            [int(order[place])], self._replacements(order, place, position)
        )
        for attempt, index in enumerate(candidates):
            if index in self.bad:
                continue
            rng = np.random.default_rng([self.seed, _CROP, step, position, attempt])
            try:
                return self._read(index, shape, n_steps, rng)
            except BocageError as error:
                self._note_bad(index, error)
        raise InputError(
            got="no readable sample left",
            expected="a collection of readable samples",
            fix="make the store again",
        )

    def _replacements(self, order: NDArray[np.int64], place: int, position: int) -> Iterator[int]:
        """All samples: those outside the batch first, whole batches ahead.

        So two positions of a batch do not take the same one while there are others.
        """
        turned = np.roll(order, position - place)
        inside, outside = turned[: self.batch_size], turned[self.batch_size :]
        if len(outside):
            lap = len(outside) // math.gcd(len(outside), self.batch_size)
            for turn, n in itertools.product(range(len(outside) // lap), range(lap)):
                yield int(outside[(position + turn + n * self.batch_size) % len(outside)])
        yield from map(int, inside)

    def _read(self, index: int, shape: CropShape, n_steps: int, rng: np.random.Generator) -> _Crop:
        side_px, space = shape.side_px, self.source.size_px - shape.side_px
        row, col = int(rng.integers(space + 1)), int(rng.integers(space + 1))
        rows, cols = slice(row, row + side_px), slice(col, col + side_px)
        with self.source.sample(index) as sample:
            sensors = {
                name: steps
                for name, steps in sample.present.items()
                if name in self.modalities and not modality(name).is_map
            }
            if not any(bool(steps.any()) for steps in sensors.values()):
                raise InputError(
                    got=f"{sample.id}, in which all timesteps are missing",
                    expected="at least one timestep of one sensor with data",
                    fix="leave the sample out",
                )
            start = draw_start(sensors, n_steps, rng)
            steps = tuple(range(start, min(start + n_steps, len(sample.timestamps))))
            values: dict[str, FloatArray] = {}
            for name in sample.present:
                if name in self.modalities:
                    taken = (0,) if modality(name).is_map else steps
                    values[name] = sample.read(name, rows, cols, taken)
            if self.augment:
                element = draw_symmetry(rng)
                values = {name: apply_symmetry(x, element) for name, x in values.items()}
            return _Crop(id=sample.id, values=values, timestamps=sample.timestamps[list(steps)])

    def _note_bad(self, index: int, error: BocageError) -> None:
        with self._lock:
            self.bad[index] = str(error)
            n_bad, n_all = len(self.bad), len(self.source)
        name = self.source.sample_id(index)
        logger.warning("sample %s left out (%d so far): %s", name, n_bad, error)
        if n_bad > max(_BAD_BEFORE_STOP, self.max_bad_share * n_all):
            raise InputError(
                got=f"{n_bad} damaged of {n_all} samples, the last of them {name}: {error.got}",
                expected=f"at most {self.max_bad_share:.0%} of them",
                fix="make the store again, or raise max_bad_share (--max-bad-share)",
            ) from error

    def _collate(self, crops: list[_Crop], shape: CropShape, n_steps: int) -> Batch:
        stamps = np.zeros((len(crops), n_steps, 3), np.int64)
        for row, crop in enumerate(crops):
            stamps[row, : len(crop.timestamps)] = crop.timestamps
            stamps[row, len(crop.timestamps) :] = crop.timestamps[-1]
        values, present = {}, {}
        for name in self.modalities:
            table = modality(name)
            n_times = 1 if table.is_map else n_steps
            side = shape.side_px
            x = np.full((len(crops), side, side, n_times, len(table.bands)), np.nan, np.float32)
            for row, crop in enumerate(crops):
                if name in crop.values:
                    piece = crop.values[name]
                    x[row, :, :, : piece.shape[2]] = normalize(name, piece)
            present[name] = torch.from_numpy(self._present(name, x, shape.patch_size))
            x[~np.isfinite(x)] = 0.0
            values[name] = torch.from_numpy(x)
        return Batch(
            values=values,
            present=present,
            timestamps=torch.from_numpy(stamps),
            patch_size=shape.patch_size,
            ids=tuple(crop.id for crop in crops),
        )

    def _present(self, name: str, x: FloatArray, patch_size: int) -> NDArray[np.bool_]:
        """Tokens with data [B, h, w, T, S]: every band of the set at the patch's first pixel."""
        corner = np.isfinite(x[:, ::patch_size, ::patch_size])
        sets = modality(name).band_sets(self.sampling.band_sets)
        return np.stack([corner[..., list(bands)].all(axis=-1) for bands in sets], axis=-1)


def _checked_modalities(source: Samples, wanted: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(source.modalities if wanted is None else wanted)
    unknown = [name for name in names if name not in source.modalities]
    if unknown or not any(not modality(name).is_map for name in names):
        raise ConfigError(
            got=f"modalities {', '.join(names) or '(none)'}",
            expected=f"some of {', '.join(source.modalities)}, at least one of them a sensor",
            fix="change modalities=",
        )
    return names
