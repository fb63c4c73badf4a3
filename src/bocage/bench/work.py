"""How much arithmetic an encoder does: attention counted, multiply-adds told from operations.

Axes: N tokens, D width, L blocks, R location queries of v1.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from bocage.errors import ConfigError
from bocage.models.config import ModelConfig

_SHORT = {"sentinel2_l2a": "S2", "sentinel1": "S1", "landsat": "L8"}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One input of an encoder, without its batch."""

    sensors: tuple[str, ...] = ("sentinel2_l2a",)
    size_px: int = 128
    times: int = 1
    patch_size: int = 8

    def __post_init__(self) -> None:
        whole_patches = self.patch_size > 0 and self.size_px % self.patch_size == 0
        if not (whole_patches and self.size_px > 0 and self.times > 0):
            raise ConfigError(
                got=f"size {self.size_px} px, {self.times} dates, patch size {self.patch_size}",
                expected="numbers above 0, and whole patches in a window",
                fix="use --size 128 --times 1 --patch-size 8",
            )
        if unknown := [name for name in self.sensors if name not in _SHORT]:
            raise ConfigError(
                got=f"sensor {unknown[0]}",
                expected=f"sensors among {', '.join(_SHORT)}",
                fix="check --sensors",
            )

    def __str__(self) -> str:
        sensors = "+".join(_SHORT[name] for name in self.sensors)
        return f"{sensors} {self.size_px}px T={self.times} p={self.patch_size}"

    def n_tokens(self, config: ModelConfig) -> int:
        """Tokens of one sample."""
        cells = (self.size_px // self.patch_size) ** 2
        return cells * self.times * sum(len(config.band_sets[name]) for name in self.sensors)

    def area_km2(self, gsd_m: float) -> float:
        """Ground of one sample, no overlap counted."""
        return (self.size_px * gsd_m / 1000) ** 2


def multiply_adds(config: ModelConfig, shape: Shape) -> int:
    """Multiply-adds of one sample; operations (FLOP) are twice that.

    Linear maps, patch projections and both products of attention count; norms, activations,
    rotations and the resize do not (under 2 %).
    """
    n, width, depth = shape.n_tokens(config), config.width, config.depth
    cells = (shape.size_px // shape.patch_size) ** 2
    pixels = config.base_patch_size**2
    patches = 0
    for name in shape.sensors:
        for bands in config.band_sets[name]:
            per_pixel, channels = 0, len(bands)
            for hidden in config.pixel_hidden or ():
                per_pixel, channels = per_pixel + channels * hidden, hidden
            patches += cells * shape.times * pixels * (per_pixel + channels * width)
    mlp = 2 * config.mlp_ratio
    blocks = depth * (n * int((4 + mlp) * width**2) + 2 * n**2 * width)
    return patches + blocks + _pooler(config, n, cells)


def _pooler(config: ModelConfig, n: int, n_queries: int) -> int:
    """One query per patch; the read's keys and values are of all tokens."""
    pooler = config.pooler
    if pooler is None:
        return 0
    width = pooler.width
    mlp = int(2 * config.mlp_ratio * width**2)
    read = 2 * n * width**2 + n_queries * (2 * width**2 + mlp) + 2 * n * n_queries * width
    look = n_queries * (4 * width**2 + mlp) + 2 * n_queries**2 * width
    student = n_queries * width * max(pooler.student_dims, default=0)
    return pooler.depth * (read + look) + student
