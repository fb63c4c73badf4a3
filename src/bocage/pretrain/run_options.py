"""What a run may change without changing its curve, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bocage.errors import ConfigError
from bocage.pretrain.energy import DEFAULT_GRID_G_PER_KWH, Energy
from bocage.pretrain.evaluation import EvaluationSet


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run may change without changing its curve."""

    device: str = "cpu"
    strategy: str = "auto"
    """auto, ddp or fsdp2; see distributed.py."""

    workers: int = 1
    """Loader workers that prepare batches ahead."""

    checkpoint_minutes: float = 10.0
    checkpoint_steps: int | None = None
    """A checkpoint every so many steps too."""

    keep: int = 2
    """Newest checkpoints that stay."""

    evaluation_sets: tuple[EvaluationSet, ...] = ()
    evaluate_steps: int = 1000
    """Steps between in-loop scores."""

    evaluation_patch_size: int = 4
    stop_after: int | None = None
    """Save and stop after this step; the schedule still ends at the recipe's last step."""

    max_minutes: float | None = None
    """Save and stop after this time."""

    power_w: float | None = None
    """Power of one process's device, where you know it better than the counters."""

    grid_g_per_kwh: float = DEFAULT_GRID_G_PER_KWH
    """Carbon intensity of the electricity."""

    progress: bool = True

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(
                got=f"workers={self.workers}", expected="a number from 0", fix="correct --workers"
            )
        if self.keep < 1 or self.evaluate_steps < 1 or self.checkpoint_minutes <= 0:
            raise ConfigError(
                got=f"keep={self.keep}, evaluate_steps={self.evaluate_steps}, "
                f"checkpoint_minutes={self.checkpoint_minutes}",
                expected="positive numbers",
                fix="correct the option",
            )


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """How a run ended."""

    run: Path
    step: int
    finished: bool
    """False if it was stopped before the recipe's last step; run the same call to go on."""

    loss: float
    """Mean of the last 50 steps, read from the log if the run had ended; NaN if there is none."""

    steps_per_s: float
    loading_share: float
    """Share of the step time that was spent waiting for data."""

    energy: Energy
    scores: dict[str, float]
    """Last in-loop scores, as set/probe."""

    n_bad_samples: int
    """Damaged samples that were left out (since the last start, in this process)."""

    writes: bool
    """True in the one process that reports."""
