"""What can be chosen about fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from bocage.errors import ConfigError

RECIPES = ("frozen-start", "layer-decay", "plain")
SCHEDULES = ("auto", "plateau", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Options of ``finetune``; docs/defaults.md says where the numbers come from."""

    recipe: str = "frozen-start"
    """frozen-start: the backbone rests for a fifth of the epochs, then all rates fall to a tenth.
    layer-decay: everything learns at once, deeper layers slower. plain: everything at one rate."""

    epochs: int = 50
    batch_size: int = 16
    """Crops per process and forward."""

    accumulate: int = 1
    """Forwards per step: the step sees batch_size x accumulate x processes crops."""

    lr: float | None = None
    """Learning rate of the head; None is 1e-4 for layer-decay, otherwise 5e-4."""

    weight_decay: float = 0.01
    schedule: str = "auto"
    """plateau (a fifth of the rate after 2 epochs without progress), cosine with warm-up,
    constant; auto is plateau for frozen-start, cosine otherwise."""

    warmup_share: float = 0.1
    """Cosine: share of the steps in which the rate rises."""

    min_rate: float = 0.01
    """Cosine: the rate at the end, as a share of lr."""

    frozen_share: float = 0.2
    """frozen-start: share of the epochs before the backbone learns, rounded up."""

    unfrozen_rate: float = 0.1
    """frozen-start: what all rates are multiplied by when the backbone begins to learn."""

    layer_decay: float = 0.65
    """layer-decay: rate of each layer relative to the next one."""

    class_weights: str | tuple[float, ...] = "none"
    """none, balanced (each class counts the same), or one weight per class."""

    patch_size: int = 4
    features: str = "auto"
    """pooled tokens, or location tokens (v1.3; down to one pixel)."""

    head: str = "linear"
    """linear, or unet for labels per pixel."""

    normalization: str = "pretraining"
    """pretraining or dataset statistics."""

    flips: bool = True
    """Turn and mirror crops, with their labels, in training."""

    drop_timesteps: float = 0.0
    """Chance to hide each date of a crop in training; one always stays."""

    drop_bands: float = 0.0
    """Chance to hide each band of a crop in training; one of each sensor always stays."""

    drop_path: float = 0.1
    """Share of residual branches of our encoders skipped in training, as in pretraining."""

    precision: str = "auto"
    """fp32, or bf16 autocast; auto is bf16 on CUDA, otherwise fp32."""

    metric: str = "auto"
    """Score of the best epoch; auto is accuracy, f1_micro, miou or r2, by the task."""

    seed: int = 42
    checkpoint_steps: int | None = None
    """Also keep the state every so many steps; always at the end of an epoch."""

    def __post_init__(self) -> None:  # noqa: PLR0912 - one check per option
        choices = {
            "recipe": RECIPES,
            "schedule": SCHEDULES,
            "normalization": ("pretraining", "dataset"),
            "precision": ("auto", "fp32", "bf16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise _refused(name, getattr(self, name), f"one of {', '.join(allowed)}")
        for name in ("epochs", "batch_size", "accumulate", "patch_size", "checkpoint_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise _refused(name, getattr(self, name), "a number from 1")
        if self.seed < 0:
            raise _refused("seed", self.seed, "a whole number from 0")
        if self.patch_size > 8:
            raise _refused("patch_size", self.patch_size, "1 to 8")
        for name in ("drop_timesteps", "drop_bands", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise _refused(name, getattr(self, name), "a chance from 0, below 1")
        for name in ("frozen_share", "warmup_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise _refused(name, getattr(self, name), "a share from 0 to 1")
        for name in ("layer_decay", "unfrozen_rate", "min_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise _refused(name, getattr(self, name), "above 0, at most 1")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise _refused("lr", self.lr, "a rate above 0")
        if isinstance(self.class_weights, str):
            if self.class_weights not in {"none", "balanced"}:
                raise _refused("class_weights", self.class_weights, "none, balanced, or numbers")
        elif not all(w >= 0 for w in self.class_weights) or not any(self.class_weights):
            raise _refused("class_weights", self.class_weights, "weights from 0, some above")

    @property
    def resolved_lr(self) -> float:
        """The learning rate of the head."""
        if self.lr is not None:
            return self.lr
        return 1e-4 if self.recipe == "layer-decay" else 5e-4

    @property
    def resolved_schedule(self) -> str:
        """plateau, cosine or constant."""
        if self.schedule != "auto":
            return self.schedule
        return "plateau" if self.recipe == "frozen-start" else "cosine"


def _refused(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(
        got=f"{name}={value!r}", expected=expected, fix=f"correct --{name.replace('_', '-')}"
    )
