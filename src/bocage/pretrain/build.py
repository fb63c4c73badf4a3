"""Stacks to samples: windows of every source, refused if there is too little in them.

Sources are opened one after the other in the order given, their windows taken row by row and, for
long series, in runs of timesteps; that order is what a killed build resumes by.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageError, BocageWarning, ConfigError, InputError, SourceError
from bocage.pretrain.modalities import MODALITIES
from bocage.pretrain.sample import MAX_STEPS, Sample
from bocage.pretrain.store import StoreLayout, StoreWriter
from bocage.progress import progress
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    import xarray as xr

    from bocage.types import FloatArray, PathLike

logger = logging.getLogger(__name__)


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
        for wrong, got, expected in bad:
            if wrong:
                raise ConfigError(got=got, expected=expected, fix="change that option")


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build made."""

    path: Path
    n_sources: int
    n_candidates: int
    """Windows looked at; with dry_run those there are."""
    n_samples: int
    refused: dict[str, int]
    """Why windows or sources were left out."""
    per_modality: dict[str, int]
    """Samples that have each modality."""
    seconds: float

    def __str__(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.n_samples} samples from {self.n_candidates} windows of {self.n_sources} sources"
        ]
        lines += [f"  {name}: {n} samples" for name, n in self.per_modality.items()]
        lines += [f"  left out: {n} {reason}" for reason, n in self.refused.items()]
        return "\n".join(lines)


