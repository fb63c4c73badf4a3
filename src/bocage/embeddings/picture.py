"""Embeddings as a picture: three principal components as red, green and blue.

The basis is fitted on a bounded sample of this map, so colors of two pictures do not compare; three
components hold a minority of the variance (21-40 % in the public archive). For looking, not for
measuring. Averaging happens on the projections, which is the projection of the average.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bocage.embeddings.atomic import flush_to_disk, naming_failures, scratch_beside
from bocage.embeddings.lazy_raster import LazyRaster
from bocage.errors import StoreError
from bocage.types import FloatArray

if TYPE_CHECKING:
    from bocage.types import PathLike

_SAMPLE_VECTORS = 40_000
_SAMPLE_CHUNKS = 64
_TILE_BYTES = 96 * 2**20
_VISIBLE_PX = 512
"""A map of a few dozen cells is drawn with whole pixels per cell, up to about this side."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The files written, and how much of the map they show."""

    png: Path
    cog: Path | None
    variance_explained: tuple[float, float, float]
    """Shares of the sample's variance in red, green and blue."""

    n_sampled: int
    """Vectors that the basis was fitted on."""

    year: int
    """The year drawn; 0 where it is unknown."""

    years: tuple[int, ...]
    """All years of the map."""

    def __str__(self) -> str:
        shares = ", ".join(f"{100 * v:.0f}" for v in self.variance_explained)
        files = f"{self.png}" + (f" and {self.cog}" if self.cog else "")
        if len(self.years) > 1:
            files += f" ({self.year or 'the unknown one'} of {', '.join(map(str, self.years))})"
        return (
            f"{files}: principal components as red, green, blue hold {shares} % of the variance "
            f"({100 * sum(self.variance_explained):.0f} % together); for looking, not measuring"
        )


@dataclass(frozen=True, kw_only=True)
class _Basis:
    mean: FloatArray
    components: FloatArray  # [3, D]
    low: FloatArray
    high: FloatArray
    explained: tuple[float, float, float]
    n_sampled: int

    def project(self, x: FloatArray) -> FloatArray:
        """[D, h, w] to [3, h, w]; NaN stays NaN."""
        d = x.shape[0]
        flat = x.reshape(d, -1) - self.mean[:, None]
        return np.asarray(self.components @ flat, np.float32).reshape(3, *x.shape[1:])

    def to_bytes(self, projected: FloatArray) -> NDArray[np.uint8]:
        """[3, h, w] to red, green, blue, alpha; transparent where there is no data."""
        valid = ~np.isnan(projected).any(axis=0)
        span = (self.high - self.low)[:, None, None]
        stretched = (projected - self.low[:, None, None]) / span * 255
        rgb = np.rint(np.clip(np.where(valid, stretched, 0), 0, 255)).astype(np.uint8)
        return np.concatenate([rgb, np.where(valid, 255, 0).astype(np.uint8)[None]])


