"""How imagery is cut into samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bocage.errors import ConfigError
from bocage.pretrain.modalities import modality
from bocage.pretrain.sample import MAX_STEPS
from bocage.sensors import MAPS

if TYPE_CHECKING:
    from bocage.types import PathLike


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How sources are cut into samples."""

    size_px: int = 128
    """Side of a sample; 128 as in the official data set."""

    stride_px: int | None = None
    """Distance of windows; None spreads as many as fit about once, edge to edge."""

    min_valid_share: float = 0.9
    """Share of pixels that a timestep of a sensor must have, or it counts as missing."""

    max_steps: int = MAX_STEPS
    """Timesteps of a sample; longer series are cut into several samples."""

    fill_bands: bool = False
    """Copy bands that a source lacks from the nearest wavelength; otherwise such a sensor is left
    out, because a token with a missing band counts as missing."""

    each: bool = False
    """Every raster file in a folder is a source of its own; otherwise the folder is one."""

    composite: str | None = None
    """"month" or "30d": one median image per period, as the models were trained on; None keeps
    every date."""

    maps: Mapping[str, PathLike] = field(default_factory=dict)
    """Modality to a raster of it (worldcover, srtm, ...), laid on each window by nearest
    neighbour; pixels without a value are missing."""

    open_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of open_stack for paths: sensor, bands, date, offset, ..."""

    def __post_init__(self) -> None:
        """Check ranges."""
        bad = (
            (self.size_px < 8, f"size_px={self.size_px} (--size)", "8 pixels or more"),
            (
                self.stride_px is not None and self.stride_px < 1,
                f"stride_px={self.stride_px} (--stride)",
                "1 pixel or more",
            ),
            (
                not 0 < self.min_valid_share <= 1,
                f"min_valid_share={self.min_valid_share} (--min-valid)",
                "a share above 0, up to 1",
            ),
            (
                not 1 <= self.max_steps <= MAX_STEPS,
                f"max_steps={self.max_steps} (--max-steps)",
                f"1 to {MAX_STEPS}",
            ),
        )
        for name in self.maps:
            if not modality(name).is_map:
                raise ConfigError(
                    got=f"map {name}",
                    expected="one of " + ", ".join(MAPS),
                    fix="give imagery as a source",
                )
        for wrong, got, expected in bad:
            if wrong:
                raise ConfigError(got=got, expected=expected, fix="change that option")
