"""Masks keep the rules of the releases: exact counts, whole tokens, nothing missing is touched."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bocage.errors import ConfigError, InputError
from bocage.pretrain.masking import STRATEGIES, MaskingConfig, Role, mask
from bocage.sensors import MAPS, SENSORS

S2, S1, LANDSAT = SENSORS
SETS = {S2: 3, S1: 1, LANDSAT: 2, "worldcover": 1, "openstreetmap_raster": 1}


def present_tokens(
    *,
    seed: int,
    n_samples: int,
    cells: int,
    n_times: int,
    modalities: tuple[str, ...],
    share: float,
) -> dict[str, torch.Tensor]:
    """Random presence; the first sample always has some sensor."""
    generator = torch.Generator().manual_seed(seed)
    present = {}
    for name in modalities:
        shape = (n_samples, cells, cells, n_times if name in SENSORS else 1, SETS[name])
        present[name] = torch.rand(shape, generator=generator) < share
    present[modalities[0]][0, 0, 0, 0, 0] = True
    return present


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "n_samples": st.integers(1, 4),
        "cells": st.integers(1, 3),
        "n_times": st.integers(1, 4),
        "modalities": st.lists(
            st.sampled_from(list(SETS)), min_size=0, max_size=5, unique=True
        ).map(lambda names: tuple(dict.fromkeys([S2, *names]))),
        "share": st.sampled_from([0.1, 0.6, 1.0]),
    }
)


def roles_of(case: dict, strategy: str) -> tuple[dict, dict]:
    present = present_tokens(**case)
    before = {m: p.clone() for m, p in present.items()}
    config = MaskingConfig(strategy=strategy)
    roles = mask(present, config, torch.Generator().manual_seed(case["seed"]))
    assert all(torch.equal(before[m], p) for m, p in present.items())
    return present, roles


@settings(deadline=None, max_examples=60)
@given(case=cases, strategy=st.sampled_from(STRATEGIES))
def test_every_token_has_one_role_and_missing_stays_missing(case: dict, strategy: str) -> None:
    present, roles = roles_of(case, strategy)
    for m, p in present.items():
        assert roles[m].shape == p.shape
        assert roles[m].dtype == torch.int8
        assert torch.equal(roles[m] == Role.MISSING, ~p)
        assert bool(torch.isin(roles[m], torch.tensor([0, 1, 2, 3], dtype=torch.int8)).all())
        if m in MAPS:
            assert not bool((roles[m] == Role.ENCODE).any())
    for b in range(case["n_samples"]):
        sensors = [m for m in present if m in SENSORS]
        something = any(bool(present[m][b].any()) for m in sensors)
        shown = any(bool((roles[m][b] == Role.ENCODE).any()) for m in sensors)
        asked = any(bool((r[b] == Role.DECODE).any()) for r in roles.values())
        assert shown == something
        assert something or not asked


def random_counts(n: int) -> set[tuple[int, int]]:
    """(encoded, decoded) tokens that the random rule may give a set of n tokens."""
    if n == 1:
        return {(1, 0)}
    return {(n // 2, 0), (0, n // 2)}


@settings(deadline=None, max_examples=80)
@given(case=cases, random_ratio=st.sampled_from([0.0, 0.5, 1.0]))
def test_random_time_counts_are_exact(case: dict, random_ratio: float) -> None:
    """A plain reading of the rules, sample by sample: what may come out, and nothing else."""
    present = present_tokens(**case)
    config = MaskingConfig(random_ratio=random_ratio)
    roles = mask(present, config, torch.Generator().manual_seed(case["seed"]))
    for b in range(case["n_samples"]):
        sets = {
            (m, i): (present[m][b, ..., i], roles[m][b, ..., i])
            for m in present
            if m in SENSORS
            for i in range(SETS[m])
            if bool(present[m][b, ..., i].any())
        }
        for m in present:
            if m in MAPS and sets:
                assert bool((roles[m][b][present[m][b]] == Role.DECODE).all())
        if not sets:
            continue
        if len(sets) == 1:
            here, role = next(iter(sets.values()))
            n = int(here.sum())
            counts = (int((role == Role.ENCODE).sum()), int((role == Role.DECODE).sum()))
            assert counts == ((1, 0) if n == 1 else (n // 2, n // 2))
            continue
        steps = torch.stack([here.any(dim=(0, 1)) for here, _ in sets.values()]).any(0)
        n_steps = int(steps.sum())
        encoding, by_step, encode_steps, decode_steps = 0, [], set(), set()
        for here, role in sets.values():
            n = int(here.sum())
            n_encode, n_decode = (int((role == r).sum()) for r in (Role.ENCODE, Role.DECODE))
            assert n_encode == 0 or n_decode == 0
            encoding += n_encode > 0
            used = role != Role.TARGET
            whole = torch.equal(used & here, here & (used & here).any(dim=(0, 1)))
            if (n_encode, n_decode) not in random_counts(n):
                # Then it must be by timesteps: all present tokens of a step, or none of them.
                assert whole
                assert random_ratio < 1
                assert n_steps > 1
                by_step.append((here, role))
        for here, role in by_step:
            for t in range(here.shape[-1]):
                if bool(here[..., t].any()):
                    kinds = set(role[..., t][here[..., t]].tolist())
                    assert len(kinds) == 1
                    encode_steps |= {t} if kinds == {Role.ENCODE} else set()
                    decode_steps |= {t} if kinds == {Role.DECODE} else set()
        assert not encode_steps & decode_steps
        assert len(encode_steps) <= math.ceil(n_steps / 2)
        assert len(decode_steps) <= n_steps - math.ceil(n_steps / 2)
        # A set of one token is shown even if its set is to be decoded.
        lone = sum(int(here.sum()) == 1 for here, _ in sets.values())
        assert math.ceil(len(sets) / 2) <= encoding <= math.ceil(len(sets) / 2) + lone


@settings(deadline=None, max_examples=60)
@given(case=cases)
def test_cross_random_counts_are_exact(case: dict) -> None:
    present, roles = roles_of(case, "modality_cross_random")
    for b in range(case["n_samples"]):
        encoded_sets, encodable = 0, 0
        for m in present:
            n = int(present[m][b].sum())
            shown, asked = (roles[m][b] == Role.ENCODE, roles[m][b] == Role.DECODE)
            assert int(shown.sum()) <= max(n // 2, 1)
            assert int(asked.sum()) <= n // 2
            encoded_sets += int(shown.any(dim=(0, 1, 2)).sum())
            encodable += int(present[m][b].any(dim=(0, 1, 2)).sum()) if m in SENSORS else 0
        assert encoded_sets <= encodable


def full(n_samples: int = 400, n_times: int = 4) -> dict[str, torch.Tensor]:
    sets = {S2: 1, S1: 1, LANDSAT: 1, "worldcover": 1}
    return {
        m: torch.ones(n_samples, 2, 2, n_times if m in SENSORS else 1, s, dtype=torch.bool)
        for m, s in sets.items()
    }


@pytest.mark.parametrize("random_ratio", [0.0, 0.2, 0.5, 1.0])
def test_the_share_of_random_samples_is_the_one_asked_for(random_ratio: float) -> None:
    roles = mask(full(), MaskingConfig(random_ratio=random_ratio), torch.Generator().manual_seed(0))
    by_step = torch.ones(400, dtype=torch.bool)
    for m in (S2, S1, LANDSAT):
        flat = roles[m].flatten(1, 2).squeeze(-1)  # [B, cells, T]
        by_step &= (flat == flat[:, :1]).all(1).all(1)
    # Half of 16 tokens drawn one by one are whole steps with probability below 1e-3.
    expected = 400 * (1 - random_ratio)
    assert abs(int(by_step.sum()) - expected) <= 4 * math.sqrt(400 * 0.25) * (0 < random_ratio < 1)


def test_each_sensor_is_encoded_two_times_in_three() -> None:
    roles = mask(full(), MaskingConfig(), torch.Generator().manual_seed(1))
    for m in (S2, S1, LANDSAT):
        encodes = int((roles[m] == Role.ENCODE).flatten(1).any(1).sum())
        assert abs(encodes - 400 * 2 / 3) <= 4 * math.sqrt(400 * 2 / 9)


def test_cross_random_draws_the_numbers_of_band_sets_evenly() -> None:
    present = {
        m: torch.ones(600, 3, 3, 3, s, dtype=torch.bool)
        if m in SENSORS
        else torch.ones(600, 3, 3, 1, s, dtype=torch.bool)
        for m, s in SETS.items()
    }
    config = MaskingConfig(strategy="modality_cross_random")
    roles = mask(present, config, torch.Generator().manual_seed(0))
    encoded = torch.cat(
        [(r == Role.ENCODE).any(dim=3).any(dim=2).any(dim=1) for r in roles.values()], 1
    )
    decoded = torch.cat(
        [(r == Role.DECODE).any(dim=3).any(dim=2).any(dim=1) for r in roles.values()], 1
    )
    sizes = encoded.sum(1).bincount(minlength=7)
    assert sizes[:2].sum() == 0  # at least two of six
    assert all(abs(int(n) - 120) <= 4 * math.sqrt(600 * 0.2 * 0.8) for n in sizes[2:7])
    sizes = decoded.sum(1).bincount(minlength=9)
    assert sizes[0] == 0
    assert all(abs(int(n) - 75) <= 4 * math.sqrt(600 / 8 * 7 / 8) for n in sizes[1:9])
    assert bool((encoded & decoded).any())  # a band set may be both


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sample_is_masked_the_same_whatever_stands_beside_it(strategy: str) -> None:
    present = present_tokens(
        seed=3, n_samples=4, cells=3, n_times=3, modalities=tuple(SETS), share=0.8
    )
    config, ids = MaskingConfig(strategy=strategy), ["a", "b", "c", "d"]
    together = mask(present, config, torch.Generator().manual_seed(7), ids=ids)
    for part in ([0, 1], [2, 3], [3, 0, 1]):
        apart = mask(
            {m: p[part] for m, p in present.items()},
            config,
            torch.Generator().manual_seed(7),
            ids=[ids[i] for i in part],
        )
        assert all(torch.equal(apart[m], together[m][part]) for m in present)
    other = mask(present, config, torch.Generator().manual_seed(8), ids=ids)
    assert any(not torch.equal(other[m], together[m]) for m in present)


def test_one_sensor_with_one_timestep_is_split_in_two() -> None:
    present = {S2: torch.ones(5, 4, 4, 1, 1, dtype=torch.bool)}
    roles = mask(present, MaskingConfig(), torch.Generator().manual_seed(0))[S2].flatten(1)
    assert ((roles == Role.ENCODE).sum(1) == 8).all()
    assert ((roles == Role.DECODE).sum(1) == 8).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_without_sensors_is_refused_by_name(strategy: str) -> None:
    present = {
        S2: torch.zeros(2, 2, 2, 3, 1, dtype=torch.bool),
        "worldcover": torch.ones(2, 2, 2, 1, 1, dtype=torch.bool),
    }
    config = MaskingConfig(strategy=strategy)
    with pytest.raises(InputError, match="tile_7, tile_9"):
        mask(present, config, torch.Generator(), ids=["tile_7", "tile_9"])
    with pytest.raises(InputError, match="without any sensor"):
        mask({"worldcover": present["worldcover"]}, config, torch.Generator())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"strategy": "tubes"}, "strategy"),
        ({"encode_ratio": 1.0}, "encode_ratio"),
        ({"encode_ratio": 0.6, "decode_ratio": 0.6}, "encode_ratio"),
        ({"random_ratio": 1.5}, "random_ratio"),
        ({"min_encoded_band_sets": 0}, "min_encoded_band_sets"),
    ],
)
def test_an_impossible_masking_is_refused(options: dict, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        MaskingConfig(**options)
