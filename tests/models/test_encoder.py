"""Our encoder gives the numbers of the official package, for every release and way of calling."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.flexi_vit import PoolingType
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.latent_mim import LatentMIM

from bocage.models.encoded import Encoded
from bocage.models.encoder import Encoder
from bocage.models.releases import RELEASES, release_config

from .official import (
    ALL_SENSORS,
    TOLERANCE,
    max_difference,
    official_model,
    official_sample,
    our_encoder,
    random_dates,
    random_values,
)

FAST = [
    *((r.version, r.size) for r in RELEASES.values() if r.size in ("nano", "tiny")),
    ("v1.3", "nano"),
]
SLOW = [(r.version, r.size) for r in RELEASES.values() if r.size not in ("nano", "tiny")]
NANO = [pair for pair in FAST if pair[1] == "nano"]


@lru_cache(maxsize=4)
def pair(version: str, size: str) -> tuple[Encoder, LatentMIM]:
    official = official_model(version, size)
    return our_encoder(official, release_config(version, size)), official


def compare(
    version: str,
    size: str,
    *,
    sensors: tuple[str, ...] = ALL_SENSORS,
    shape_bhw: tuple[int, int, int] = (2, 8, 8),
    times: int = 3,
    patch_size: int = 4,
    query: int | None = None,
) -> None:
    ours, official = pair(version, size)
    values = random_values(sensors, (*shape_bhw, times))
    dates = random_dates(shape_bhw[0], times)
    pooler_only = {} if query is None else {"location_query_patch_size": query}
    with torch.no_grad():
        output = ours(values, dates, patch_size, **pooler_only)
        expected = official.encoder(
            official_sample(values, dates), patch_size=patch_size, fast_pass=True, **pooler_only
        )
    assert max_difference(output.tokens, expected["tokens_and_masks"]) <= TOLERANCE
    pooled = Encoded(tokens=output.tokens, visible=output.visible).pooled()
    truth = expected["tokens_and_masks"].pool_spatially(PoolingType.MEAN)
    torch.testing.assert_close(pooled, truth, rtol=0, atol=TOLERANCE)
    if output.locations is not None:
        locations = output.locations
        assert (locations.tokens - expected["location_tokens"]).abs().max() <= TOLERANCE
        assert (locations.student - expected["student_location_tokens"]).abs().max() <= TOLERANCE
        assert torch.equal(locations.positions, expected["location_query_positions"])


@pytest.mark.parametrize(("version", "size"), FAST)
def test_every_release_matches_the_official_encoder(version: str, size: str) -> None:
    compare(version, size)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "size"), SLOW)
def test_large_releases_match_the_official_encoder(version: str, size: str) -> None:
    compare(version, size)
    pair.cache_clear()


@pytest.mark.parametrize("patch_size", range(1, 9))
@pytest.mark.parametrize(("version", "size"), NANO)
def test_every_patch_size_matches(version: str, size: str, patch_size: int) -> None:
    side = 3 * patch_size
    compare(version, size, shape_bhw=(1, side, side), times=2, patch_size=patch_size)


@pytest.mark.parametrize("sensor", ALL_SENSORS)
@pytest.mark.parametrize(("version", "size"), NANO)
def test_every_sensor_alone_matches(version: str, size: str, sensor: str) -> None:
    compare(version, size, sensors=(sensor,))


@pytest.mark.parametrize("times", [1, 12])
@pytest.mark.parametrize(("version", "size"), NANO)
def test_series_of_any_length_match(version: str, size: str, times: int) -> None:
    compare(version, size, times=times)


@pytest.mark.parametrize("version", ["v1.2", "v1.3"])
def test_rectangles_match_where_the_release_allows_them(version: str) -> None:
    compare(version, "nano", shape_bhw=(1, 8, 20))


@pytest.mark.parametrize(("patch_size", "query"), [(1, 1), (2, 1), (4, 1), (4, 2), (4, 4), (5, 1)])
def test_location_queries_of_any_size_match(patch_size: int, query: int) -> None:
    side = 3 * patch_size
    compare("v1.3", "nano", shape_bhw=(2, side, side), patch_size=patch_size, query=query)
