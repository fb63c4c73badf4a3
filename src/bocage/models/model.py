"""The public model: imagery in product units in, embeddings out.

Axes: B batch, H W pixels, h w patch rows and columns, T timesteps, C bands, S band sets, D width.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.models.checkpoint import LoadReport
from bocage.models.config import ModelConfig
from bocage.models.domain import DomainEncoder, data_extent, neighborhood_cells, reach_px
from bocage.models.encoded import Encoded, unknown_output
from bocage.models.encoder import Encoder
from bocage.models.engine import (
    FastEncoder,
    check_compile,
    choose_batch,
    choose_precision,
    fast_encoder,
)
from bocage.models.engine.sliding import SlidingEncoder, sliding_encoder
from bocage.models.inputs import (
    check_grid,
    check_patch_size,
    check_query_size,
    check_timestamps,
    read_array,
)
from bocage.models.missing import fill, normalization, prepare
from bocage.units import check_units as check_product_units

logger = logging.getLogger(__name__)

UNITS_PIXELS = 2048
"""About so many pixels of every batch of windows are checked: 1.2 ms, a tenth of what the smallest
network takes for a batch; all that a check would look at take 9 ms."""

WindowEncoder = Callable[[dict[str, NDArray[np.float32]], NDArray[np.int64]], NDArray[np.float32]]
"""(values {sensor: [B, T, C, H, W]}, timestamps [B, T, 3]) to an embedding grid [B, h, w, D]."""


@dataclass(frozen=True, kw_only=True)
class _Read:
    """Inputs that have been checked, on the device."""

    values: dict[str, Tensor]
    """Per sensor [B, H, W, T, C] without gaps; normalized but for the sensors in ``raw``."""

    timestamps: Tensor

    visible: dict[str, Tensor] | None
    """Tokens [B, h, w, T, S] that have enough data; None if all have."""

    raw: frozenset[str]
    """Sensors in product units, which the engine normalizes as it reads."""


class Model:
    """An OlmoEarth encoder with its rules for units, dates and missing data."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        name: str,
        weights_id: str,
        load_report: LoadReport | None = None,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        compile: bool | str = "auto",  # noqa: A002
    ) -> None:
        self.device = _device(device)
        check_compile(compile)
        self.compile = compile
        self.encoder = encoder.to(self.device).eval()
        self._asked_precision = precision  # the engine says why "auto" became what it is
        self.precision, self._precision_reason = choose_precision(precision, encoder, compile)
        if precision == "auto":
            logger.info("%s runs in %s: %s", name, self.precision, self._precision_reason)
        self.name = name
        self.weights_id = weights_id
        self.load_report = load_report
        self._warned_long = False
        self._sliding: SlidingEncoder | None = None

    @cached_property
    def engine(self) -> FastEncoder | None:
        """The encoder in its fastest form, built at first use; None where the plain one runs.

        It copies the weights: after changing those of ``encoder``, ``del model.engine``.
        """
        return fast_encoder(self.encoder, precision=self._asked_precision, compile=self.compile)

    @property
    def description(self) -> str:
        """How the model runs here, and why: precision, kernels or compiler, device.

        Builds the engine if that has not happened yet.
        """
        if self.engine is not None:
            return self.engine.description
        return f"{self.precision}, plain encoder on {self.device.type} ({self._precision_reason})"

    @property
    def config(self) -> ModelConfig:
        """The network."""
        return self.encoder.config

    @property
    def release(self) -> str:
        """Release whose rules apply: v1, v1.1, v1.2 or v1.3."""
        return self.config.release

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors the model reads."""
        return self.config.inputs

    @property
    def max_timesteps(self) -> int:
        """Longest series seen in training; longer ones run with a warning."""
        return self.config.max_timesteps

    def tokens_per_cell(self, sensor: str) -> int:
        """Tokens of one patch at one date: 1 from v1.1 on, one per band set in v1."""
        return len(self.config.band_sets[sensor])

    def windows_per_batch(self, n_tokens: int) -> int:
        """How many windows of ``n_tokens`` tokens to pass at once on this device; logs why."""
        n, reason = choose_batch(self.config, n_tokens, self.device, self.precision)
        logger.info("%s takes %d windows at once: %s", self.name, n, reason)
        return n

    def streams(self) -> int:
        """How many threads may call at once to best effect; 1 if one call fills all cores.

        Kernels of our own take any number of callers. Threads that each work on a batch do not
        wait for each other after every layer, as cores that share a batch do.
        """
        engine = self.engine if self.device.type == "cpu" else None
        several = engine is not None and engine.backend.takes_many_callers
        return torch.get_num_threads() if several else 1

    @contextmanager
    def in_streams(self, n: int) -> Iterator[Callable[[], None]]:
        """Share the cores between ``n`` threads, each of which first calls what this gives."""
        cores = torch.get_num_threads()
        try:
            yield lambda: torch.set_num_threads(max(1, cores // n))
        finally:
            # What a thread sets is its own, and the default of threads that come later.
            torch.set_num_threads(cores)

    def output_name(self, output: str = "auto") -> str:
        """What "auto" means for this model; raises ConfigError for outputs it does not have."""
        pooler = self.config.pooler
        known = {"pooled": True, "locations": pooler is not None}
        known["student"] = pooler is not None and bool(pooler.student_dims)
        if output == "auto":
            return "student" if known["student"] else "pooled"
        if not known.get(output, False):
            raise unknown_output(output, [name for name, there in known.items() if there])
        return output

    def dims(self, output: str = "auto") -> int:
        """Width of an embedding grid."""
        output, pooler = self.output_name(output), self.config.pooler
        if output == "pooled" or pooler is None:
            return self.config.width
        return pooler.width if output == "locations" else max(pooler.student_dims)

    def value_scale(self, output: str = "auto") -> float:
        """A power of two that brings the embeddings of this model into -1..1, for int8 codes.

        Embeddings leave a layer norm: four times its gain plus its bias bounds all but stray
        values. Of the v1.3 student the typical gain counts instead of the largest, which gives
        1.0, the scale of the public archive, for values with the archive's spread of 0.23.
        """
        output, pooler = self.output_name(output), self.encoder.attention_pooler
        norm: Any = self.encoder.norm
        if pooler is not None and output in {"student", "locations"}:
            norm = pooler.norm if output == "locations" else [*(pooler.student or ())][-1]
        gain, bias = norm.weight.detach(), norm.bias.detach()
        if output == "student":
            bound = 4 * float((gain**2 + bias**2).mean().sqrt())
        else:
            bound = float((bias.abs() + 4 * gain.abs()).max())
        return 2.0 ** max(0, math.ceil(math.log2(bound)))

    @torch.no_grad()
    def encode(
        self,
        inputs: Mapping[str, Any],
        timestamps: Any,
        *,
        patch_size: int = 4,
        normalize: bool = True,
        check_units: bool = True,
        location_query_patch_size: int | None = None,
    ) -> Encoded:
        """Embed a batch of crops.

        ``inputs`` {sensor: [B, H, W, T, C]} in product units, numpy or torch, NaN where there is
        no data; ``timestamps`` [B, T, 3] day 1-31, month 0-11, year. ``normalize=False`` takes
        values that are normalized already. A sensor, timestep, band or pixel may be missing for
        any sample; the result is that of the sample alone. Raises InputError on shapes, dates and
        units that do not fit.
        """
        read = self._read(
            inputs,
            timestamps,
            patch_size=patch_size,
            normalize=normalize,
            check_units=check_units,
            query_size=location_query_patch_size,
        )
        return self._encode(read, patch_size, location_query_patch_size)

    @torch.no_grad()
    def encode_grid(
        self,
        inputs: Mapping[str, Any],
        timestamps: Any,
        *,
        patch_size: int = 4,
        output: str = "auto",
        check_units: bool = True,
        location_query_patch_size: int | None = None,
    ) -> Tensor:
        """The embedding map [B, r_h, r_w, D] alone: ``encode(...).grid(output)`` with less work."""
        output = self.output_name(output)
        read = self._read(
            inputs,
            timestamps,
            patch_size=patch_size,
            normalize=True,
            check_units=check_units,
            query_size=location_query_patch_size,
        )
        if self._sliding is not None:
            return self._sliding.grid(
                read.values,
                read.timestamps,
                patch_size,
                output=output,
                visible=read.visible,
                location_query_patch_size=location_query_patch_size,
                raw=read.raw,
            )
        if output == "pooled" and self.engine is not None and read.visible is None:
            return self.engine.pooled(read.values, read.timestamps, patch_size, raw=read.raw)
        return self._encode(read, patch_size, location_query_patch_size).grid(output)

    def _encode(self, read: _Read, patch_size: int, query_size: int | None) -> Encoded:
        arguments: dict[str, Any] = {
            "visible": read.visible,
            "location_query_patch_size": query_size,
        }
        with self._autocast():
            if self.engine is not None:
                output = self.engine(
                    read.values, read.timestamps, patch_size, raw=read.raw, **arguments
                )
            else:
                output = self.encoder(read.values, read.timestamps, patch_size, **arguments)
        locations = output.locations
        return Encoded(
            tokens=output.tokens,
            visible=output.visible,
            locations=None if locations is None else locations.tokens,
            student=None if locations is None else locations.student,
        )

    def _read(
        self,
        inputs: Mapping[str, Any],
        timestamps: Any,
        *,
        patch_size: int,
        normalize: bool,
        check_units: bool,
        query_size: int | None,
    ) -> _Read:
        if not isinstance(inputs, Mapping) or len(inputs) == 0:
            raise InputError(
                got="no inputs" if isinstance(inputs, Mapping) else f"a {type(inputs).__name__}",
                expected=f"at least one of {', '.join(self.sensors)}",
                fix="pass {sensor: array [B, H, W, T, C]}",
            )
        arrays = {name: read_array(name, x, self.sensors) for name, x in inputs.items()}
        stamps = check_timestamps(timestamps)
        check_patch_size(patch_size, self.config.base_patch_size)
        check_query_size(query_size, patch_size, self.config)
        check_grid(arrays, stamps, patch_size, self.config)
        if stamps.shape[1] > self.max_timesteps and not self._warned_long:
            self._warned_long = True
            warnings.warn(
                f"{stamps.shape[1]} timesteps given, {self.name} was trained on at most "
                f"{self.max_timesteps}; longer series are untested, composite them by month",
                BocageWarning,
                stacklevel=4,
            )
        if check_units and normalize:
            for name, x in arrays.items():
                check_product_units(name, x.detach().cpu().numpy(), where="encode")

        values: dict[str, Tensor] = {}
        visible: dict[str, Tensor] = {}
        raw: set[str] = set()
        for name, x in arrays.items():
            pixels = x.to(self.device, torch.float32)
            rules: dict[str, Any] = {
                "band_sets": self.config.band_sets[name],
                "patch_size": patch_size,
                "copy_missing_bands": self.config.copies_missing_bands,
            }
            if normalize and self.engine is not None:
                values[name], seen = fill(name, pixels, normalization(name)[0], **rules)
                raw.add(name)
            else:
                values[name], seen = prepare(name, pixels, normalize=normalize, **rules)
            if seen is not None:
                visible[name] = seen
        if visible:
            visible = {
                name: visible.get(name, self._all(x, name, patch_size))
                for name, x in values.items()
            }
        return _Read(
            values=values,
            timestamps=stamps.to(self.device),
            visible=visible or None,
            raw=frozenset(raw),
        )

    def window_encoder(
        self,
        *,
        patch_size: int = 4,
        output: str = "auto",
        check_units: bool = True,
        location_query_patch_size: int | None = None,
    ) -> WindowEncoder:
        """A function of plain arrays for mapping: windows in, embedding grids out.

        Takes ({sensor: float32 [B, T, C, H, W]}, timestamps [B, T, 3]) and returns float32
        [B, h, w, D] with NaN where a cell saw nothing. Units are checked on evenly spaced pixels of
        every window.
        """
        output = self.output_name(output)

        def encode_windows(
            values: dict[str, NDArray[np.float32]], timestamps: NDArray[np.int64]
        ) -> NDArray[np.float32]:
            images = {name: np.moveaxis(x, (3, 4), (1, 2)) for name, x in values.items()}
            for name, x in images.items() if check_units else ():
                check_product_units(name, spread_pixels(x, UNITS_PIXELS), where="encode")
            grid = self.encode_grid(
                images,
                timestamps,
                patch_size=patch_size,
                output=output,
                check_units=False,
                location_query_patch_size=location_query_patch_size,
            )
            plain: NDArray[np.float32] = grid.float().cpu().numpy()
            return plain

        return encode_windows

    def domain_encoder(
        self,
        *,
        patch_size: int = 4,
        neighborhood_px: int | None = None,
        output: str = "auto",
        check_units: bool = True,
        location_query_patch_size: int | None = None,
    ) -> WindowEncoder:
        """Seam-free: like ``window_encoder``, for one large domain where each token has a window.

        ``neighborhood_px`` is the side of that window, None 16 patches. Takes a batch of one, of
        any size. ``reach_px`` says how far from an edge it matters what lies beyond.
        Raises ConfigError for v1 and v1.1, whose positions are not relative.
        """
        cells = neighborhood_cells(self.config, patch_size, neighborhood_px)
        view = copy.copy(self)
        view._sliding = sliding_encoder(self.encoder, self.engine, cells)
        if view._sliding is None:
            view.__dict__["engine"] = None  # the engine attends within whole windows
            view.precision = "bf16" if view.precision == "int8" else view.precision
            view.encoder = cast(Encoder, DomainEncoder(self.encoder, cells))
        encode = view.window_encoder(
            patch_size=patch_size,
            output=output,
            check_units=check_units,
            location_query_patch_size=location_query_patch_size,
        )
        per_patch = patch_size // (location_query_patch_size or patch_size)

        def encode_domain(
            values: dict[str, NDArray[np.float32]], timestamps: NDArray[np.int64]
        ) -> NDArray[np.float32]:
            shapes = {np.shape(x)[3:] for x in values.values()}
            if len(shapes) != 1 or any(n % patch_size for n in next(iter(shapes))):
                return encode(values, timestamps)  # which says what is wrong
            rows, cols = data_extent(values, patch_size)
            h, w = (n // patch_size for n in next(iter(values.values())).shape[3:])
            n_kept = (rows.stop - rows.start) * (cols.stop - cols.start)
            if n_kept in (0, h * w):
                return encode(values, timestamps)
            pixels, cells = (
                tuple(slice(part.start * n, part.stop * n) for part in (rows, cols))
                for n in (patch_size, per_patch)
            )
            inner = encode(
                {name: x[..., pixels[0], pixels[1]] for name, x in values.items()}, timestamps
            )
            shape = (1, h * per_patch, w * per_patch, inner.shape[-1])
            out = np.full(shape, np.nan, dtype=np.float32)
            out[:, cells[0], cells[1]] = inner
            return out

        return encode_domain

    def reach_px(self, patch_size: int, neighborhood_px: int | None = None) -> int:
        """How far an output of the domain encoder can look: a halo this wide is exact."""
        return reach_px(self.config, patch_size, neighborhood_px)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32" or self.engine is not None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _all(self, x: Tensor, name: str, patch_size: int) -> Tensor:
        n, rows, cols, times, _ = x.shape
        sets = len(self.config.band_sets[name])
        shape = (n, rows // patch_size, cols // patch_size, times, sets)
        return torch.ones(shape, dtype=torch.bool, device=self.device)


def spread_pixels(x: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Every k-th pixel in both directions of x [B, H, W, T, C], about ``count`` in all."""
    n_batch, rows, cols, times, _ = x.shape
    step = math.isqrt(n_batch * rows * cols * times // count)
    step = min(max(step, 1), rows, cols)
    return x[:, step // 2 :: step, step // 2 :: step]


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            got=f"device={str(device)!r} ({str(error).splitlines()[0]})",
            expected='a device that torch can use here, like "cpu" or "cuda"',
            fix='pass device="cpu", or install torch for your accelerator',
        ) from error
    return found
