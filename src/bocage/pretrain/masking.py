"""Which tokens a training step shows to the encoder, which it asks for, and which it leaves out.

Two strategies, both over whole tokens (a patch at one timestep in one band set), both vectorized
over the batch: ranks of random numbers decide, so counts are exact. Maps are only ever decoded.

Axes: B batch, h w patch rows and columns, T timesteps, S band sets of a modality, K band sets of
all sensors, N tokens of a band set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from bocage.errors import ConfigError, InputError
from bocage.pretrain.noise import sample_noise
from bocage.sensors import SENSORS

STRATEGIES = ("random_time_with_decode", "modality_cross_random")


class Role(IntEnum):
    """What happens to a token; the numbers are those of the official masks."""

    ENCODE = 0
    """The encoder sees it."""

    TARGET = 1
    """Neither shown nor asked for."""

    DECODE = 2
    """The predictor is asked for it."""

    MISSING = 3
    """There is no data."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How tokens are split."""

    strategy: str = "random_time_with_decode"
    """random_time_with_decode (v1.1 and later) or modality_cross_random (v1)."""

    encode_ratio: float = 0.5
    """Share of tokens, band sets or timesteps that are encoded."""

    decode_ratio: float = 0.5
    """Share of tokens that are decoded where tokens are drawn one by one."""

    random_ratio: float = 0.5
    """Probability that a sample hides single tokens rather than whole timesteps
    (random_time_with_decode)."""

    min_encoded_band_sets: int = 2
    """Fewest band sets that are encoded, where there are as many (modality_cross_random)."""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise _error("strategy", self.strategy, f"one of {', '.join(STRATEGIES)}")
        for name in ("encode_ratio", "decode_ratio"):
            if not 0 < getattr(self, name) < 1:
                raise _error(name, getattr(self, name), "a share between 0 and 1")
        if self.encode_ratio + self.decode_ratio > 1:
            both = self.encode_ratio + self.decode_ratio
            raise _error("encode_ratio + decode_ratio", both, "at most 1")
        if not 0 <= self.random_ratio <= 1:
            raise _error("random_ratio", self.random_ratio, "a probability")
        if self.min_encoded_band_sets < 1:
            raise _error("min_encoded_band_sets", self.min_encoded_band_sets, "1 or more")


