"""Seam-free inference is the official sliding-neighborhood mode, and a dense mask."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.latent_mim import LatentMIM
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.searchlight import (
    SearchlightSettings,
    searchlight_reach_px,
)
from torch.nn import functional

from bocage.errors import ConfigError, InputError
from bocage.models.encoder import Encoder
from bocage.models.engine import neighborhood
from bocage.models.engine.neighborhood import encode_seam_free, neighborhood_attention, reach_px
from bocage.models.model import Model
from bocage.models.releases import release_config

from .official import (
    TOLERANCE,
    max_difference,
    official_model,
    official_sample,
    our_encoder,
    random_dates,
    random_values,
)


@lru_cache(maxsize=2)
def pair(version: str) -> tuple[Encoder, LatentMIM]:
    official = official_model(version, "nano")
    return our_encoder(official, release_config(version, "nano")), official


@pytest.mark.parametrize(
    ("version", "patch_size", "query", "domain_hw", "box_px"),
    [
        ("v1.2", 4, None, (40, 28), 16),
        ("v1.2", 2, None, (18, 30), 16),
        ("v1.2", 8, None, (16, 64), 16),
        ("v1.2", 1, None, (9, 20), 7),
        ("v1.3", 4, None, (24, 32), 16),
        ("v1.3", 4, 2, (32, 44), 16),
        ("v1.3", 2, 1, (12, 14), 8),
    ],
)
def test_it_is_the_official_mode(
    version: str, patch_size: int, query: int | None, domain_hw: tuple[int, int], box_px: int
) -> None:
    ours, official = pair(version)
    values = random_values(("sentinel2_l2a", "landsat"), (1, *domain_hw, 2))
    dates = random_dates(1, 2)
    pooler_only = {} if query is None else {"location_query_patch_size": query}
    with torch.no_grad():
        expected = official.encoder(
            official_sample(values, dates),
            patch_size=patch_size,
            fast_pass=True,
            searchlight=SearchlightSettings(neighborhood_attention_size_px=box_px),
            **pooler_only,
        )
    output = encode_seam_free(
        ours, values, dates, patch_size, neighborhood_px=box_px, **pooler_only
    )
    assert max_difference(output.tokens, expected["tokens_and_masks"]) <= TOLERANCE
    if output.locations is not None:
        assert output.locations.student is not None
        difference = output.locations.tokens - expected["location_tokens"]
        assert difference.abs().max() <= TOLERANCE
        difference = output.locations.student - expected["student_location_tokens"]
        assert difference.abs().max() <= TOLERANCE


@pytest.mark.parametrize(("h", "w", "box"), [(9, 7, 4), (5, 12, 5), (3, 3, 8), (11, 4, 1)])
def test_attention_is_that_of_a_dense_mask(
    h: int, w: int, box: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighborhood, "MASK_BYTES", 2000)  # several calls per row of blocks
    q, k, v = (torch.randn(h, w, n, 2, 8) for n in (3, 2, 2))
    ours = neighborhood_attention(q, k, v, box)

    def inside(n: int) -> np.ndarray:
        start = np.clip(np.arange(n) - box // 2, 0, max(n - box, 0))[:, None]
        cells = np.arange(n)[None]
        return (cells >= start) & (cells < start + box)

    rows, cols = inside(h), inside(w)
    mask = np.einsum("ik,jl->ijkl", rows, cols).reshape(h * w, h * w)
    mask = mask.repeat(3, axis=0).repeat(2, axis=1)
    dense = functional.scaled_dot_product_attention(
        *(x.flatten(0, 2).transpose(0, 1) for x in (q, k, v)), attn_mask=torch.from_numpy(mask)
    )
    assert torch.allclose(ours.flatten(0, 2), dense.transpose(0, 1), atol=1e-6)


def test_a_domain_of_one_box_is_an_ordinary_window() -> None:
    ours, _ = pair("v1.2")
    values, dates = random_values(("sentinel2_l2a",), (1, 16, 16, 2)), random_dates(1, 2)
    with torch.no_grad():
        window = ours(values, dates, 4).tokens["sentinel2_l2a"]
    seam_free = encode_seam_free(ours, values, dates, 4).tokens["sentinel2_l2a"]
    assert (window - seam_free).abs().max() <= TOLERANCE


def test_an_output_reaches_no_further_than_stated() -> None:
    ours, _ = pair("v1.2")
    reach = reach_px(ours, 8)
    assert reach == searchlight_reach_px(8, 2, 4, -1) == 16
    values, dates = random_values(("sentinel2_l2a",), (1, 8, 64, 1)), random_dates(1, 1)
    before = encode_seam_free(ours, values, dates, 2, neighborhood_px=8)
    values["sentinel2_l2a"][:, :, 40:] += 1
    after = encode_seam_free(ours, values, dates, 2, neighborhood_px=8)
    change = (before.tokens["sentinel2_l2a"] - after.tokens["sentinel2_l2a"]).abs()
    change = change.amax(dim=(0, 1, 3, 4, 5))
    # The resize looks two pixels further.
    assert (change[: (40 - reach - 2) // 2] == 0).all()
    assert change[19] > 0


def test_the_model_checks_and_runs_it() -> None:
    ours, _ = pair("v1.2")
    model = Model(ours, name="test", weights_id="test")
    x = np.random.default_rng(0).uniform(500, 4000, (1, 16, 24, 1, 12)).astype(np.float32)
    dates = random_dates(1, 1)
    encoded = model.encode_seam_free({"sentinel2_l2a": x}, dates, patch_size=4)
    assert encoded.grid().shape == (1, 4, 6, 128)
    half = Model(ours, name="test", weights_id="test", precision="bf16")
    close = half.encode_seam_free({"sentinel2_l2a": x}, dates, patch_size=4)
    cosine = functional.cosine_similarity(encoded.grid(), close.grid(), dim=-1)
    assert cosine.mean() >= 0.9995
    x[0, :8, :8] = np.nan
    with pytest.raises(InputError, match="no data"):
        model.encode_seam_free({"sentinel2_l2a": x}, dates, patch_size=4)


def test_what_it_cannot_do_is_said() -> None:
    values, dates = random_values(("sentinel2_l2a",), (1, 16, 16, 1)), random_dates(1, 1)
    v1 = our_encoder(official_model("v1", "nano"), release_config("v1", "nano"))
    with pytest.raises(ConfigError, match="rotary positions"):
        encode_seam_free(v1, values, dates, 4)
    ours, _ = pair("v1.2")
    with pytest.raises(ConfigError, match="multiple of the patch size"):
        encode_seam_free(ours, values, dates, 4, neighborhood_px=18)
    two = {name: x.expand(2, -1, -1, -1, -1) for name, x in values.items()}
    with pytest.raises(ConfigError, match="one domain"):
        encode_seam_free(ours, two, dates, 4)