def build_samples(
    sources: Sequence[PathLike | xr.Dataset | Sample],
    out: PathLike,
    config: BuildConfig | None = None,
    *,
    dry_run: bool = False,
    show_progress: bool = False,
) -> BuildReport:
    """Cut imagery into pretraining samples and write them as a store.

    Sources are folders or files as ``open_stack`` takes them, Stacks, or ready Samples. Run it
    again after a kill and it goes on. A source that cannot be opened is named, counted and left
    out; InputError if nothing at all remains.
    """
    config = config or BuildConfig()
    start = time.monotonic()
    parts = _list_sources(sources, config)
    stacks, unreadable = _survey(parts, config)
    n_candidates = sum(len(stack.windows) for stack in stacks)
    if not stacks:
        raise InputError(
            got=f"no usable source among {len(parts)} ({'; '.join(unreadable)})",
            expected="imagery that open_stack can read",
            fix="try `bocage info` or `bocage embed --dry-run` on one of them",
        )
    layout = StoreLayout(
        modalities=tuple(
            name for name in MODALITIES if any(name in stack.modalities for stack in stacks)
        ),
        size_px=config.size_px,
        max_steps=max(stack.longest for stack in stacks),
    )
    if dry_run:
        return _report(Path(out), parts, n_candidates, None, start)
    job = {"sources": [part.name for part in parts], "config": _plain(asdict(config))}
    writer = StoreWriter(out, layout, job=job)
    if writer.n_taken:
        logger.warning("going on after %d of %d windows", writer.n_taken, n_candidates)
    position = 0
    with progress("samples", n_candidates, unit="windows", enabled=show_progress) as advance:
        for stack in stacks:
            if position + len(stack.windows) <= writer.n_taken:
                position += len(stack.windows)
                advance(len(stack.windows))
                continue
            for sample_or_reason in stack.cut(skip=max(0, writer.n_taken - position)):
                if isinstance(sample_or_reason, Sample):
                    writer.add(sample_or_reason)
                else:
                    writer.refuse(sample_or_reason)
                advance(1)
            position += len(stack.windows)
    for text in unreadable:
        writer.refused[text] += 1
    writer.finish()
    return _report(Path(out), parts, n_candidates, writer, start)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One source: a path, a Stack, or a ready sample."""

    name: str
    data: Any


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """A source that opened, and where its samples lie."""

    part: _Part
    config: BuildConfig
    modalities: tuple[str, ...]
    longest: int
    windows: tuple[tuple[int, int, int, int], ...]
    """(first row, first column, first timestep, timesteps)."""

    def cut(self, *, skip: int = 0) -> Iterator[Sample | str]:
        """Samples of the windows in order, or why there is none."""
        if isinstance(self.part.data, Sample):
            yield self.part.data
            return
        stack = _open(self.part, self.config)
        dropped = _unusable_sensors(stack, self.config, self.part.name)
        for row, col, first, n_steps in self.windows[skip:]:
            yield _cut_window(self.part, stack, self.config, dropped, (row, col, first, n_steps))


def _list_sources(sources: Sequence[Any], config: BuildConfig) -> list[_Part]:
    parts = []
    for number, source in enumerate(sources):
        if isinstance(source, Sample):
            parts.append(_Part(name=source.id, data=source))
        elif isinstance(source, str | Path):
            path = Path(source)
            if not path.exists() and "://" not in str(source):
                raise SourceError(
                    got=f"{source}, which does not exist",
                    expected="a folder or file of imagery",
                    fix="check the path",
                )
            parts += [_Part(name=str(p), data=p) for p in _files(path, each=config.each)]
        else:
            names = getattr(source, "attrs", {}).get("bocage_sources", [f"stack {number}"])
            parts.append(_Part(name=f"{names[0]}", data=source))
    if not parts:
        raise InputError(got="no source", expected="at least one", fix="pass imagery")
    return parts


def _files(path: Path, *, each: bool) -> list[Path]:
    if not (each and path.is_dir()):
        return [path]
    from bocage.imagery.folder import list_rasters

    return [Path(name) for name in list_rasters(str(path))]


def _open(part: _Part, config: BuildConfig) -> Any:
    if not isinstance(part.data, Path):
        return part.data
    from bocage.imagery import open_stack

    with warnings.catch_warnings():
        # A thousand files without dates would say so a thousand times; _survey says it once.
        warnings.simplefilter("ignore", BocageWarning)
        return open_stack(part.data, **config.open_options)


def _survey(parts: Sequence[_Part], config: BuildConfig) -> tuple[list[_Windows], list[str]]:
    """Open every source once (headers only) and plan its windows."""
    found, unreadable, undated = [], [], 0
    for part in parts:
        try:
            if isinstance(part.data, Sample):
                sample = part.data
                found.append(
                    _Windows(
                        part=part,
                        config=config,
                        modalities=tuple(sample.values),
                        longest=len(sample.timestamps),
                        windows=((0, 0, 0, len(sample.timestamps)),),
                    )
                )
                continue
            stack = _open(part, config)
        except BocageError as error:
            logger.warning("source %s left out: %s", part.name, error)
            unreadable.append(f"unreadable source {part.name}: {error.got}")
            continue
        undated += stack.attrs.get("bocage_dates") == "unknown"
        windows = plan_windows(
            (stack.sizes["y"], stack.sizes["x"]), int(stack.sizes["time"]), config
        )
        found.append(
            _Windows(
                part=part,
                config=config,
                modalities=tuple(name for name in SENSORS if name in stack.data_vars),
                longest=max(n for *_, n in windows),
                windows=windows,
            )
        )
    if undated:
        warnings.warn(
            f"{undated} of {len(parts)} sources have no date and are taken as of 1 July 2020; v1.2 "
            "and v1.3 use dates, so give them with date= (--date) if they are known",
            BocageWarning,
            stacklevel=3,
        )
    return found, unreadable


def plan_windows(
    shape_yx: tuple[int, int], n_times: int, config: BuildConfig
) -> tuple[tuple[int, int, int, int], ...]:
    """Windows (first row, first column, first timestep, timesteps) of a source of that size."""
    rows, cols = (_starts(extent, config) for extent in shape_yx)
    runs = [
        (first, min(config.max_steps, n_times - first))
        for first in range(0, n_times, config.max_steps)
    ]
    return tuple((row, col, *run) for row in rows for col in cols for run in runs)


def _starts(extent: int, config: BuildConfig) -> list[int]:
    """First pixels of windows along one axis.

    Without a stride, as many as fill the extent about once, spread from edge to edge: 257 pixels
    give 0 and 129, 200 give 0 and 72. A smaller source has one window, padded around with NaN.
    """
    size = config.size_px
    if extent <= size:
        return [-((size - extent) // 2)]
    if config.stride_px is not None:
        return list(range(0, extent - size + 1, config.stride_px))
    n = max(1, round(extent / size))
    return [round(i * (extent - size) / max(1, n - 1)) for i in range(n)]


def _unusable_sensors(stack: xr.Dataset, config: BuildConfig, name: str) -> dict[str, str]:
    """Sensors with bands that are nowhere in a source, with the reason to leave them out."""
    from bocage.imagery import read_window

    dropped = {}
    whole = read_window(stack, *_probe(stack))
    for sensor, x in whole.values.items():
        with_data = np.isfinite(x).any(axis=(0, 2, 3))
        if with_data.all() or not with_data.any() or config.fill_bands:
            continue
        bands = " ".join(np.asarray(SENSORS[sensor].band_names)[~with_data])
        dropped[sensor] = f"without {sensor} bands {bands} (--fill-bands copies the nearest)"
        logger.warning("%s: left %s", name, dropped[sensor])
    return dropped


def _probe(stack: xr.Dataset) -> tuple[slice, slice]:
    """The middle of a stack, where data are most likely."""
    rows, cols = stack.sizes["y"], stack.sizes["x"]
    height, width = min(rows, 256), min(cols, 256)
    top, left = (rows - height) // 2, (cols - width) // 2
    return slice(top, top + height), slice(left, left + width)


def _cut_window(
    part: _Part,
    stack: xr.Dataset,
    config: BuildConfig,
    dropped: Mapping[str, str],
    window: tuple[int, int, int, int],
) -> Sample | str:
    from bocage.imagery import read_window, timestamps

    row, col, first, n_steps = window
    size = config.size_px
    piece = stack.isel(time=slice(first, first + n_steps))
    try:
        data = read_window(piece, slice(row, row + size), slice(col, col + size))
    except BocageError as error:
        logger.warning("%s: %s", part.name, error)
        return f"unreadable: {error.got}"
    values: dict[str, FloatArray] = {}
    reasons: Counter[str] = Counter(dropped.values())
    for sensor, x in data.values.items():
        if sensor in dropped:
            continue
        steps = _valid_steps(x, config.min_valid_share)
        if not steps.any():
            reasons[f"with less than {config.min_valid_share:.0%} valid pixels"] += 1
            continue
        filled = _fill_bands(sensor, x) if config.fill_bands else x
        moved = np.moveaxis(filled, (2, 3), (0, 1)).copy()  # [H, W, T, C]
        moved[:, :, ~steps] = np.nan
        values[sensor] = moved
    if not values:
        return next(iter(reasons), "without any sensor")
    return Sample(
        id=f"{part.name}#{row},{col},{first}",
        values=values,
        timestamps=timestamps(data.dates),
        latlon=_center(stack, row + size / 2, col + size / 2),
    )


def _valid_steps(x: FloatArray, min_share: float) -> Any:
    """Timesteps of [T, C, H, W] whose pixels are valid in every band that has data at all."""
    finite: Any = np.isfinite(x)
    has_band = finite.any(axis=(2, 3))  # [T, C]
    usable = (finite | ~has_band[:, :, None, None]).all(axis=1) & has_band.any(axis=1)[
        :, None, None
    ]
    return usable.mean(axis=(1, 2)) >= min_share


def _fill_bands(sensor: str, x: FloatArray) -> FloatArray:
    """Bands without any data become copies of the present band of nearest wavelength."""
    from bocage.models.missing import nearest_bands

    has_band: Any = np.isfinite(x).any(axis=(2, 3))  # [T, C]
    filled = x.copy()
    for band, candidates in enumerate(nearest_bands(SENSORS[sensor])):
        for step in np.flatnonzero(~has_band[:, band]):
            nearest = next((c for c in candidates if has_band[step, c]), None)
            if nearest is not None:
                filled[step, band] = x[step, nearest]
    return filled


def _center(stack: xr.Dataset, row: float, col: float) -> tuple[float, float]:
    """Latitude and longitude of a pixel position."""
    from rasterio.warp import transform

    from bocage.imagery import stack_grid

    grid = stack_grid(stack)
    x, y = grid.transform @ (col, row)
    lon, lat = transform(grid.crs, "EPSG:4326", [x], [y])
    return float(lat[0]), float(lon[0])


def _report(
    path: Path, parts: Sequence[_Part], n_candidates: int, writer: StoreWriter | None, start: float
) -> BuildReport:
    return BuildReport(
        path=path,
        n_sources=len(parts),
        n_candidates=n_candidates,
        n_samples=len(writer) if writer else 0,
        refused=dict(writer.refused) if writer else {},
        per_modality=writer.per_modality() if writer else {},
        seconds=time.monotonic() - start,
    )


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **{k: v for k, v in config.items() if k != "open_options"},
        "open_options": {str(k): repr(v) for k, v in config["open_options"].items()},
    }
