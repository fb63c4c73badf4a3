"""The published models: names, Hugging Face ids, sizes.

Widths, depths and heads are those of the official configurations; the counts of tensors that they
give are held by tests. Official weights are under the OlmoEarth Artifact License.
"""

from __future__ import annotations

from dataclasses import dataclass

from bocage.models.bundled import BUNDLED
from bocage.models.config import (
    DecoderConfig,
    ModelConfig,
    PoolerConfig,
    PositionConfig,
    default_band_sets,
)
from bocage.sensors import MAPS, SENSORS

SIZES: dict[str, tuple[int, int, int]] = {
    "nano": (128, 4, 8),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
"""Width, depth, heads of each size."""

_PUBLISHED = {
    "v1": ("nano", "tiny", "base", "large"),
    "v1.1": ("nano", "tiny", "base"),
    "v1.2": ("nano", "tiny", "small", "base"),
    "v1.3": ("base",),
}


@dataclass(frozen=True, kw_only=True)
class Release:
    """One published model."""

    version: str
    """v1, v1.1, v1.2 or v1.3."""

    size: str
    """nano, tiny, small, base or large."""

    @property
    def name(self) -> str:
        """Name used here, for example olmoearth-v1.2-tiny."""
        return f"olmoearth-{self.version}-{self.size}"

    @property
    def hub_id(self) -> str:
        """Repository on Hugging Face, for example allenai/OlmoEarth-v1_2-Tiny."""
        return f"allenai/OlmoEarth-{self.version.replace('.', '_')}-{self.size.capitalize()}"

    @property
    def config(self) -> ModelConfig:
        """The network of this release."""
        return release_config(self.version, self.size)


RELEASES: dict[str, Release] = {
    release.name: release
    for version, sizes in _PUBLISHED.items()
    for release in (Release(version=version, size=size) for size in sizes)
}
"""All published models by name."""


def list_models() -> list[str]:
    """Names that load: the published OlmoEarth models, oldest release first, then our small one."""
    return [*RELEASES, *BUNDLED]


def find_release(name: str) -> Release | None:
    """The release called ``name`` here or on Hugging Face (any case), or None."""
    wanted = name.strip().lower()
    for release in RELEASES.values():
        hub_id = release.hub_id.lower()
        if wanted in (release.name, hub_id, hub_id.removeprefix("allenai/")):
            return release
    return None


def release_config(version: str, size: str) -> ModelConfig:
    """The network of a version at any size, published or not (tests use v1.3 at nano width)."""
    width, depth, heads = SIZES[size]
    rope = PositionConfig(
        encoding="rope_3d_mixed", mixed_base=10000.0, temporal_coordinate_scale=1 / 30
    )
    pooled = version == "v1.3"
    positions = rope if version in ("v1.2", "v1.3") else PositionConfig()
    return ModelConfig(
        modalities=(*SENSORS, *MAPS),
        inputs=tuple(SENSORS),
        band_sets=default_band_sets(split=version == "v1"),
        width=width,
        depth=depth,
        heads=heads,
        pixel_hidden=None if version == "v1" else (12,) if size == "nano" else (64,),
        positions=positions,
        pooler=PoolerConfig(
            width=width,
            heads=heads,
            attention_width=width,
            per_depth_read=True,
            student_dims=(128, 64),
            student_norm=True,
        )
        if pooled
        else None,
        decoder=DecoderConfig(
            width=width,
            depth=4,
            heads=heads,
            positions=PositionConfig(encoding="rope") if pooled else positions,
            reads_locations=pooled,
        ),
        projection_only_target=pooled,
    )
