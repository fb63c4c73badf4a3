"""Batches of a training set; a step's batch depends on the seed and the step, on nothing before it.

Axes: B batch, T dates, H W pixels, C bands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bocage.learn.finetune.augment import choose_way, hide, turn
from bocage.learn.finetune.config import FinetuneConfig
from bocage.learn.finetune.inputs import Inputs
from bocage.learn.finetune.training_set import TrainingSet

Prepare = Callable[[Mapping[str, Tensor], Tensor, bool], Inputs]
"""(product units [B, H, W, T, C] per sensor, timestamps, whether tokens will be hidden)."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Crops of one forward."""

    inputs: Inputs
    labels: Tensor
    rows: NDArray[np.intp]
    """Numbers of the crops in the training set."""


class Batches:
    """The batches of one process."""

    def __init__(
        self,
        data: TrainingSet,
        config: FinetuneConfig,
        prepare: Prepare,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.data, self.config, self.prepare = data, config, prepare
        self.rank, self.world_size = rank, world_size
        self.train = data.rows("train")
        self.step_size = min(config.batch_size * config.accumulate * world_size, len(self.train))

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps; crops left over take part in another epoch, whose order is another."""
        return len(self.train) // self.step_size

    def step(self, epoch: int, step: int) -> list[Batch]:
        """The forwards of one optimizer step of this process."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.train)
        chosen = order[step * self.step_size : (step + 1) * self.step_size]
        own = chosen[self.rank :: self.world_size]
        size = self.config.batch_size
        return [self.load(own[i : i + size], epoch=epoch) for i in range(0, len(own), size)]

    def steps(self, epoch: int, first: int) -> Iterator[list[Batch]]:
        """The steps of an epoch from ``first``; the next one is read meanwhile."""
        todo = range(first, self.steps_per_epoch)
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.step, epoch, todo[0]) if todo else None
            for k in todo:
                if ahead is None:
                    return
                batch = ahead.result()
                ahead = pool.submit(self.step, epoch, k + 1) if k + 1 < todo.stop else None
                yield batch

    def evaluation(self, split: str) -> Iterator[Batch]:
        """The share of a split that falls to one process, as it is."""
        own = self.data.rows(split)[self.rank :: self.world_size]
        for i in range(0, len(own), self.config.batch_size):
            yield self.load(own[i : i + self.config.batch_size], epoch=None)

    def load(self, rows: NDArray[np.intp], *, epoch: int | None) -> Batch:
        """Crops by number, augmented for an epoch (None: as they are)."""
        data, config = self.data, self.config
        shape_yx = data.crop_px
        rngs = [np.random.default_rng([config.seed, epoch or 0, int(i)]) for i in rows]
        ways = [0] * len(rows)
        if epoch is not None and config.flips:
            ways = [choose_way(rng, shape_yx) for rng in rngs]
        arrays = {}
        for name, x in data.x.items():
            turned = [turn(x[i], way, (1, 2)) for i, way in zip(rows, ways, strict=True)]
            # [B, T, H, W, C] to [B, H, W, T, C]
            arrays[name] = torch.from_numpy(np.stack(turned)).movedim(1, 3).contiguous()
        labels = data.labels[rows]
        if data.task.dense:
            pairs = zip(labels, ways, strict=True)
            labels = np.stack([turn(y, way, (0, 1)) for y, way in pairs])
        hides = epoch is not None and (config.drop_timesteps > 0 or config.drop_bands > 0)
        inputs = self.prepare(arrays, torch.from_numpy(data.timestamps[rows]), hides)
        if hides:
            inputs = hide(inputs, rngs, timesteps=config.drop_timesteps, bands=config.drop_bands)
        return Batch(
            inputs=inputs, labels=torch.from_numpy(np.ascontiguousarray(labels)), rows=rows
        )
