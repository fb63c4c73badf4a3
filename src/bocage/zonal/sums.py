"""One walk over the tiles of a map that lie under zones, and what is added up on the way.

Zones do not matter one by one: a tile is read once for all of them, and memory holds a tile and one
row of sums per zone, whatever the size of the map or of the largest zone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bocage.zonal.config import MOMENTS, ZonalConfig, share_of
from bocage.zonal.coverage import Coverage, Tile
from bocage.zonal.ground import Ground
from bocage.zonal.moments import Moments
from bocage.zonal.quantiles import PASSES, Quantiles, pairs_at_once
from bocage.zonal.shares import ClassAreas, YesAreas

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray
    from bocage.zonal.coverage import Covered
    from bocage.zonal.layers import Layers

TILE_BYTES = 2**26
"""Values of a tile that are held at once; decoding them takes about as much again."""

_LARGEST_TILE, _SMALLEST_TILE = 1024, 64


@dataclass(kw_only=True)
class YearSums:
    """What one year of a map has under each of Z zones."""

    n_cells: NDArray[np.float64]
    """Sum of the shares of cells with data [Z]."""

    hectares: NDArray[np.float64]
    """Ground with data [Z]."""

    stats: dict[str, NDArray[np.floating]] = field(default_factory=dict)
    """[Z, C] by name."""

    classes: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    """Hectares [Z] by class value."""

    has_data: NDArray[np.bool_]
    """Bands [C] that hold a number anywhere in the tiles that were read."""

    yes: NDArray[np.float64] | None = None
    """Hectares [Z, C] where a band is at least the threshold."""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The tiles under zones, in a fixed order."""

    layers: Layers
    coverage: Coverage
    tiles: tuple[Tile, ...]
    n_rounds: int
    """Rounds of passes for quantiles."""

    @property
    def n_reads(self) -> int:
        """How often a tile of one year is read, all together."""
        return len(self.tiles) * len(self.layers.years) * (1 + PASSES * self.n_rounds)


