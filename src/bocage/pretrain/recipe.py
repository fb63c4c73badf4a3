"""How each release was trained: v1, v1.1, v1.2 and v1.3 in one place, any option open to change.

The numbers are those of the official training scripts (learning rates, decay, micro-batches and
steps per size; token budgets; masking; losses). Where a size was never released, the nearest
published row is used and marked. One thing differs on purpose: all processes draw the same patch
size and crop in a step, so that a run does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bocage.errors import ConfigError
from bocage.models.config import ModelConfig
from bocage.models.releases import SIZES
from bocage.pretrain.architecture import model_config
from bocage.pretrain.masking import MaskingConfig
from bocage.pretrain.objective import ObjectiveConfig
from bocage.pretrain.optimizer import OptimizerConfig
from bocage.pretrain.sampling import SamplingConfig

OFFICIAL_STEPS = 667_200
"""300 epochs of 1,138,828 samples in batches of 512."""

OFFICIAL_BATCH = 512
OFFICIAL_WARMUP = 8000
RELEASES = ("v1", "v1.1", "v1.2", "v1.3")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What differs between sizes."""

    learning_rate: float
    weight_decay: float
    micro_batch_size: int
    official: bool = True
    """False where no such size was released and the row is a choice."""


PUBLISHED: dict[str, dict[str, Published]] = {
    "v1": {
        "nano": Published(learning_rate=1e-3, weight_decay=0.002, micro_batch_size=32),
        "tiny": Published(learning_rate=2e-4, weight_decay=0.02, micro_batch_size=32),
        "small": Published(
            learning_rate=2e-4, weight_decay=0.02, micro_batch_size=32, official=False
        ),
        "base": Published(learning_rate=1e-4, weight_decay=0.02, micro_batch_size=32),
        "large": Published(learning_rate=1e-4, weight_decay=0.002, micro_batch_size=32),
    },
    "v1.1": {
        "nano": Published(learning_rate=2e-4, weight_decay=0.02, micro_batch_size=64),
        "tiny": Published(learning_rate=2e-4, weight_decay=0.002, micro_batch_size=64),
        "small": Published(
            learning_rate=2e-4, weight_decay=0.02, micro_batch_size=64, official=False
        ),
        "base": Published(learning_rate=1e-4, weight_decay=0.02, micro_batch_size=64),
        "large": Published(learning_rate=1e-4, weight_decay=0.02, micro_batch_size=64),
    },
    "v1.2": {
        "nano": Published(learning_rate=2e-4, weight_decay=0.02, micro_batch_size=64),
        "tiny": Published(learning_rate=2e-4, weight_decay=0.002, micro_batch_size=64),
        "small": Published(learning_rate=2e-4, weight_decay=0.02, micro_batch_size=64),
        "base": Published(learning_rate=1e-4, weight_decay=0.02, micro_batch_size=64),
        "large": Published(learning_rate=1e-4, weight_decay=0.02, micro_batch_size=64),
    },
    "v1.3": {
        size: Published(
            learning_rate=1e-4, weight_decay=0.02, micro_batch_size=64, official=size == "base"
        )
        for size in SIZES
    },
}
"""Optimizer and micro-batch of each release and size."""

SAMPLING: dict[str, SamplingConfig] = {
    release: SamplingConfig.for_release(release) for release in RELEASES
}
"""Patch sizes, crops and timesteps of each release."""

_AFTER_V1 = ObjectiveConfig(
    masking=MaskingConfig(
        strategy="random_time_with_decode", encode_ratio=0.5, decode_ratio=0.5, random_ratio=0.5
    ),
    n_views=2,
    same_target=0.999,
    contrastive_weight=0.05,
    band_dropout=0.2,
)
OBJECTIVE: dict[str, ObjectiveConfig] = {
    "v1": ObjectiveConfig(
        masking=MaskingConfig(
            strategy="modality_cross_random",
            encode_ratio=0.5,
            decode_ratio=0.5,
            min_encoded_band_sets=2,
        ),
        n_views=2,
        same_target=None,
        contrastive_weight=0.1,
        band_dropout=0.0,
    ),
    "v1.1": _AFTER_V1,
    "v1.2": _AFTER_V1,
    "v1.3": replace(
        _AFTER_V1,
        n_views=1,
        contrastive_weight=0.0,
        supervision_weight=1.0,
        student_weight=1.0,
        max_location_queries=512,
    ),
}
"""Masking, views and losses of each release."""

