"""What can be chosen about an embedding run; every default is measured in docs/defaults.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bocage.errors import ConfigError
from bocage.types import ShapeYX

MAX_WINDOW_PATCHES = 20
"""Window side with one sensor and date; bigger is further from what the models were trained on."""

MIN_WINDOW_PATCHES = 8
TOKENS_PER_WINDOW = 3072
"""With many dates and sensors windows shrink to this, the token budget that v1.3 was trained with;
attention over more costs much and was never learned."""

DEFAULT_BLOCK_PX = 1024

BLOCK_GROWTH = 10
"""A block may be larger by one part in so many, where that saves blocks."""

SEAM_FREE_HALO = 0.25
"""Share of a model's reach that domains of seam-free inference overlap by at least; what an output
really uses ends well before its formal reach (docs/defaults.md)."""

SEAM_FREE_NEIGHBORHOOD_PATCHES = 16
"""Side of a token's own window when none is given; the models' default too."""

SEAM_FREE_BLOCK_PATCHES = 256
"""Side of a seam-free block of one date; with n tokens per cell it is this over sqrt(n)."""

MIN_SEAM_FREE_BLOCK_PATCHES = 96
"""Smaller blocks would mostly repeat their halo."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Options of `embed`; lengths are input pixels of the 10 m grid."""

    patch_size: int = 4
    """Side of a patch, 1 to 8. Smaller is finer and costs about 1/patch_size**2 tokens."""

    window_px: int | None = None
    """Side of what the model sees at once; None is 20 patches, fewer with many dates or sensors."""

    halo_px: int | None = None
    """Margin on each side over which a window fades into its neighbours; None is a
    fifth of the window."""

    block_px: int | None = None
    """Side of the unit of writing and resume (one shard), rounded to whole window cores; None is
    1024, or up to a tenth more where that saves blocks; for seam-free maps 256 patches, fewer with
    many dates or sensors (96 at least)."""

    batch_size: int | None = None
    """Windows per forward; None derives it from the number of tokens."""

    output: Literal["auto", "pooled", "student", "locations"] = "auto"
    """Which vectors: "auto" is the 128-d student for v1.3 and the pooled tokens before."""

    query_px: int | None = None
    """v1.3 only: side of an output cell (the location query patch size); None is the patch size."""

    seam_free: bool = False
    """Every token attends within a window of its own over one large domain per block, instead of
    sharing windows with others; v1.2 and v1.3 only. window_px is then the token's window, and
    None for halo_px that or a quarter of how far the model can look, whichever is more."""

    codec: Literal["signed_power", "float32"] = "signed_power"
    """How vectors are stored; signed_power is the int8 rule of the public archives."""

    period: Literal["all", "year"] = "all"
    """Which dates make one embedding: all together, or one embedding per calendar year."""

    def __post_init__(self) -> None:
        if not 1 <= self.patch_size <= 8:
            raise ConfigError(
                got=f"patch_size={self.patch_size}",
                expected="a patch size from 1 to 8",
                fix="use --patch-size 4, the models' evaluation default",
            )
        for name in ("window_px", "block_px", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    got=f"{name}={value}",
                    expected="a number above 0",
                    fix=f"leave out --{name.removesuffix('_px').replace('_', '-')} for the default",
                )
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(
                    got=f"{name}={value!r}",
                    expected=f"one of {', '.join(allowed)}",
                    fix=f"use --{name} {allowed[0]}",
                )
        if self.query_px is not None and (self.query_px < 1 or self.patch_size % self.query_px):
            raise ConfigError(
                got=f"query_px={self.query_px} with patch_size={self.patch_size}",
                expected="a query size that divides the patch size",
                fix=f"use --query {self.patch_size}",
            )

    def resolve_window_px(self, tokens_per_cell: int) -> int:
        """The window's side, when a cell has this many tokens over all dates and sensors."""
        if self.window_px is not None:
            return self.window_px
        patches = math.isqrt(TOKENS_PER_WINDOW // tokens_per_cell)
        return self.patch_size * max(MIN_WINDOW_PATCHES, min(MAX_WINDOW_PATCHES, patches))

    def resolve_halo_px(self, window_px: int) -> int:
        """The halo's width for a window."""
        if self.halo_px is not None:
            return self.halo_px
        return self.patch_size * round(window_px / self.patch_size / 5)

    def resolve_domain_px(
        self, reach_px: int, tokens_per_cell: int, shape_yx: ShapeYX
    ) -> tuple[int, int]:
        """Side and halo of a domain of seam-free inference, for a model that looks this far.

        Domains share an image evenly: all have one side, so a small one left over would cost as
        much as the others.
        """
        from bocage.embeddings.grid import is_shard_side

        p = self.patch_size
        halo = self.halo_px
        if halo is None:
            neighborhood_px = self.window_px or SEAM_FREE_NEIGHBORHOOD_PATCHES * p
            halo = max(neighborhood_px, p * math.ceil(SEAM_FREE_HALO * reach_px / p))
        most = self.most_domain_px(tokens_per_cell) // p
        if max(shape_yx) <= p * most + 2 * halo:
            return p * most + 2 * halo, halo  # The whole image is one domain.

        def n_px(side: int) -> int:
            n_rows, n_cols = (max(1, math.ceil((n - halo) / side)) for n in shape_yx)
            return n_rows * n_cols * (side + 2 * halo) ** 2

        # Half as many patches would be more domains for the same cores.
        sides = [
            p * n
            for n in range(most, most // 2, -1)
            if n == most or is_shard_side(p * n // self.cell_px)
        ]
        return min(sides, key=n_px) + 2 * halo, halo

    def most_domain_px(self, tokens_per_cell: int) -> int:
        """Side of the largest seam-free block without its halo.

        It is in memory as a whole, so many dates or sensors make it smaller.
        """
        if self.block_px is not None:
            return self.block_px
        patches = int(SEAM_FREE_BLOCK_PATCHES / math.sqrt(tokens_per_cell))
        return self.patch_size * max(MIN_SEAM_FREE_BLOCK_PATCHES, patches)

    def resolve_block_px(self, core_px: int, shape_yx: ShapeYX) -> int:
        """Side of a block of windows with such cores; the layout rounds a given one to whole cores.

        It may be a tenth larger than the default where an image then takes fewer blocks: one that
        holds a strip of cells or none costs nearly as much to write as a full one.
        """
        from bocage.embeddings.grid import is_shard_side

        if self.block_px is not None:
            return self.block_px
        least = max(1, DEFAULT_BLOCK_PX // core_px)
        sides = [
            core_px * n
            for n in range(least, least + least // BLOCK_GROWTH + 1)
            if n == least or is_shard_side(core_px * n // self.cell_px)
        ]
        return min(sides, key=lambda side: math.prod(math.ceil(n / side) for n in shape_yx))

    @property
    def cell_px(self) -> int:
        """Side of an output cell."""
        return self.query_px or self.patch_size


_CHOICES = {
    "output": ("auto", "pooled", "student", "locations"),
    "codec": ("signed_power", "float32"),
    "period": ("all", "year"),
}
