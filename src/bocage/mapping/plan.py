"""What a run will do, worked out before it starts and printed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bocage.errors import InputError
from bocage.geo import Grid, Layout, lay_out
from bocage.mapping.config import EmbedConfig
from bocage.progress import format_bytes, format_duration
from bocage.types import FloatArray

if TYPE_CHECKING:
    import xarray as xr

WindowEncoder = Callable[[dict[str, FloatArray], NDArray[np.int64]], FloatArray]
"""({sensor: [B, T, C, H, W]}, timestamps [B, T, 3]) to vectors [B, h, w, D]; NaN is missing."""

TOKENS_PER_BATCH = 4096
"""Enough to keep two cores busy in the linear layers without outgrowing their cache
(docs/defaults.md)."""

MAX_SPAN_DAYS = 400
"""Above this the dates of one embedding are more than a year with its margins."""


_IN_IDENTITY = ("output", "query_px", "codec", "period", "seam_free")


class WindowModel(Protocol):
    """What mapping needs of a model; `bocage.load_model` gives one."""

    name: str
    weights_id: str
    precision: str

    def tokens_per_cell(self, sensor: str) -> int:
        """Tokens of one patch at one date."""

    def dims(self, output: str = "auto") -> int:
        """Length of an output vector."""

    def value_scale(self, output: str = "auto") -> float:
        """What values are divided by before int8 codes; 1 keeps them."""

    def window_encoder(
        self, *, patch_size: int, output: str = "auto", location_query_patch_size: int | None = None
    ) -> WindowEncoder:
        """The function of a batch of windows."""

    def domain_encoder(
        self,
        *,
        patch_size: int,
        neighborhood_px: int | None = None,
        output: str = "auto",
        location_query_patch_size: int | None = None,
    ) -> WindowEncoder:
        """The function of one large domain; ConfigError for models that have none."""

    def reach_px(self, patch_size: int, neighborhood_px: int | None = None) -> int:
        """How far an output of the domain encoder can look."""


@runtime_checkable
class ChoosesBatches(Protocol):
    """A model that knows how many windows of so many tokens its device takes best at once."""

    def windows_per_batch(self, n_tokens: int) -> int:
        """Windows for one call."""


@dataclass(frozen=True, kw_only=True)
class EmbedPlan:
    """A run, resolved: everything that decides the result, and what it will cost."""

    config: EmbedConfig
    layout: Layout
    input_grid: Grid
    cell_grid: Grid
    """The output's grid, one pixel per cell."""

    sensors: tuple[str, ...]
    steps: tuple[tuple[int, tuple[int, ...]], ...]
    """For each output year the indices of its dates in the stack."""

    dates: tuple[str, ...]
    sources: tuple[str, ...]
    contents: str
    """What lay in the sources when the run began, as a hash of sizes and times of local files."""

    reading: tuple[str, ...]
    """How the sources were read and composited, where that changes values."""

    model: str
    weights_id: str
    precision: str
    dims: int
    tokens_per_cell: int
    """Tokens of a patch when no date or sensor is missing."""

    value_scale: float
    batch_size: int

    @property
    def years(self) -> tuple[int, ...]:
        """Time coordinate of the output."""
        return tuple(year for year, _ in self.steps)

    @property
    def n_windows(self) -> int:
        """Forwards of one window each."""
        per_year = sum(self.layout.n_windows(block) for block in self.layout.blocks())
        return per_year * len(self.steps)

    @property
    def shard_cells(self) -> int:
        """Side of a shard of the output: a block, or more where one block is the whole image."""
        from bocage.embeddings.grid import LEAST_INNER_CELLS, is_shard_side

        cells = self.layout.block_px // self.config.cell_px
        if len(self.layout.blocks()) > 1 or is_shard_side(cells):
            return cells
        return -(-cells // LEAST_INNER_CELLS) * LEAST_INNER_CELLS

    @property
    def tokens_per_window(self) -> int:
        """Tokens of one forward when nothing is missing."""
        return (self.layout.window_px // self.config.patch_size) ** 2 * self.tokens_per_cell

    @property
    def n_output_bytes(self) -> int:
        """Uncompressed size of the output."""
        rows, cols = self.cell_grid.shape_yx
        itemsize = 1 if self.config.codec == "signed_power" else 4
        return rows * cols * self.dims * itemsize * len(self.steps)

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for two runs to write one store."""
        config = asdict(self.config)
        return {
            "model": self.model,
            "weights": self.weights_id,
            "precision": self.precision,
            "neighborhood_px": self.config.window_px if self.config.seam_free else None,
            "reading": list(self.reading),
            "patch_size": self.config.patch_size,
            "window_px": self.layout.window_px,
            "halo_px": self.layout.halo_px,
            "block_px": self.layout.block_px,
            "batch_size": self.batch_size,
            **{name: config[name] for name in _IN_IDENTITY},
            "crs": self.input_grid.crs,
            "transform": [float(v) for v in tuple(self.input_grid.transform)[:6]],
            "shape_yx": list(self.input_grid.shape_yx),
            "sensors": list(self.sensors),
            "dates": list(self.dates),
            "sources": list(self.sources),
            "contents": self.contents,
        }

    @property
    def fingerprint(self) -> str:
        """Short hash of the identity."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def describe(self, seconds_per_window: float | None = None) -> str:
        """The plan as a person reads it; with a time where one window has been timed."""
        rows, cols = self.input_grid.shape_yx
        km2 = rows * cols * self.input_grid.resolution**2 / 1e6
        cell_rows, cell_cols = self.cell_grid.shape_yx
        dates = f"{self.dates[0]} to {self.dates[-1]}" if len(self.dates) > 1 else self.dates[0]
        kind = "domains" if self.config.seam_free else "windows"
        lines = [
            f"input    {cols} x {rows} px at {self.input_grid.resolution:g} m, {km2:,.1f} km2, "
            f"{self.input_grid.crs}",
            f"         {', '.join(self.sensors)}; {len(self.dates)} date(s): {dates}",
            f"model    {self.model}, patch size {self.config.patch_size}, {self.dims} dimensions, "
            f"weights {self.weights_id[:19]}",
            f"{kind}  {self.n_windows:,} of {self.layout.window_px} px with a halo of "
            f"{self.layout.halo_px} px, {self.tokens_per_window:,} tokens each, "
            f"in {len(self.layout.blocks()) * len(self.steps)} block(s) of "
            f"{self.layout.block_px} px",
            f"output   {cell_cols} x {cell_rows} cells of "
            f"{self.cell_grid.resolution:g} m x {self.dims} x {len(self.steps)} year(s), "
            f"{self.config.codec}, up to {format_bytes(self.n_output_bytes)}",
        ]
        if self.layout.shape_yx != self.input_grid.shape_yx:
            lines.insert(
                2,
                f"         padded with missing pixels to {self.layout.shape_yx[1]} x "
                f"{self.layout.shape_yx[0]} px, whole patches",
            )
        if seconds_per_window is not None:
            seconds = seconds_per_window * self.n_windows
            lines.append(f"time     about {format_duration(seconds)} on this machine")
        return "\n".join(lines)


def make_plan(stack: xr.Dataset, model: WindowModel, config: EmbedConfig) -> EmbedPlan:
    """Resolve a run; InputError for a stack without dates or with more than a year as one."""
    from bocage.contents import contents_of
    from bocage.imagery import stack_grid

    grid = stack_grid(stack)
    sources = tuple(str(s) for s in stack.attrs.get("bocage_sources", ()))
    sensors = tuple(str(name) for name in stack.data_vars)
    times = stack["time"].values.astype("datetime64[D]")
    steps = _steps(times, config)
    n_steps = max(len(indices) for _, indices in steps)
    tokens_per_cell = n_steps * sum(model.tokens_per_cell(sensor) for sensor in sensors)
    if config.seam_free:
        reach_px = model.reach_px(config.patch_size, config.window_px)
        window_px, halo_px = config.resolve_domain_px(reach_px, tokens_per_cell, grid.shape_yx)
        block_px = window_px - 2 * halo_px
    else:
        window_px = config.resolve_window_px(tokens_per_cell)
        halo_px = config.resolve_halo_px(window_px)
        block_px = config.resolve_block_px(window_px - 2 * halo_px, grid.shape_yx)
    layout = lay_out(
        grid.shape_yx,
        patch_size=config.patch_size,
        window_px=window_px,
        halo_px=halo_px,
        block_px=block_px,
    )
    padded = Grid(crs=grid.crs, transform=grid.transform, shape_yx=layout.shape_yx)
    resolved = EmbedPlan(
        config=config,
        layout=layout,
        input_grid=grid,
        cell_grid=padded.coarsen(config.cell_px),
        sensors=sensors,
        steps=steps,
        dates=tuple(str(t) for t in times),
        sources=sources,
        contents=contents_of(sources),
        reading=tuple(
            str(stack.attrs[name])
            for name in ("bocage_options", "bocage_composite")
            if name in stack.attrs
        ),
        model=model.name,
        weights_id=model.weights_id,
        precision=model.precision,
        dims=model.dims(config.output),
        tokens_per_cell=tokens_per_cell,
        value_scale=model.value_scale(config.output),
        batch_size=1,
    )
    batch = config.batch_size or _windows_per_batch(model, resolved.tokens_per_window)
    if config.seam_free:
        batch = 1
    from dataclasses import replace

    return replace(resolved, batch_size=batch)


def _windows_per_batch(model: WindowModel, n_tokens: int) -> int:
    """What the model takes best on its device, if it knows."""
    if isinstance(model, ChoosesBatches):
        return model.windows_per_batch(n_tokens)
    return max(1, min(64, TOKENS_PER_BATCH // n_tokens))


def _steps(
    times: NDArray[np.datetime64], config: EmbedConfig
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    if len(times) == 0:
        raise InputError(
            got="a stack without dates",
            expected="at least one date",
            fix="check the dates you selected",
        )
    years = times.astype("datetime64[Y]").astype(int) + 1970
    if config.period == "year":
        return tuple(
            (int(year), tuple(int(i) for i in np.flatnonzero(years == year)))
            for year in np.unique(years)
        )
    span_days = int((times.max() - times.min()) / np.timedelta64(1, "D"))
    if span_days > MAX_SPAN_DAYS:
        raise InputError(
            got=f"dates from {times.min()} to {times.max()} ({span_days} days) as one embedding",
            expected="at most about a year, as the models were trained",
            fix="use --period year for one embedding per calendar year, or select dates",
        )
    middle = times.min() + np.timedelta64(span_days // 2, "D")
    year = int(middle.astype("datetime64[Y]").astype(int)) + 1970
    return ((year, tuple(range(len(times)))),)
