"""How large the crops of a step are: patch size, side, timesteps, within a token budget.

All samples of a step share these. Two rules exist:

* v1 to v1.2: patch size and side uniform; as many timesteps as the budget allows. The budget counts
  with the three and two band sets of v1 in every release, because the official scripts never told
  the loader otherwise, and counts maps as well (specification 8.2).
* v1.3: only shapes that cost at least ``min_tokens``; half of the time the timesteps are drawn
  first and then a side that fits, half the other way round; timesteps are drawn with weight
  ``t ** time_bias``. Maps do not count (specification 8.6).

Source: OlmoEarth pretraining scripts v1, v1_1, v1_2 and v1_3 (public repository), own words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bocage.errors import ConfigError
from bocage.pretrain.modalities import BandSetsName, modality
from bocage.pretrain.sample import MAX_STEPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bocage.types import ValidArray

_LARGE_SIDES = (*range(1, 17), 18, 20, 24, 28, 32)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which crops are drawn; the presets are ``for_release``."""

    band_sets: BandSetsName = "single"
    """Band sets of the model: how many tokens the batch has per cell and timestep."""

    counted_band_sets: BandSetsName = "v1"
    """Band sets the budget counts with; "single" is the correct count for v1.1 and later."""

    token_budget: int = 2250
    """Most tokens of one sample."""

    min_tokens: int = 0
    """Fewest tokens of one sample; 0 allows a single token."""

    count_maps: bool = True
    """Maps use up the budget, as in v1 to v1.2."""

    patch_sizes: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Pixels per patch side, drawn uniformly."""

    sides: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    """Patches per side of a crop, drawn uniformly among those that fit."""

    max_steps: int = MAX_STEPS
    """Most timesteps of a crop."""

    draw_steps: bool = False
    """Draw the number of timesteps (v1.3) instead of taking as many as fit."""

    time_bias: float = 0.0
    """With draw_steps: t timesteps are drawn with weight t ** time_bias."""

    time_priority: float = 0.0
    """With draw_steps: how often timesteps are drawn before the side."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(self.token_budget >= 1, f"token_budget={self.token_budget}", "at least 1")
        _check(
            0 <= self.min_tokens <= self.token_budget,
            f"min_tokens={self.min_tokens} with token_budget={self.token_budget}",
            "0 to the token budget",
        )
        _check(
            bool(self.patch_sizes) and all(1 <= p <= 8 for p in self.patch_sizes),
            f"patch_sizes={self.patch_sizes}",
            "pixels from 1 to 8",
        )
        _check(
            bool(self.sides) and all(side >= 1 for side in self.sides),
            f"sides={self.sides}",
            "patches per side, 1 or more",
        )
        _check(1 <= self.max_steps <= MAX_STEPS, f"max_steps={self.max_steps}", f"1 to {MAX_STEPS}")
        _check(self.time_bias >= 0, f"time_bias={self.time_bias}", "0 or more")
        _check(
            0 <= self.time_priority <= 1, f"time_priority={self.time_priority}", "a share 0 to 1"
        )

    @classmethod
    def for_release(cls, release: str, *, correct_count: bool = False) -> SamplingConfig:
        """The official rule of v1, v1.1, v1.2 or v1.3.

        ``correct_count`` counts v1.1 and v1.2 with their own single band sets.
        """
        if release == "v1":
            return cls(band_sets="v1", counted_band_sets="v1")
        if release in {"v1.1", "v1.2"}:
            return cls(counted_band_sets="single" if correct_count else "v1")
        if release == "v1.3":
            return cls(
                counted_band_sets="single",
                token_budget=3072,
                min_tokens=228,
                count_maps=False,
                sides=_LARGE_SIDES,
                draw_steps=True,
                time_bias=2.75,
                time_priority=0.5,
            )
        raise ConfigError(
            got=f"release {release!r}", expected="v1, v1.1, v1.2 or v1.3", fix="pass one of them"
        )


@dataclass(frozen=True, kw_only=True)
class CropShape:
    """What all samples of a step have in common."""

    patch_size: int
    """Pixels per patch side."""

    side: int
    """Patches per side."""

    n_steps: int
    """Timesteps, unless the samples have fewer."""

    @property
    def side_px(self) -> int:
        """Pixels per side."""
        return self.patch_size * self.side


