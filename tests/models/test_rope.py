"""Positions: every encoding of the official package, and rotations that see differences only."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.encodings import timestamps_to_days
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.config import Config

from bocage.errors import ModelError
from bocage.models.config import PositionConfig
from bocage.models.config_json import config_to_json
from bocage.models.releases import release_config
from bocage.models.rope import (
    axial_frequencies,
    days_since_first,
    initial_mixed_frequencies,
    rope_angles,
    rotate,
)

from .official import (
    ALL_SENSORS,
    TOLERANCE,
    max_difference,
    official_sample,
    our_encoder,
    random_dates,
    random_values,
    randomize,
)

MONTH = 1 / 30
"""Scale of the releases. In whole days the official fp32 angles are themselves off by 1e-3."""


@pytest.mark.parametrize(
    "positions",
    [
        PositionConfig(encoding="none"),
        PositionConfig(encoding="rope", base=100.0, coordinate_scale=0.5),
        PositionConfig(encoding="rope_mixed"),
        PositionConfig(encoding="rope_3d", temporal_coordinate_scale=MONTH, temporal_base=50.0),
        PositionConfig(
            encoding="rope_3d", temporal_dim_fraction=0.5, temporal_coordinate_scale=MONTH
        ),
        PositionConfig(
            encoding="rope_3d_mixed", coordinate_scale=2.0, temporal_coordinate_scale=MONTH
        ),
    ],
    ids=lambda p: p.encoding,
)
def test_every_position_encoding_matches_the_official_encoder(positions: PositionConfig) -> None:
    base = release_config("v1.2", "nano")
    config = dataclasses.replace(base, positions=positions)
    torch.manual_seed(0)
    official = Config.from_dict(config_to_json(config)["model"]).build().eval()
    randomize(official, 0)
    ours = our_encoder(official, config)
    values, dates = random_values(ALL_SENSORS, (2, 8, 12, 3)), random_dates(2, 3)
    with torch.no_grad():
        output = ours(values, dates, 4)
        expected = official.encoder(official_sample(values, dates), patch_size=4, fast_pass=True)
    assert max_difference(output.tokens, expected["tokens_and_masks"]) <= TOLERANCE


def test_days_follow_the_official_calendar() -> None:
    dates = random_dates(5, 12)
    official = timestamps_to_days(dates)
    differences = (official - official[:, :1]).float()
    torch.testing.assert_close(days_since_first(dates), differences, rtol=0, atol=1e-3)


def test_rotations_see_only_differences_of_positions() -> None:
    positions = torch.rand(1, 6, 3) * 10
    frequencies = initial_mixed_frequencies(PositionConfig(encoding="rope_3d_mixed"), 2, 16)
    q, k = torch.randn(2, 1, 2, 6, 16).unbind(0)

    def scores(shift: torch.Tensor) -> torch.Tensor:
        angles = rope_angles(positions + shift, frequencies)
        return rotate(q, angles) @ rotate(k, angles).transpose(-1, -2)

    torch.testing.assert_close(
        scores(torch.zeros(3)), scores(torch.tensor([7.0, -3.0, 11.0])), rtol=0, atol=1e-4
    )


def test_initial_directions_are_orthonormal_and_magnitudes_fall() -> None:
    config = PositionConfig(encoding="rope_3d_mixed", mixed_base=100.0)
    frequencies = initial_mixed_frequencies(config, 3, 16)  # [X, M, K]
    first, second = frequencies[:, :, :4], frequencies[:, :, 4:]
    torch.testing.assert_close((first * second).sum(0), torch.zeros(3, 4), rtol=0, atol=1e-6)
    expected = 100.0 ** (-4 * torch.arange(4) / 16)
    torch.testing.assert_close(first.norm(dim=0), expected.expand(3, 4))


def test_a_head_that_cannot_be_split_is_an_error() -> None:
    with pytest.raises(ModelError, match="heads of width 6"):
        axial_frequencies(PositionConfig(encoding="rope"), 6)