FLIPS: dict[str, bool] = {"v1": True, "v1.1": False, "v1.2": False, "v1.3": False}
"""Flips and rotations. The files of v1.1 and v1.2 ask for them, the code that trained v1.2 never
called them; only v1 had them, one for each view (here one for both views of a sample)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the curve of a run."""

    release: str
    size: str
    model: ModelConfig
    sampling: SamplingConfig
    """Patch sizes, crops and timesteps of a batch."""

    objective: ObjectiveConfig
    """Masking, views and losses."""

    optimizer: OptimizerConfig
    steps: int = OFFICIAL_STEPS
    """Updates in all; the cosine ends here."""

    batch_size: int = OFFICIAL_BATCH
    """Samples per update, over all processes."""

    micro_batch_size: int = 64
    """Samples per forward: what the contrastive loss compares, and what memory must hold."""

    precision: str = "bf16"
    """bf16 (autocast; weights, losses and updates stay fp32) or fp32."""

    seed: int = 12536
    """Of weights, masks and everything that is dropped."""

    data_seed: int = 3622
    """Of the order of samples and of crops."""

    flips: bool = False
    """Turn and mirror each sample at random, all its layers alike."""

    whiten: bool = False
    """Start from weights that see the data's bands decorrelated; see whitening.py. No release did
    so; a run of hours on little imagery gains from it."""

    max_bad_share: float = 0.01
    """Share of damaged samples above which a run stops; fewer are left out and counted."""

    changed: Mapping[str, Any] = field(default_factory=dict)
    """Options of the architecture that differ from the release."""

    def __post_init__(self) -> None:
        for name in ("seed", "data_seed"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    got=f"{name}={getattr(self, name)}",
                    expected="a whole number from 0",
                    fix=f"correct --{name.replace('_', '-')}",
                )
        for name in ("steps", "batch_size", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    got=f"{name}={getattr(self, name)}",
                    expected="1 or more",
                    fix=f"correct --{name.replace('_', '-')}",
                )
        if self.precision not in ("bf16", "fp32"):
            raise ConfigError(
                got=f"precision {self.precision!r}",
                expected="bf16 or fp32",
                fix="correct --precision",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values for run.json; equal recipes give equal values."""
        plain = _plain(asdict(self))
        assert isinstance(plain, dict)
        return plain


def make_recipe(
    release: str = "v1.2",
    size: str = "nano",
    *,
    steps: int = OFFICIAL_STEPS,
    batch_size: int = OFFICIAL_BATCH,
    micro_batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    warmup_steps: int | None = None,
    precision: str = "bf16",
    seed: int = 12536,
    data_seed: int = 3622,
    flips: bool | None = None,
    whiten: bool = False,
    max_bad_share: float = 0.01,
    sampling: SamplingConfig | None = None,
    objective: ObjectiveConfig | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a release at a size, with any part replaced.

    A run shorter than the official one warms up over a tenth of its steps, at most 8,000.
    ``architecture`` holds options of ``model_config``.
    """
    if release not in RELEASES or size not in SIZES:
        raise ConfigError(
            got=f"release {release!r} of size {size!r}",
            expected=f"one of {', '.join(RELEASES)} and one of {', '.join(SIZES)}",
            fix="correct --release or --size",
        )
    row = PUBLISHED[release][size]
    architecture = dict(architecture or {})
    if warmup_steps is None:
        warmup_steps = OFFICIAL_WARMUP if steps == OFFICIAL_STEPS else min(8000, steps // 10)
    return Recipe(
        release=release,
        size=size,
        model=model_config(size, release, **architecture),
        sampling=sampling or SAMPLING[release],
        objective=objective or OBJECTIVE[release],
        optimizer=OptimizerConfig(
            learning_rate=row.learning_rate if learning_rate is None else learning_rate,
            weight_decay=row.weight_decay if weight_decay is None else weight_decay,
            warmup_steps=warmup_steps,
        ),
        steps=steps,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size or min(row.micro_batch_size, batch_size),
        precision=precision,
        seed=seed,
        data_seed=data_seed,
        flips=FLIPS[release] if flips is None else flips,
        whiten=whiten,
        max_bad_share=max_bad_share,
        changed=architecture,
    )


def _plain(value: Any) -> Any:
    """Tuples to lists, keys to text, as JSON would give them back."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
