"""What a pretraining step asks and what is random in it, as one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field

from bocage.errors import ConfigError
from bocage.pretrain.masking import MaskingConfig
from bocage.sensors import SENSORS


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is predicted, how it is compared, and what is random in a step."""

    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """How tokens are split."""

    n_views: int = 2
    """Masked views of each sample: 2 (v1 to v1.2), or 1."""

    temperature: float = 0.1
    """Of the patch discrimination."""

    same_target: float | None = 0.999
    """Maps only: decoded tokens whose targets are more alike than this are no negatives of each
    other; None keeps all (v1)."""

    contrastive_weight: float = 0.05
    """Of the InfoNCE loss between pooled views: 0.1 (v1), 0.05 (v1.1, v1.2), 0 (v1.3)."""

    contrastive_temperature: float = 0.1
    """Of the InfoNCE loss."""

    band_dropout: float = 0.2
    """Largest share of bands hidden from the encoder, drawn anew for each step, view and band set;
    0 switches it off (v1)."""

    band_dropout_modalities: tuple[str, ...] = ("sentinel2_l2a", "landsat")
    """Whose bands are hidden."""

    supervision_weight: float = 0.0
    """Of the map supervision on location tokens; each map has its own factor besides (v1.3: 1)."""

    student_weight: float = 0.0
    """Of the distillation of each prefix of the small readout (v1.3: 1)."""

    max_location_queries: int = 512
    """Location queries per sample are made finer than the patches at random, up to this many
    (v1.3)."""

    def __post_init__(self) -> None:
        if self.n_views not in (1, 2):
            raise _error("n_views", self.n_views, "1 or 2")
        if self.contrastive_weight and self.n_views != 2:
            raise _error(
                "contrastive_weight", self.contrastive_weight, "0 with one view: two are compared"
            )
        if not 0 <= self.band_dropout < 1:
            raise _error("band_dropout", self.band_dropout, "a share from 0 to below 1")
        for name in ("temperature", "contrastive_temperature"):
            if not getattr(self, name) > 0:
                raise _error(name, getattr(self, name), "a number above 0")
        for name in ("contrastive_weight", "supervision_weight", "student_weight"):
            if not getattr(self, name) >= 0:
                raise _error(name, getattr(self, name), "0 or more")
        if self.same_target is not None and not 0 < self.same_target < 1:
            raise _error("same_target", self.same_target, "a cosine between 0 and 1, or None")
        if self.max_location_queries < 1:
            raise _error("max_location_queries", self.max_location_queries, "1 or more")
        for name in self.band_dropout_modalities:
            if name not in SENSORS:
                raise _error("band_dropout_modalities", name, f"some of {', '.join(SENSORS)}")


def _error(name: str, got: object, expected: str) -> ConfigError:
    return ConfigError(
        got=f"{name} {got!r}", expected=expected, fix=f"correct {name} of the objective"
    )
