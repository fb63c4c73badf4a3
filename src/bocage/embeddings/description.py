"""What a store or raster of embeddings is: the answer of `bocage info`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.lazy_raster import LazyRaster
from bocage.types import BboxWSEN, ShapeYX

if TYPE_CHECKING:
    from bocage.types import PathLike

_SAMPLE_CHUNKS = 24


@dataclass(frozen=True, kw_only=True)
class Info:
    """One store or raster, in words and numbers."""

    uri: str
    layout: str
    """Zarr with one group per UTM zone, Zarr with one array, or GeoTIFF."""

    zones: tuple[str, ...]
    """UTM groups of a Zarr store; the numbers below are those of the first or the chosen one."""

    model: str
    dims: int
    years: tuple[int, ...]
    """0 stands for an unknown year."""

    shape_yx: ShapeYX
    patch_size: int | None
    crs: str
    cell_size: float
    """In CRS units."""

    bbox_wsen: BboxWSEN
    """In the CRS above."""

    codec: str
    n_bytes: int | None
    """On disk; None for a remote store."""

    nodata_share: float
    """Share of cells without data, in a sample of the map."""

    sampled_share: float
    """How much of the map the sample covers."""

    def lines(self) -> list[tuple[str, str]]:
        """Label and text, in reading order."""
        rows, cols = self.shape_yx
        w, s, e, n = self.bbox_wsen
        years = ", ".join(str(y) if y else "unknown" for y in self.years)
        zones = f" ({', '.join(self.zones[:8])})" if len(self.zones) > 1 else ""
        size = "remote" if self.n_bytes is None else format_bytes(self.n_bytes)
        patch = f", patch size {self.patch_size}" if self.patch_size else ""
        exactly = "" if self.sampled_share >= 1 else f" in a sample of {self.sampled_share:.1%}"
        return [
            ("layout", self.layout + zones),
            ("model", (self.model or "unknown") + patch),
            ("map", f"{cols} x {rows} cells of {self._cell}, {self.dims} dims, {years}"),
            ("CRS", self.crs if len(self.crs) < 40 else self.crs[:40] + "..."),
            ("bounds", f"west {w:.10g}, south {s:.10g}, east {e:.10g}, north {n:.10g}"),
            ("codec", self.codec),
            ("size", size),
            ("no data", f"{self.nodata_share:.1%} of cells{exactly}"),
            ("open", f"bocage.open_embeddings({self.uri!r})"),
        ]

    @property
    def _cell(self) -> str:
        """Cell size with its unit: 40 m."""
        from rasterio.crs import CRS

        crs = CRS.from_user_input(self.crs)
        unit = "degrees" if crs.is_geographic else crs.linear_units
        return f"{self.cell_size:g} {'m' if unit in ('metre', 'meter') else unit}"

    def __str__(self) -> str:
        return "\n".join([self.uri, *(f"  {label:<8} {text}" for label, text in self.lines())])

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=self.uri, show_header=False, box=None, title_justify="left")
        for label, text in self.lines():
            table.add_row(f"[bold]{label}[/bold]", text)
        return table


def info(uri: PathLike, *, zone: int | str | None = None) -> Info:
    """Describe a store or raster of embeddings without reading more than a sample of it."""
    from bocage.embeddings.open import open_raster
    from bocage.embeddings.zarr_layout import ARRAY, is_zarr, open_root, zone_names

    address = str(uri)
    zones: tuple[str, ...] = ()
    layout = "GeoTIFF"
    if is_zarr(address) and ("://" in address or Path(address).exists()):
        root = open_root(address)
        zones = tuple(zone_names(root))
        layout = "Zarr, one group per UTM zone" if zones else "Zarr, one array"
        if ARRAY not in root and zones and zone is None:
            zone = zones[0]
    raster = open_raster(uri, zone=zone)
    nodata_share, sampled_share = _nodata(raster)
    patch_size = raster.attrs.get("patch_size")
    return Info(
        uri=address,
        layout=layout,
        zones=zones,
        model=str(raster.attrs.get("model", "")),
        dims=raster.shape[1],
        years=raster.years,
        shape_yx=(raster.shape[2], raster.shape[3]),
        patch_size=int(patch_size) if patch_size else None,
        crs=raster.grid.crs,
        cell_size=raster.grid.resolution,
        bbox_wsen=raster.grid.bbox,
        codec=str(raster.attrs.get("codec", "")),
        n_bytes=size_on_disk(address),
        nodata_share=nodata_share,
        sampled_share=sampled_share,
    )


def size_on_disk(uri: str) -> int | None:
    """Bytes of a local file or of all files of a local store."""
    if "://" in uri:
        return None
    path = Path(uri)
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def format_bytes(n: int) -> str:
    """12.3 MB."""
    value = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def sample_chunks(raster: LazyRaster, limit: int) -> list[tuple[int, slice, slice]]:
    """Chunks (year index, rows, columns) spread at random over the map, always the same ones."""
    rows, cols = raster.chunk_yx
    down, across = -(-raster.shape[2] // rows), -(-raster.shape[3] // cols)
    total = raster.shape[0] * down * across
    rng = np.random.default_rng(0)
    chosen = range(total) if total <= limit else rng.choice(total, limit, replace=False)
    chunks = []
    for number in chosen:
        year, rest = divmod(int(number), down * across)
        i, j = divmod(rest, across)
        chunks.append(
            (
                year,
                slice(i * rows, min((i + 1) * rows, raster.shape[2])),
                slice(j * cols, min((j + 1) * cols, raster.shape[3])),
            )
        )
    return chunks


def _nodata(raster: LazyRaster) -> tuple[float, float]:
    n_missing = n_seen = 0
    for year, rows, cols in sample_chunks(raster, _SAMPLE_CHUNKS):
        values = raster[year, 0, rows, cols]
        n_missing += int(np.isnan(values).sum())
        n_seen += values.size
    total = raster.shape[0] * raster.shape[2] * raster.shape[3]
    return n_missing / n_seen, n_seen / total
