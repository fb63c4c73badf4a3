"""The fast encoder: called like ``Encoder``, with the same answers within its precision.

What it adds to a backend (``cpu.py`` or ``compiled.py``) is everything that depends only on shape
and dates, computed once and kept; hidden tokens; the outputs. A backend is four functions:
``embed`` values to tokens, ``prepare`` for a shape and its dates, ``run`` the blocks, ``pool``.

Axes: B batch, h w patch rows and columns, P = h w places, T timesteps, S band sets of all sensors
together, N = P T S tokens in this order, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from bocage.models.attention import Block
from bocage.models.encoder import Encoder, EncoderOutput
from bocage.models.engine import tables
from bocage.models.engine.locations import WindowShape
from bocage.models.engine.tables import Recent
from bocage.models.pooler import AttentionPooler, Locations, location_positions

if TYPE_CHECKING:
    from bocage.models.engine.compiled import CompiledBackend
    from bocage.models.engine.cpu import CpuBackend

NUMBERS_AT_ONCE = 1024 * 768
"""Tokens times width of a CPU batch. Larger activations leave the caches: base in bf16 took 25 ms
for each of 4 windows of 256 tokens and 32 for each of 8 (2 cores, 2026-11-21)."""


class FastEncoder:
    """Same arguments and results as ``Encoder.forward``; holds its own copy of the weights."""

    def __init__(
        self, encoder: Encoder, backend: CpuBackend | CompiledBackend, description: str
    ) -> None:
        self.encoder = encoder
        self.config = encoder.config
        self.backend = backend
        self.description = description
        self._encodings: Recent[dict[str, Tensor]] = Recent()
        self._prepared: Recent[Any] = Recent()

    @torch.no_grad()
    def __call__(
        self,
        values: Mapping[str, Tensor],
        timestamps: Tensor,
        patch_size: int,
        *,
        visible: Mapping[str, Tensor] | None = None,
        location_query_patch_size: int | None = None,
        raw: Set[str] = frozenset(),
    ) -> EncoderOutput:
        """See ``Encoder.forward``; values of the sensors in ``raw`` are in product units."""
        side = patch_size // (location_query_patch_size or patch_size)
        found: EncoderOutput = _join(
            [
                self._outputs(*part, patch_size, side, raw)
                for part in self._parts(values, timestamps, visible, patch_size)
            ]
        )
        return found

    @torch.no_grad()
    def pooled(
        self,
        values: Mapping[str, Tensor],
        timestamps: Tensor,
        patch_size: int,
        *,
        raw: Set[str] = frozenset(),
    ) -> Tensor:
        """The map [B, h, w, D] alone, where nothing is hidden: tokens are never written out.

        Mean over timesteps and band sets of each sensor, then over sensors.
        """
        maps = []
        for part, stamps, _ in self._parts(values, timestamps, None, patch_size):
            x = self._encode(part, stamps, patch_size, raw, None)  # [B, h, w, T, S, D]
            times = x.shape[3]
            shares = [
                torch.full((n_sets,), 1 / (n_sets * times * len(part)), device=x.device)
                for n_sets in self._sets(part)
            ]
            maps.append(self.backend.pool(x.flatten(3, 4), torch.cat(shares).repeat(times)))
        return torch.cat(maps)

    def _parts(
        self,
        values: Mapping[str, Tensor],
        timestamps: Tensor,
        visible: Mapping[str, Tensor] | None,
        patch_size: int,
    ) -> Iterator[tuple[dict[str, Tensor], Tensor, dict[str, Tensor] | None]]:
        """Values in the order of the model, dates and visible tokens of samples to take at once."""
        names = [name for name in self.config.modalities if name in values]
        n_batch, rows, cols, times, _ = values[names[0]].shape
        n_once = max(1, n_batch)
        if timestamps.device.type == "cpu":
            places = (rows // patch_size) * (cols // patch_size)
            n_tokens = places * times * sum(self._sets(names))
            n_once = max(1, NUMBERS_AT_ONCE // (n_tokens * self.config.width))
        for first in range(0, max(1, n_batch), n_once):
            part = slice(first, first + n_once)
            yield (
                {name: values[name][part] for name in names},
                timestamps[part],
                None if visible is None else {name: visible[name][part] for name in names},
            )

    def _sets(self, sensors: Iterable[str]) -> list[int]:
        """How many band sets each sensor has."""
        return [len(self.config.band_sets[name]) for name in sensors]

    def _encode(
        self,
        values: dict[str, Tensor],
        timestamps: Tensor,
        patch_size: int,
        raw: Set[str],
        keep: Tensor | None,
    ) -> Tensor:
        """Tokens [B, h, w, T, S, D] after the last block; ``keep`` [B, N] hides the others."""
        _, rows, cols, _, _ = next(iter(values.values())).shape
        grid, step = (rows // patch_size, cols // patch_size), float(patch_size)
        encodings = self._encodings.get(
            lambda: {
                name: self.encoder.composite_encodings(name, grid, timestamps, step)
                for name in values
            },
            tuple(values),
            grid,
            step,
            timestamps,
        )
        x = self.backend.embed(values, encodings, patch_size, raw)
        prepared = self._prepared.get(
            lambda: self._prepare(grid, x.shape[3], x.shape[4], timestamps, step),
            grid,
            x.shape[4],
            step,
            timestamps,
        )
        return self.backend.run(x.flatten(1, 4), prepared, keep).view(x.shape)

    def _outputs(  # noqa: PLR0917 - one part of a call
        self,
        values: dict[str, Tensor],
        timestamps: Tensor,
        visible: dict[str, Tensor] | None,
        patch_size: int,
        queries_per_patch: int,
        raw: Set[str],
    ) -> EncoderOutput:
        """Everything that ``Encoder.forward`` returns, of a part of a batch."""
        keep: Tensor | None = None
        if visible is not None:
            keep = torch.cat([visible[name] for name in values], dim=-1).flatten(1)
            keep = None if bool(keep.all()) else keep
        x = self._encode(values, timestamps, patch_size, raw, keep)
        norm = self.encoder.norm
        x = functional.layer_norm(x.float(), x.shape[-1:], norm.weight, norm.bias, norm.eps)
        locations = None
        if self.config.pooler is not None:
            window = WindowShape(
                grid_hw=(x.shape[1], x.shape[2]),
                times=x.shape[3],
                n_sets=x.shape[4],
                queries_per_patch=queries_per_patch,
                step=float(patch_size),
            )
            locations = self._locations(x.flatten(1, 4), keep, window)
        tokens = dict(zip(values, x.split(self._sets(values), dim=4), strict=True))
        if visible is None:
            visible = {
                name: torch.ones(part.shape[:-1], dtype=torch.bool, device=x.device)
                for name, part in tokens.items()
            }
        else:
            tokens = {
                name: part.masked_fill(~visible[name][..., None], 0)
                for name, part in tokens.items()
            }
        return EncoderOutput(tokens=tokens, visible=visible, locations=locations)

    def _locations(self, x: Tensor, keep: Tensor | None, window: WindowShape) -> Locations:
        """What the pooler makes of fp32 tokens [B, N, D], in fp32."""
        if self.backend.pooler is not None:
            return self.backend.pooler(x, keep, window)
        places = location_positions(window.grid_hw, 1, window.step, x.device).flatten(0, 1)
        positions = places.repeat_interleave(window.times * window.n_sets, 0)[None]
        valid = None if keep is None else keep | ~keep.any(dim=1, keepdim=True)
        pooler = cast(AttentionPooler, self.encoder.attention_pooler)
        with torch.autocast(x.device.type, self.backend.dtype, self.backend.dtype != torch.float32):
            found = pooler(
                x,
                positions,
                valid,
                grid_hw=window.grid_hw,
                queries_per_patch=window.queries_per_patch,
                step=window.step,
            )
        return Locations(
            tokens=found.tokens.float(),
            positions=found.positions,
            student=None if found.student is None else found.student.float(),
        )

    def _prepare(
        self, grid: tuple[int, int], times: int, n_sets: int, timestamps: Tensor, step: float
    ) -> Any:
        positions = self.config.positions
        angles = None
        if positions.n_coordinates:
            places = tables.grid_places(grid, step, positions)
            angles = []
            for module in self.encoder.blocks:
                block = cast(Block, module)
                frequencies = block.attn.frequencies().detach().float().cpu()
                frequencies = frequencies.expand(-1, block.attn.heads, -1)
                time = tables.time_angles(timestamps.cpu(), positions, frequencies)
                angles.append((time, tables.place_angles(places, frequencies)))
        order = tables.token_order(grid[0] * grid[1], times, n_sets)
        return self.backend.prepare(angles, order)


def _join(parts: list[Any]) -> Any:
    """Outputs of parts of a batch as one: tensors behind each other, at whatever depth."""
    first = parts[0]
    if first is None or len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {name: _join([part[name] for part in parts]) for name in first}
    names = [field.name for field in fields(first)]
    return replace(first, **{name: _join([getattr(p, name) for p in parts]) for name in names})