def plan_walk(layers: Layers, shapes: NDArray[np.object_], config: ZonalConfig) -> Walk:
    """Which tiles will be read; shapes are zones in cells of the map."""
    coverage = Coverage(shapes)
    side = config.tile_cells or tile_side(layers, config)
    rows, cols = layers.grid.shape_yx
    tiles = []
    for top in range(0, rows, side):
        strip = (slice(top, min(top + side, rows)), slice(0, cols))
        if not len(coverage.touching(strip)):
            continue
        for left in range(0, cols, side):
            tile = (strip[0], slice(left, min(left + side, cols)))
            if len(coverage.touching(tile)):
                tiles.append(tile)
    n_quantiles = sum(share_of(n) is not None for n in config.names(layers.kind))
    n_pairs = len(shapes) * len(layers.features)
    rounds = -(-n_pairs // pairs_at_once(n_quantiles)) if n_quantiles else 0
    return Walk(layers=layers, coverage=coverage, tiles=tuple(tiles), n_rounds=rounds)


def tile_side(layers: Layers, config: ZonalConfig) -> int:
    """Side of a tile whose values fit into TILE_BYTES: a power of two."""
    at_once = len(layers.years) if config.deltas else 1
    side = _LARGEST_TILE
    while side > _SMALLEST_TILE and 4 * at_once * len(layers.features) * side**2 > TILE_BYTES:
        side //= 2
    return side


def add_up(
    walk: Walk, config: ZonalConfig, advance: Callable[[float], None]
) -> tuple[list[YearSums], NDArray[np.float64]]:
    """Sums of every year, and the hectares [Z] of each zone that lie on the map."""
    layers, n_zones = walk.layers, len(walk.coverage.shapes)
    ground = Ground(layers.grid)
    years = [_Year(layers, config, n_zones) for _ in layers.years]
    on_map = np.zeros(n_zones)
    for tile, values in _read(walk, config, advance):
        hectares = ground.of_tile(*tile)
        for covered in walk.coverage.of_tile(tile):
            if 0 in values:
                on_map[covered.zone] += covered.matrix(len(hectares)) @ hectares
            for position, x in values.items():
                years[position].add(x, covered, hectares)
    # One after the other: the sums of a year go when its statistics are there.
    found = [years.pop(0).finish() for _ in layers.years]
    _add_quantiles(walk, config, found, advance)
    return found, on_map


class _Year:
    """The sums of one year while they grow."""

    def __init__(self, layers: Layers, config: ZonalConfig, n_zones: int) -> None:
        n_features, names = len(layers.features), config.names(layers.kind)
        # Two digits more than int8 has, in half the memory.
        self.dtype = np.float32 if layers.kind == "embeddings" else np.float64
        self.names = tuple(name for name in names if name in MOMENTS)
        self.counts_only = layers.kind in {"classes", "presence"}
        self.moments = Moments(n_zones, 0 if self.counts_only else n_features, names)
        self.hectares = np.zeros(n_zones)
        self.has_data = np.zeros(n_features, bool)
        self.classes = None
        if layers.kind == "classes":
            self.classes = ClassAreas(n_zones, layers.classes, layers.name)
        threshold = 0.5 if layers.kind == "presence" else config.above
        self.yes = None if threshold is None else YesAreas(n_zones, n_features, threshold)

    def add(self, x: FloatArray, covered: Covered, hectares: NDArray[np.float64]) -> None:
        """Add a tile [C, n]; a cell without data in one band counts in none."""
        here = covered.where(_with_data(x)[covered.cell])
        if not self.has_data.all():
            self.has_data |= ~np.isnan(x).all(axis=1)
        if not len(here.zone):
            return
        self.hectares[here.zone] += here.matrix(len(hectares)) @ hectares
        self.moments.add(x[:0] if self.counts_only else x, here)
        if self.classes is not None:
            self.classes.add(x, here, hectares)
        if self.yes is not None:
            self.yes.add(x, here, hectares)

    def finish(self) -> YearSums:
        return YearSums(
            n_cells=self.moments.weight,
            hectares=self.hectares,
            has_data=self.has_data,
            stats={name: self.moments.result(name).astype(self.dtype) for name in self.names},
            classes={} if self.classes is None else dict(sorted(self.classes.hectares.items())),
            yes=None if self.yes is None else self.yes.hectares,
        )


def _read(
    walk: Walk, config: ZonalConfig, advance: Callable[[float], None]
) -> Iterator[tuple[Tile, dict[int, FloatArray]]]:
    """Each tile with the values [C, n] of the years: one at a time, or all where they are joined.

    With deltas a cell counts only where every year has data, or the difference of two means would
    be one of places.
    """
    layers = walk.layers
    every = range(len(layers.years))
    together = [tuple(every)] if config.deltas else [(position,) for position in every]
    jobs = [(tile, positions) for tile in walk.tiles for positions in together]

    def values(tile: Tile, positions: tuple[int, ...]) -> dict[int, FloatArray]:
        found = {p: layers.read(p, *tile) for p in positions}
        found = {p: x.reshape(len(x), -1) for p, x in found.items()}
        if len(found) == 1:
            return found
        missing = ~np.all([_with_data(x) for x in found.values()], axis=0)
        return {p: np.where(missing, np.float32(np.nan), x) for p, x in found.items()}

    for (tile, positions), found in _ahead(values, jobs, layers.n_ahead):
        yield tile, found
        advance(len(positions))


def _ahead(
    values: Callable[[Tile, tuple[int, ...]], dict[int, FloatArray]],
    jobs: list[tuple[Tile, tuple[int, ...]]],
    n_ahead: int,
) -> Iterator[tuple[tuple[Tile, tuple[int, ...]], dict[int, FloatArray]]]:
    """Values of the jobs in their order; so many are on their way while one is summed."""
    if not n_ahead:
        for job in jobs:
            yield job, values(*job)
        return
    with ThreadPoolExecutor(n_ahead) as pool:
        waiting: deque[tuple[tuple[Tile, tuple[int, ...]], Future[dict[int, FloatArray]]]] = deque()
        try:
            for job in jobs:
                waiting.append((job, pool.submit(values, *job)))
                if len(waiting) > n_ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _with_data(x: FloatArray) -> NDArray[np.bool_]:
    """Cells [n] that have a number in every band of [C, n]."""
    return np.asarray(~np.isnan(x).any(axis=0))


def _add_quantiles(
    walk: Walk, config: ZonalConfig, found: list[YearSums], advance: Callable[[float], None]
) -> None:
    layers, n_zones = walk.layers, len(walk.coverage.shapes)
    shares = {n: s for n in config.names(layers.kind) if (s := share_of(n)) is not None}
    if not shares:
        return
    n_features = len(layers.features)
    for year in found:
        for name in shares:
            year.stats[name] = np.full((n_zones, n_features), np.nan)
    limit = pairs_at_once(len(shares))
    for zones, bands in _groups(n_zones, n_features, limit):
        counted = [
            Quantiles(zones, bands.stop - bands.start, list(shares.values()), n_zones)
            for _ in layers.years
        ]
        for _ in range(PASSES):
            for tile, values in _read(walk, config, advance):
                for covered in walk.coverage.of_tile(tile):
                    for position, x in values.items():
                        here = covered.where(_with_data(x)[covered.cell])
                        counted[position].add(x[bands], here)
            for quantiles in counted:
                quantiles.next_pass()
        for year, quantiles in zip(found, counted, strict=True):
            for k, name in enumerate(shares):
                year.stats[name][zones, bands] = quantiles.result()[..., k]


def _groups(n_zones: int, n_features: int, limit: int) -> Iterator[tuple[NDArray[np.int64], slice]]:
    """Pieces of zones and bands of at most `limit` pairs each."""
    zones_at_once = min(n_zones, limit)
    bands_at_once = max(1, limit // max(1, zones_at_once))
    for first in range(0, n_zones, zones_at_once):
        zones = np.arange(first, min(first + zones_at_once, n_zones))
        for band in range(0, n_features, bands_at_once):
            yield zones, slice(band, min(band + bands_at_once, n_features))
