"""Crop shapes against the specification's table, closed forms and brute force."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from bocage.errors import ConfigError
from bocage.pretrain.modalities import MODALITIES
from bocage.pretrain.sampling import (
    SamplingConfig,
    draw_shape,
    draw_start,
    step_range,
    token_rates,
)

ALL = tuple(MODALITIES)
SENSORS = ("sentinel2_l2a", "sentinel1", "landsat")
V1 = SamplingConfig.for_release("v1")
V12 = SamplingConfig.for_release("v1.2")
V13 = SamplingConfig.for_release("v1.3")


def draw(config, n, modalities=ALL, *, max_steps=12, size_px=128, seed=0):
    rng = np.random.default_rng(seed)
    return [
        draw_shape(config, modalities, size_px=size_px, max_steps=max_steps, rng=rng)
        for _ in range(n)
    ]


@pytest.mark.parametrize("config", [V1, V12])
def test_timesteps_per_side_are_the_table_of_the_specification(config):
    # Specification 8.2: hw<=5: 12 steps, 6: 9, 7: 6, 8: 4, 9: 3, 10 and 11: 2, 12: 1.
    table = {**dict.fromkeys(range(1, 6), 12), 6: 9, 7: 6, 8: 4, 9: 3, 10: 2, 11: 2, 12: 1}
    assert {side: step_range(config, ALL, side, 12)[1] for side in range(1, 13)} == table
    assert token_rates(config, ALL) == (6, 6)


def test_the_correct_count_gives_longer_series():
    correct = SamplingConfig.for_release("v1.2", correct_count=True)
    assert token_rates(correct, ALL) == (3, 6)
    for side in range(1, 13):
        most = step_range(correct, ALL, side, 12)[1]
        assert most == min(12, (2250 - 6 * side**2) // (3 * side**2))
        assert most >= step_range(V12, ALL, side, 12)[1]


def test_fewer_modalities_leave_room_for_more_steps():
    assert token_rates(V12, ("sentinel2_l2a",)) == (3, 0)
    assert token_rates(V1, ("sentinel1", "landsat", "worldcover")) == (3, 1)
    assert step_range(V12, ("sentinel1",), 12, 12) == (1, 12)


def test_v1_to_v12_draw_patch_size_and_side_uniformly():
    shapes = draw(V12, 8000)
    for values, n in (([s.patch_size for s in shapes], 8), ([s.side for s in shapes], 12)):
        counts = [Counter(values)[v] for v in range(1, n + 1)]
        assert sum(counts) == 8000
        assert chisquare(counts).pvalue > 1e-3
    pairs = np.array([(s.patch_size, s.side) for s in shapes])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.05
    assert all(s.side_px == s.patch_size * s.side <= 96 for s in shapes)


def test_v13_shapes_cost_between_the_floor_and_the_budget():
    shapes = draw(V13, 2000)
    tokens = [3 * s.side**2 * s.n_steps for s in shapes]
    assert min(tokens) >= 228
    assert max(tokens) <= 3072
    assert min(s.side for s in shapes) == 3  # 3 * 4 * 12 = 144 tokens are too few
    assert {s.side for s in shapes} == {*range(3, 17), 18, 20, 24, 28, 32}
    assert all(s.side_px <= 128 for s in shapes)
    assert {s.n_steps for s in shapes if s.side == 32} == {1}


def v13_probabilities():
    """Probability of (side, steps) given p=1, by enumerating the two ways to draw them."""
    windows = {}
    for side in V13.sides:
        fits = [t for t in range(1, 13) if 228 <= 3 * side**2 * t <= 3072]
        if fits:
            windows[side] = fits
    chance = Counter()
    span = np.arange(1, 13)
    weight = span**2.75 / (span**2.75).sum()
    for t, w in zip(span, weight, strict=True):
        sides = [side for side, fits in windows.items() if t in fits]
        assert sides  # no gap, so nothing is drawn twice
        for side in sides:
            chance[side, int(t)] += 0.5 * w / len(sides)
    for side, fits in windows.items():
        weight = np.array(fits) ** 2.75
        for t, w in zip(fits, weight / weight.sum(), strict=True):
            chance[side, t] += 0.5 * w / len(windows)
    return chance


def test_v13_draws_follow_the_enumerated_probabilities():
    chance = v13_probabilities()
    assert sum(chance.values()) == pytest.approx(1)
    config = SamplingConfig(**{**vars(V13), "patch_sizes": (1,)})
    n = 6000
    counts = Counter((s.side, s.n_steps) for s in draw(config, n, seed=1))
    assert set(counts) <= set(chance)
    likely = [key for key, p in chance.items() if p * n >= 5]
    observed = [counts[key] for key in likely] + [n - sum(counts[key] for key in likely)]
    expected = [chance[key] * n for key in likely]
    assert chisquare(observed, [*expected, n - sum(expected)]).pvalue > 1e-3


def test_a_short_series_and_one_sensor_still_meet_the_floor():
    shapes = draw(V13, 500, ("sentinel2_l2a",), max_steps=2)
    tokens = {s.side**2 * s.n_steps for s in shapes}
    assert min(tokens) >= 228
    assert {s.n_steps for s in shapes} == {1, 2}


def test_an_impossible_budget_says_what_does_not_fit():
    config = SamplingConfig(token_budget=300, min_tokens=290, sides=(4,))
    with pytest.raises(ConfigError, match=r"no crop of 290 to 300 tokens .* lower min_tokens"):
        draw(config, 1)
    with pytest.raises(ConfigError, match="in samples of 8 pixels"):
        draw(SamplingConfig(sides=(9,)), 1, size_px=8)


def test_starts_are_uniform_among_steps_with_data_that_leave_room():
    present = {
        "sentinel2_l2a": np.array([0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1], bool),
        "sentinel1": np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0], bool),
    }
    rng = np.random.default_rng(0)
    starts = Counter(draw_start(present, 4, rng) for _ in range(4000))
    assert set(starts) == {1, 4, 5, 8}  # 11 leaves no room for 4 steps
    assert chisquare(list(starts.values())).pvalue > 1e-3
    assert draw_start(present, 12, rng) == 0
    assert draw_start(present, 20, rng) == 0


def test_data_at_the_very_end_are_reached():
    present = {"sentinel1": np.array([0, 0, 0, 0, 0, 1], bool)}
    assert draw_start(present, 3, np.random.default_rng(0)) == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"token_budget": 0}, "token_budget=0; expected at least 1"),
        ({"min_tokens": 3000}, "min_tokens=3000 with token_budget=2250"),
        ({"patch_sizes": (9,)}, r"patch_sizes=\(9,\)"),
        ({"sides": ()}, r"sides=\(\)"),
        ({"max_steps": 13}, "max_steps=13; expected 1 to 12"),
        ({"time_bias": -1}, "time_bias=-1"),
        ({"time_priority": 2}, "time_priority=2"),
    ],
)
def test_bad_options_are_named(option, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**option)


def test_unknown_release_is_named():
    with pytest.raises(ConfigError, match="release 'v2'"):
        SamplingConfig.for_release("v2")
