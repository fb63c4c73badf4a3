"""Everything random in a training step, drawn before the network runs.

The plan is made of integers and a few factors on the CPU: which tokens are encoded and decoded,
where each prediction's target is, which bands and branches are dropped. The network draws nothing.

Axes: V views, B samples, R = V B rows, N decoded tokens of one modality, C bands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bocage.errors import InputError
from bocage.models.config import ModelConfig, band_names
from bocage.models.selection import Picked, Selection, select
from bocage.pretrain.batch import Batch
from bocage.pretrain.distillation import GRAM_TOKENS
from bocage.pretrain.losses import Pairs
from bocage.pretrain.masking import Role, mask
from bocage.pretrain.noise import sample_noise
from bocage.pretrain.objective_config import ObjectiveConfig
from bocage.pretrain.supervision import MAP_TASKS
from bocage.sensors import MAPS, SENSORS


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Everything random in a step, drawn before the network runs."""

    encode: Selection
    decode: Selection
    target: Selection
    pairs: dict[str, Pairs]
    """Which prediction belongs to which target, per decoded modality."""

    order: Tensor
    """Which sample of which view each row is [R]: view x B + sample. Rows of equal length are
    neighbors, so that attention needs no padding."""

    band_keep: dict[str, Tensor] | None
    """[R, C]; None without band dropout."""

    branch_scale: Tensor | None
    """[depth, 2, R]; None without stochastic depth."""

    location_query_patch_size: int | None
    """Pixels per side of a location query; None without location tokens."""

    map_rows: dict[str, Tensor]
    """Rows [k] that have each supervised map."""

    compared: Tensor
    """Location tokens whose similarities the readout must keep."""


def plan_step(
    objective: ObjectiveConfig,
    config: ModelConfig,
    batch: Batch,
    generator: torch.Generator,
    *,
    training: bool = True,
) -> StepPlan:
    """Masks, dropped bands and skipped branches of one step, on the CPU.

    Without ``training`` nothing is dropped or skipped.
    """
    _check(batch, config)
    present = {m: batch.present[m].cpu() for m in config.modalities if m in batch.present}
    n_samples, n_views = len(batch.ids), objective.n_views
    views = [mask(present, objective.masking, generator, ids=batch.ids) for _ in range(n_views)]
    roles = {m: torch.cat([view[m] for view in views]) for m in present}
    order = _row_order(roles)
    roles = {m: r[order] for m, r in roles.items()}
    sample = order % n_samples
    decode = select({m: r == Role.DECODE for m, r in roles.items()}, sample)
    wanted = {}
    for m, r in roles.items():
        any_row = torch.zeros_like(present[m])
        any_row.index_put_((sample,), r == Role.DECODE, accumulate=True)
        wanted[m] = any_row
    target = select(wanted, torch.arange(n_samples))
    keep: list[dict[str, Tensor]] = []
    scale = None
    if training:
        keep = [_band_keep(objective, config, batch, generator) for _ in range(n_views)]
        scale = _branch_scale(config, batch, generator, n_views)
    query = _query_size(objective, config, batch, present, generator)
    return StepPlan(
        location_query_patch_size=query,
        map_rows=_map_rows(objective, config, present, sample),
        compared=_compared(objective, batch, present, query, generator),
        encode=select(
            {m: r == Role.ENCODE for m, r in roles.items() if m in config.inputs}, sample
        ),
        decode=decode,
        target=target,
        pairs=_pairs(decode, target, objective.same_target),
        order=order,
        band_keep={m: torch.cat([k[m] for k in keep])[order] for m in keep[0]} if keep else None,
        branch_scale=None if scale is None else scale[:, :, order],
    )