def preview(
    uri: PathLike,
    png: PathLike,
    cog: PathLike | None = None,
    *,
    year: int | None = None,
    zone: int | str | None = None,
    max_px: int = 2048,
) -> Preview:
    """Draw a map of embeddings as a PNG of at most `max_px`, and as an RGBA GeoTIFF if asked.

    A small map is drawn with several pixels per cell in the PNG, and cell by cell in the GeoTIFF.

    Colors are stretched between the 2nd and 98th percentile of each component; nodata is
    transparent. The last year is drawn unless `year` says otherwise. Existing pictures are
    replaced. StoreError if there is nothing but nodata.
    """
    from bocage.embeddings.cog import select_year
    from bocage.embeddings.open import open_raster

    for target, example in ((png, "map.png"), (cog, "map.tif")):
        if target is not None and Path(target).is_dir():
            raise StoreError(
                got=f"{target}, which is a folder",
                expected="the name of the picture",
                fix=f"write for example {Path(target) / example}",
            )
    raster = open_raster(uri, zone=zone)
    years = raster.years
    raster = select_year(raster, years[-1] if year is None else year)
    basis = _fit(raster, str(uri))
    png_path = Path(png)
    cog_path = None if cog is None else Path(cog)
    factor = -(-max(raster.shape[2:]) // max_px)
    import rasterio

    with ExitStack() as stack:
        stack.enter_context(naming_failures(png_path))
        stack.enter_context(rasterio.Env(GDAL_PAM_ENABLED=False, GDAL_CACHEMAX=64 * 2**20))
        folder = stack.enter_context(scratch_beside(png_path))
        stack.enter_context(naming_failures(png_path))  # while a full disk is still full
        full = None if cog_path is None else folder / "full.tif"
        small = _draw(raster, basis, factor, full)
        _write_png(
            folder / "picture.png", _enlarge(basis.to_bytes(small), min(_VISIBLE_PX, max_px))
        )
        if cog_path is not None and full is not None:
            with scratch_beside(cog_path) as other, naming_failures(cog_path):
                _copy_to_cog(full, other / "picture.tif")
                (other / "picture.tif").replace(cog_path)
        flush_to_disk(folder / "picture.png")
        (folder / "picture.png").replace(png_path)
    return Preview(
        png=png_path,
        cog=cog_path,
        variance_explained=basis.explained,
        n_sampled=basis.n_sampled,
        year=raster.years[0],
        years=years,
    )


def _fit(raster: LazyRaster, where: str) -> _Basis:
    """Principal components of a sample of at most _SAMPLE_VECTORS vectors."""
    from bocage.embeddings.description import sample_chunks

    rng = np.random.default_rng(0)
    parts: list[FloatArray] = []
    chunks = sample_chunks(raster, _SAMPLE_CHUNKS)
    n_cells = sum((r.stop - r.start) * (c.stop - c.start) for _, r, c in chunks)
    # The same share of every chunk: small chunks at the edge count by their area.
    share = min(1.0, _SAMPLE_VECTORS / n_cells)
    for _, rows, cols in chunks:
        x = raster[0, :, rows, cols].reshape(raster.shape[1], -1)
        keep = np.flatnonzero(~np.isnan(x).any(axis=0))
        if share < 1:
            keep = keep[rng.random(keep.size) < share]
        parts.append(x[:, keep])
    sample = np.concatenate(parts, axis=1).astype(np.float64)
    if sample.shape[1] == 0:
        raise StoreError(
            got=f"{where} with nothing but nodata in {len(chunks)} sampled chunks",
            expected="some embeddings to draw",
            fix="check the area, or draw a part that has data",
        )
    mean = sample.mean(axis=1)
    centered = sample - mean[:, None]
    values, vectors = np.linalg.eigh(centered @ centered.T / sample.shape[1])
    total = max(float(values.sum()), 1e-30)
    n = min(3, raster.shape[1])
    components = np.zeros((3, raster.shape[1]))
    components[:n] = vectors[:, ::-1][:, :n].T
    # The sign of a component is arbitrary: make its largest loading positive, so reruns agree.
    largest = np.abs(components).argmax(axis=1)
    components *= np.where(components[np.arange(3), largest] < 0, -1, 1)[:, None]
    explained = [float(v) / total for v in values[::-1][:n]] + [0.0] * (3 - n)
    projected = components @ centered
    low, high = np.percentile(projected, [2, 98], axis=1)
    high = np.where(high > low, high, low + 1)
    return _Basis(
        mean=mean.astype(np.float32),
        components=components.astype(np.float32),
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        explained=(explained[0], explained[1], explained[2]),
        n_sampled=sample.shape[1],
    )


def _draw(raster: LazyRaster, basis: _Basis, factor: int, full: Path | None) -> FloatArray:
    """Masked means of the projections over factor x factor cells; the full picture on the way."""
    import rasterio
    from rasterio.windows import Window

    rows, cols = raster.shape[2:]
    small = np.full((3, -(-rows // factor), -(-cols // factor)), np.nan, np.float32)
    with ExitStack() as stack:
        file = None
        if full is not None:
            profile = _rgba_profile(raster)
            file = stack.enter_context(rasterio.open(full, "w", **profile))
        for r, c in _tiles(raster, factor):
            projected = basis.project(raster[0, :, r, c])
            if file is not None:
                file.write(basis.to_bytes(projected), window=Window.from_slices(r, c))
            means = _means(projected, factor)
            i, j = r.start // factor, c.start // factor
            small[:, i : i + means.shape[1], j : j + means.shape[2]] = means
    return small


def _enlarge(picture: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """[4, h, w] with every cell repeated a whole number of times, at most to a side of side_px."""
    times = max(1, side_px // max(picture.shape[1:]))
    return picture.repeat(times, axis=1).repeat(times, axis=2)


def _tiles(raster: LazyRaster, factor: int) -> Iterator[tuple[slice, slice]]:
    rows, cols = raster.shape[2:]
    # Whole 256-cell blocks of the picture and whole averaging cells, so that nothing is cut.
    unit = int(np.lcm(256, factor)) if factor <= 256 else factor
    side = unit
    while (side + unit) ** 2 * raster.shape[1] * 4 <= _TILE_BYTES:
        side += unit
    for r in range(0, rows, side):
        for c in range(0, cols, side):
            yield slice(r, min(r + side, rows)), slice(c, min(c + side, cols))


def _means(x: FloatArray, factor: int) -> FloatArray:
    if factor == 1:
        return x
    valid = ~np.isnan(x)
    pad = [(0, 0), *((0, -n % factor) for n in x.shape[1:])]
    sums = np.pad(np.where(valid, x, 0), pad)
    counts = np.pad(valid, pad).astype(np.float32)
    shape = (3, sums.shape[1] // factor, factor, sums.shape[2] // factor, factor)
    sums, counts = (a.reshape(shape).sum(axis=(2, 4)) for a in (sums, counts))
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, sums / counts, np.nan).astype(np.float32)


def _rgba_profile(raster: LazyRaster) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 4,
        "height": raster.shape[2],
        "width": raster.shape[3],
        "crs": raster.grid.crs,
        "transform": raster.grid.transform,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "photometric": "RGB",
        "alpha": "YES",
        "compress": "zstd",
        "zstd_level": 1,
        "bigtiff": "IF_SAFER",
    }


def _copy_to_cog(source: Path, target: Path) -> None:
    import rasterio.shutil

    # Colors may be averaged as they are; GDAL leaves transparent cells out of the mean.
    rasterio.shutil.copy(
        source,
        target,
        driver="COG",
        compress="DEFLATE",
        predictor="YES",
        blocksize=256,
        overview_resampling="AVERAGE",
        bigtiff="IF_SAFER",
    )
    flush_to_disk(target)


def _write_png(path: Path, rgba: NDArray[np.uint8]) -> None:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="PNG",
            dtype="uint8",
            count=4,
            height=rgba.shape[1],
            width=rgba.shape[2],
        ) as file:
            file.write(rgba)