def mask(
    present: Mapping[str, Tensor],
    config: MaskingConfig,
    generator: torch.Generator,
    *,
    ids: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Role of every token, int8 [B, h, w, T, S] per modality, on the CPU.

    ``present`` [B, h, w, T, S] is True where a token has data; maps have T = 1. With ``ids`` a
    sample's roles depend on the generator and its id, not on the rest of the batch. A sample
    without any sensor gets no DECODE; if all are so, InputError names them.
    """
    present = {m: p.cpu() for m, p in present.items()}
    first = next((p for m, p in present.items() if m in SENSORS), None)
    n_batch = len(next(iter(present.values())))
    names = [str(i) for i in range(n_batch)] if ids is None else list(ids)
    if first is None or not any(bool(p.any()) for m, p in present.items() if m in SENSORS):
        shown = ", ".join(names[:8]) + (" ..." if n_batch > 8 else "")
        raise InputError(
            got=f"a batch without any sensor data to encode (samples {shown})",
            expected=f"data of {', '.join(SENSORS)} in at least one sample",
            fix="leave these samples out, or build them again with a sensor",
        )
    rule = _random_time if config.strategy == STRATEGIES[0] else _cross_random
    n_tokens = sum(p[0].numel() for p in present.values())
    n_sets = sum(p.shape[-1] for p in present.values())
    noise = sample_noise(names, n_tokens + 2 * n_sets + first.shape[3] + 2, generator)
    return rule(present, config, _Numbers(noise))


class _Numbers:
    """Hands out columns of a table of random numbers, each once."""

    def __init__(self, noise: Tensor) -> None:
        self.noise, self.used = noise, 0

    def take(self, *shape: int) -> Tensor:
        """The next numbers [B, *shape]."""
        start, self.used = self.used, self.used + math.prod(shape)
        numbers: Tensor = self.noise[:, start : self.used].unflatten(1, shape)
        return numbers


def _random_time(
    present: Mapping[str, Tensor], config: MaskingConfig, numbers: _Numbers
) -> dict[str, Tensor]:
    """Half of the band sets are encoded and half decoded, by single tokens or by timesteps."""
    sensors = [m for m in present if m in SENSORS]
    has = torch.cat([present[m].movedim(-1, 1) for m in sensors], dim=1)  # [B, K, h, w, T]
    n_batch, n_sets, *_, n_times = has.shape
    has = has.reshape(n_batch, n_sets, -1, n_times)  # [B, K, cells, T]
    flat = has.flatten(2)
    n_tokens = flat.sum(-1)  # [B, K]

    set_here = n_tokens > 0
    n_here = set_here.sum(1, keepdim=True)
    rank = _ranks(numbers.take(n_sets), set_here)
    encodes = set_here & (rank < (config.encode_ratio * n_here).ceil())
    alone = n_here == 1  # then the one set is both encoded and decoded

    # Single tokens.
    rank = _ranks(numbers.take(flat.shape[-1] * n_sets).unflatten(1, (n_sets, -1)), flat)
    n_encode = (config.encode_ratio * n_tokens).floor()
    n_decode = (config.decode_ratio * n_tokens).floor()
    n_encode = torch.where(n_tokens == 1, 1.0, n_encode)  # nothing to split: show it
    encodes_tokens = encodes | alone | (n_tokens == 1)
    first = torch.where(encodes_tokens, n_encode, 0.0)[..., None]
    last = first + torch.where(~encodes | alone, n_decode, 0.0)[..., None]
    by_token = torch.full(flat.shape, int(Role.TARGET), dtype=torch.int8)
    by_token[rank < last] = Role.DECODE
    by_token[rank < first] = Role.ENCODE
    by_token = by_token.unflatten(-1, has.shape[2:])

    # Whole timesteps.
    step_here = has.any(dim=2).any(dim=1)  # [B, T]
    n_steps = step_here.sum(1, keepdim=True)
    rank = _ranks(numbers.take(n_times), step_here)
    encode_step = step_here & (rank < (config.encode_ratio * n_steps).ceil())
    own_step = torch.where(encodes[..., None], encode_step[:, None], ~encode_step[:, None])
    chosen = has & own_step[:, :, None]  # [B, K, cells, T]
    by_step = torch.where(
        chosen,
        torch.where(encodes, int(Role.ENCODE), int(Role.DECODE))[..., None, None],
        int(Role.TARGET),
    ).to(torch.int8)

    draws_tokens = (numbers.take(1) < config.random_ratio) | (n_steps <= 1) | alone
    draws_tokens = draws_tokens | ~chosen.flatten(2).any(-1)  # a set without data at its steps
    roles = torch.where(draws_tokens[..., None, None], by_token, by_step)
    roles[~has] = Role.MISSING

    counts = [present[m].shape[-1] for m in sensors]
    by_sensor = dict(zip(sensors, roles.split(counts, dim=1), strict=True))
    decodable = set_here.any(1)[:, None, None, None, None]
    decode = torch.where(decodable, int(Role.DECODE), int(Role.TARGET)).to(torch.int8)
    return {
        m: by_sensor[m].reshape(n_batch, p.shape[-1], *p.shape[1:4]).movedim(1, -1).contiguous()
        if m in by_sensor
        else torch.where(p, decode, int(Role.MISSING)).to(torch.int8)
        for m, p in present.items()
    }


def _cross_random(
    present: Mapping[str, Tensor], config: MaskingConfig, numbers: _Numbers
) -> dict[str, Tensor]:
    """Tokens of each modality split at random; then band sets drawn to encode and to decode."""
    set_here = torch.cat([p.flatten(1, 3).any(1) for p in present.values()], dim=1)  # [B, all S]
    is_sensor = torch.tensor([m in SENSORS for m, p in present.items() for _ in range(p.shape[-1])])
    encodable = set_here & is_sensor
    encodes = _random_subset(encodable, config.min_encoded_band_sets, numbers)
    decodes = _random_subset(set_here, 1, numbers) & encodable.any(1, keepdim=True)

    roles, start = {}, 0
    for m, p in present.items():
        flat = p.flatten(1)
        rank = _ranks(numbers.take(flat.shape[1]), flat)
        n_tokens = flat.sum(1, keepdim=True)
        n_encode = (config.encode_ratio * n_tokens).floor()
        n_decode = (config.decode_ratio * n_tokens).floor()
        own = slice(start, start := start + p.shape[-1])
        chosen_encode = encodes[:, own].repeat(1, flat.shape[1] // p.shape[-1])
        chosen_decode = decodes[:, own].repeat(1, flat.shape[1] // p.shape[-1])
        role = torch.full(flat.shape, int(Role.TARGET), dtype=torch.int8)
        role[chosen_encode & (rank < n_encode)] = Role.ENCODE
        role[chosen_decode & (rank >= n_encode) & (rank < n_encode + n_decode)] = Role.DECODE
        role[~flat] = Role.MISSING
        roles[m] = role
    _encode_something(roles)
    return {m: role.view(present[m].shape) for m, role in roles.items()}


def _random_subset(candidates: Tensor, fewest: int, numbers: _Numbers) -> Tensor:
    """A random subset [B, S] of the candidates, of a size uniform from ``fewest`` to all."""
    n_candidates = candidates.sum(1, keepdim=True)
    low = n_candidates.clamp(max=fewest)
    size = low + (numbers.take(1) * (n_candidates - low + 1)).floor()
    return candidates & (_ranks(numbers.take(candidates.shape[1]), candidates) < size)


def _encode_something(roles: dict[str, Tensor]) -> None:
    """In tiny crops the drawn band sets may hold no drawn token: then show the first there is."""
    sensors = [m for m in roles if m in SENSORS]
    empty = ~torch.cat([roles[m] == Role.ENCODE for m in sensors], dim=1).any(1)
    for b in empty.nonzero()[:, 0].tolist():
        for m in sensors:
            here = (roles[m][b] != Role.MISSING).nonzero()
            if len(here):
                roles[m][b, here[0, 0]] = Role.ENCODE
                break


def _ranks(noise: Tensor, among: Tensor) -> Tensor:
    """Random rank 0, 1, ... of each member of ``among`` on the last axis, others come last."""
    order = noise.masked_fill(~among, 2.0).argsort(dim=-1)
    places = torch.arange(noise.shape[-1]).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def _error(name: str, got: object, expected: str) -> ConfigError:
    return ConfigError(
        got=f"masking {name} {got!r}", expected=expected, fix=f"correct {name} of the masking"
    )