def _check(batch: Batch, config: ModelConfig) -> None:
    """Refuse a batch that was made for another network, or is not one grid."""
    p, n_times = batch.patch_size, batch.timestamps.shape[1]
    for m in config.modalities:
        if m not in batch.present or m not in batch.values:
            continue
        n_samples, height, width, *_ = batch.values[m].shape
        cells = (n_samples, height // p, width // p, n_times if m in SENSORS else 1)
        values = (len(batch.ids), cells[1] * p, cells[2] * p, cells[3], len(band_names(m)))
        present = (*cells, len(config.band_sets[m]))
        for what, x, expected in (
            ("values", batch.values[m], values),
            ("present", batch.present[m], present),
        ):
            if tuple(x.shape) != expected:
                raise InputError(
                    got=f"{what} of {m} of shape {list(x.shape)} in a batch with patch size {p}",
                    expected=f"{list(expected)}, for this network's band sets",
                    fix="make the batch with the band sets and the patch size of the network",
                )
        if batch.values[m].dtype != torch.float32:
            raise InputError(
                got=f"values of {m} of type {batch.values[m].dtype}",
                expected="float32",
                fix="normalize to float32; mixed precision is the loop's matter",
            )


def _query_size(
    objective: ObjectiveConfig,
    config: ModelConfig,
    batch: Batch,
    present: Mapping[str, Tensor],
    generator: torch.Generator,
) -> int | None:
    """A random divisor of the patch size that keeps the location queries few enough."""
    if config.pooler is None:
        return None
    n_cells = next(iter(present.values()))[0, :, :, 0, 0].numel()
    sizes = [
        size
        for size in range(1, batch.patch_size)
        if batch.patch_size % size == 0
        and n_cells * (batch.patch_size // size) ** 2 <= objective.max_location_queries
    ]
    sizes.append(batch.patch_size)
    return sizes[int(torch.randint(len(sizes), (1,), generator=generator))]


def _map_rows(
    objective: ObjectiveConfig, config: ModelConfig, present: Mapping[str, Tensor], sample: Tensor
) -> dict[str, Tensor]:
    """Rows that have each map, of those maps that any has."""
    if not objective.supervision_weight or config.pooler is None:
        return {}
    rows = {
        m: present[m].flatten(1).any(1)[sample].nonzero()[:, 0] for m in MAP_TASKS if m in present
    }
    return {m: r for m, r in rows.items() if len(r)}


def _compared(
    objective: ObjectiveConfig,
    batch: Batch,
    present: Mapping[str, Tensor],
    query: int | None,
    generator: torch.Generator,
) -> Tensor:
    """Numbers of the location tokens for the Gram matrices."""
    if not objective.student_weight or query is None:
        return torch.empty(0, dtype=torch.long)
    n_cells = next(iter(present.values()))[0, :, :, 0, 0].numel()
    n_tokens = n_cells * (batch.patch_size // query) ** 2 * len(batch.ids) * objective.n_views
    return torch.randperm(n_tokens, generator=generator)[:GRAM_TOKENS]


def _band_keep(
    objective: ObjectiveConfig, config: ModelConfig, batch: Batch, generator: torch.Generator
) -> dict[str, Tensor]:
    """Factor 0 or 1 of each band [B, C]; every band set keeps at least one."""
    keep: dict[str, Tensor] = {}
    if not objective.band_dropout:
        return keep
    for m in objective.band_dropout_modalities:
        if m not in batch.values or m not in config.inputs:
            continue
        sets = config.band_sets[m]
        n_bands = batch.values[m].shape[-1]
        noise = sample_noise(batch.ids, n_bands + len(sets), generator)
        rates = torch.rand(len(sets), generator=generator) * objective.band_dropout
        kept = torch.ones(len(batch.ids), n_bands)
        for i, bands in enumerate(sets):
            if len(bands) == 1:
                continue
            here = noise[:, list(bands)] >= rates[i]
            lone = (noise[:, n_bands + i] * len(bands)).long()
            here[torch.arange(len(here)), lone] |= ~here.any(1)
            kept[:, list(bands)] = here.float()
        keep[m] = kept
    return keep


def _branch_scale(
    config: ModelConfig, batch: Batch, generator: torch.Generator, n_views: int
) -> Tensor | None:
    """Stochastic depth [depth, 2, R]: 0 skips a branch, the others grow to keep the mean."""
    if not config.drop_path:
        return None
    noise = torch.cat(
        [sample_noise(batch.ids, 2 * config.depth, generator) for _ in range(n_views)]
    )
    kept = (noise >= config.drop_path).float() / (1 - config.drop_path)
    return kept.T.reshape(config.depth, 2, -1)


def _row_order(roles: Mapping[str, Tensor]) -> Tensor:
    """Rows sorted by the tokens they encode, then by those they decode."""
    every = torch.cat([r.flatten(1) for r in roles.values()], dim=1)
    order = (every == Role.DECODE).sum(1).argsort(stable=True)
    return order[(every == Role.ENCODE).sum(1)[order].argsort(stable=True)]


def _pairs(decode: Selection, target: Selection, same_target: float | None) -> dict[str, Pairs]:
    """Where the prediction and the target of each decoded token are, per modality."""
    n_rows = len(decode.counts)
    number = torch.empty_like(decode.row)  # of the target of each decoded token
    n_before, start = 0, 0
    in_order = decode.source.argsort()
    for own, wanted in zip(decode.picked, target.picked, strict=True):
        # Both are sorted by sample, place and timestep within their rows.
        found = torch.searchsorted(_address(wanted, target.grid_hw), _address(own, target.grid_hw))
        number[in_order[start : start + len(own.row)]] = found + n_before
        n_before, start = n_before + len(wanted.row), start + len(own.row)
    pairs = {}
    for modality in dict.fromkeys(m for m, _ in decode.band_sets):
        sets = [i for i, (m, _) in enumerate(decode.band_sets) if m == modality]
        tokens = ((decode.set_number >= sets[0]) & (decode.set_number <= sets[-1])).nonzero()[:, 0]
        if not len(tokens):
            continue
        row = decode.row[tokens]
        counts = row.bincount(minlength=n_rows)
        within = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        both = torch.zeros(2, n_rows, int(counts.max()), dtype=torch.long)
        both[0, row, within], both[1, row, within] = tokens, number[tokens]
        pairs[modality] = Pairs(
            predictions=both[0],
            targets=both[1],
            counts=counts,
            same_target=same_target if modality in MAPS else None,
        )
    return pairs


def _address(picked: Picked, grid_hw: tuple[int, int]) -> Tensor:
    """One number per token that grows with sample, place and timestep (fewer than 65536)."""
    cell = (picked.sample * grid_hw[0] + picked.cell_row) * grid_hw[1] + picked.cell_col
    return cell * 2**16 + picked.time