def token_rates(config: SamplingConfig, modalities: Sequence[str]) -> tuple[int, int]:
    """Tokens per cell and timestep, and tokens per cell that do not depend on time."""
    sets = {name: len(modality(name).band_sets(config.counted_band_sets)) for name in modalities}
    per_step = sum(n for name, n in sets.items() if not modality(name).is_map)
    static = sum(n for name, n in sets.items() if modality(name).is_map)
    return per_step, static if config.count_maps else 0


def step_range(
    config: SamplingConfig, modalities: Sequence[str], side: int, max_steps: int
) -> tuple[int, int]:
    """Fewest and most timesteps of a crop of so many patches per side; (1, 0) if none fits."""
    per_step, static = token_rates(config, modalities)
    cells = side * side
    most = min(max_steps, (config.token_budget - static * cells) // (per_step * cells))
    fewest = max(1, -(-(config.min_tokens - static * cells) // (per_step * cells)))
    return (fewest, most) if fewest <= most else (1, 0)


def draw_shape(
    config: SamplingConfig,
    modalities: Sequence[str],
    *,
    size_px: int,
    max_steps: int,
    rng: np.random.Generator,
) -> CropShape:
    """Patch size, side and timesteps of one step; ConfigError if no shape fits the budget."""
    max_steps = min(max_steps, config.max_steps)
    patch_size = int(rng.choice(config.patch_sizes))
    ranges = {
        side: step_range(config, modalities, side, max_steps)
        for side in config.sides
        if side * patch_size <= size_px
    }
    ranges = {side: (low, high) for side, (low, high) in ranges.items() if low <= high}
    if not ranges:
        raise ConfigError(
            got=f"no crop of {config.min_tokens} to {config.token_budget} tokens with patches of "
            f"{patch_size} pixels in samples of {size_px} pixels and {max_steps} timesteps of "
            f"{', '.join(modalities)}",
            expected="at least one number of patches per side that fits",
            fix="lower min_tokens, raise token_budget, or change sides and patch_sizes",
        )
    sides = list(ranges)
    if not config.draw_steps:
        side = int(rng.choice(sides))
        return CropShape(patch_size=patch_size, side=side, n_steps=ranges[side][1])
    if rng.random() < config.time_priority:
        n_steps = _draw_steps_first(ranges, config.time_bias, rng)
        side = int(rng.choice([s for s in sides if ranges[s][0] <= n_steps <= ranges[s][1]]))
    else:
        side = int(rng.choice(sides))
        n_steps = _biased(range(ranges[side][0], ranges[side][1] + 1), config.time_bias, rng)
    return CropShape(patch_size=patch_size, side=side, n_steps=n_steps)


def draw_start(present: Mapping[str, ValidArray], n_steps: int, rng: np.random.Generator) -> int:
    """First timestep of a crop: uniform among those that leave room and where a sensor has data.

    ``present`` is bool [T] per sensor. A sample with no more than n_steps begins at 0. If data lie
    only where no room is left, the last window that has room is taken.
    """
    total = max(len(steps) for steps in present.values())
    if total <= n_steps:
        return 0
    last = total - n_steps
    starts = np.flatnonzero(np.any(list(present.values()), axis=0)[: last + 1])
    return int(rng.choice(starts)) if len(starts) else last


def _draw_steps_first(
    ranges: Mapping[int, tuple[int, int]], bias: float, rng: np.random.Generator
) -> int:
    """A number of timesteps that some side allows.

    The biased draw is over the whole span; one that falls in a gap that no side covers is drawn
    again without bias, as the official sampler does.
    """
    low = min(fewest for fewest, _ in ranges.values())
    high = max(most for _, most in ranges.values())
    possible = [t for t in range(low, high + 1) if any(a <= t <= b for a, b in ranges.values())]
    n_steps = _biased(range(low, high + 1), bias, rng)
    return n_steps if n_steps in possible else int(rng.choice(possible))


def _biased(steps: range, bias: float, rng: np.random.Generator) -> int:
    weights = np.asarray(steps, np.float64) ** bias
    return int(rng.choice(steps, p=weights / weights.sum()))


def _check(good: bool, got: str, expected: str) -> None:
    if not good:
        raise ConfigError(got=got, expected=expected, fix="change that option of the recipe")
