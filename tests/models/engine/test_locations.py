"""Location tokens of the fast encoder are those of the plain one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bocage.models.encoder import Encoder
from bocage.models.engine import fast_encoder
from bocage.models.releases import release_config

from ..official import ALL_SENSORS, official_sample, random_dates, random_values, randomize
from .gate import check_gate, engine, needs_kernels, pair


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", ["nano", "tiny"])
@pytest.mark.parametrize("query_size", [1, 2, 4])
def test_location_queries_finer_than_patches(size: str, query_size: int, precision: str) -> None:
    plain, official = pair("v1.3", size)
    fast = engine("v1.3", size, precision)
    assert fast.backend.pooler is not None
    assert plain.attention_pooler is not None
    values, dates = random_values(ALL_SENSORS, (2, 12, 20, 3)), random_dates(2, 3)
    generator = torch.Generator().manual_seed(1)
    some = {name: torch.rand(2, 3, 5, 3, 1, generator=generator) > 0.4 for name in ALL_SENSORS}
    for visible in (None, some):
        with torch.no_grad():
            expected = plain(
                values, dates, 4, visible=visible, location_query_patch_size=query_size
            ).locations
        found = fast(
            values, dates, 4, visible=visible, location_query_patch_size=query_size
        ).locations
        assert expected is not None
        assert expected.student is not None
        assert found is not None
        assert found.student is not None
        assert found.tokens.shape[1:3] == (12 // query_size, 20 // query_size)
        assert torch.equal(found.positions, expected.positions)
        check_gate(expected.tokens, found.tokens, precision)
        check_gate(expected.student, found.student, precision)
    if query_size == 4:
        with torch.no_grad():
            theirs = official.encoder(official_sample(values, dates), patch_size=4, fast_pass=True)
        found = fast(values, dates, 4).locations
        assert found is not None
        check_gate(theirs["location_tokens"], found.tokens, precision)


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_pooler_with_tied_widths(precision: str) -> None:
    """Unpublished kinds: tokens are projected to the pooler's width first; two reads stay plain."""
    values, dates = random_values(("sentinel2_l2a",), (2, 8, 8, 2)), random_dates(2, 2)
    for depth in (1, 2):
        config = release_config("v1.3", "nano")
        assert config.pooler is not None
        pooler = replace(config.pooler, width=64, heads=4, attention_width=None, depth=depth)
        torch.manual_seed(0)
        plain = Encoder(replace(config, pooler=pooler)).eval()
        randomize(plain, 0)
        fast = fast_encoder(plain, precision=precision)
        assert fast is not None
        assert (fast.backend.pooler is not None) == (depth == 1)
        assert ("plain modules, because it reads 2 times" in fast.description) == (depth == 2)
        with torch.no_grad():
            expected = plain(values, dates, 4).locations
        found = fast(values, dates, 4).locations
        assert expected is not None
        assert found is not None
        check_gate(expected.tokens, found.tokens, precision)
