"""Every token sees its own window and nothing else, whatever the domain and however it is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.searchlight import (
    SearchlightSettings,
    searchlight_reach_px,
)
from torch.nn import functional

from bocage import load_model
from bocage.errors import ConfigError, InputError
from bocage.models import domain, neighborhood
from bocage.models.config import PoolerConfig
from bocage.models.domain import DomainEncoder, reach_px
from bocage.models.encoder import Encoder, EncoderOutput
from bocage.models.model import Model
from bocage.models.neighborhood import NeighborhoodAttention, Rows
from bocage.models.releases import release_config

from .dense import (
    NANO,
    POOLER,
    S2,
    S2_S1,
    Case,
    dense_attention,
    dense_encoder,
    every_domain,
    random_encoder,
    sees,
)
from .official import (
    TOLERANCE,
    max_difference,
    official_model,
    official_sample,
    our_encoder,
    random_dates,
    random_values,
)
from .test_model import scene


def difference(ours: EncoderOutput, theirs: EncoderOutput) -> float:
    """Largest difference of visible tokens and of locations."""
    errors = [(x - theirs.tokens[m])[ours.visible[m]].abs().max() for m, x in ours.tokens.items()]
    if theirs.locations is not None:
        assert ours.locations is not None
        errors.append((ours.locations.tokens - theirs.locations.tokens).abs().max())
        if theirs.locations.student is not None:
            errors.append((ours.locations.student - theirs.locations.student).abs().max())
        assert torch.equal(ours.locations.positions[:1], theirs.locations.positions[:1])
    return float(torch.stack(errors).max())


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    window=st.integers(1, 9),
    per_cell=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    block_hw=st.none() | st.tuples(st.integers(1, 6), st.integers(1, 6)),
    hide=st.sampled_from((None, 0.3, 0.97)),
    seed=st.integers(0, 99),
)
def test_blocks_give_what_one_dense_mask_gives(
    *,
    grid: tuple[int, int],
    window: int,
    per_cell: tuple[int, int],
    block_hw: tuple[int, int] | None,
    hide: float | None,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    q, k, v = (torch.randn(*grid, n, 2, 4) for n in (per_cell[0], per_cell[1], per_cell[1]))
    visible = None if hide is None else torch.rand(*grid, per_cell[1]) > hide
    attention = NeighborhoodAttention(grid, window, per_cell, visible=visible, block_hw=block_hw)
    keys, found = Rows(lambda rows: (k[rows], v[rows])), []
    for rows in attention.row_spans:
        keys.move_to(rows.keys)
        found.append(attention.attend(q[rows.cells], keys, rows))

    cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    of_q, of_k = (cells.repeat_interleave(n, 0) for n in per_cell)
    mask = sees(of_q[:, 0], of_k[:, 0], grid[0], window)
    mask &= sees(of_q[:, 1], of_k[:, 1], grid[1], window)
    if visible is not None:
        mask &= visible.flatten()
    expected = dense_attention(*(x.flatten(0, 2).transpose(0, 1) for x in (q, k, v)), mask)
    expected = expected.transpose(0, 1).reshape(*grid, per_cell[0], -1)
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=2e-6)


@every_domain
def test_the_encoder_equals_its_dense_reference(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = random_encoder(NANO)
    (values, dates), patch_size, window = case.inputs(), case.patch_size, case.window
    expected = dense_encoder(
        encoder, values, dates, patch_size, window=window, monkeypatch=monkeypatch
    )
    output = DomainEncoder(encoder, window)(values, dates, patch_size)
    assert difference(output, expected) <= TOLERANCE
    with torch.no_grad():
        full = encoder(values, dates, patch_size)
    assert max(case.grid) <= window or difference(full, expected) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("depth", "per_depth_read", "query"), [(1, False, 4), (1, False, 1), (2, True, 2)]
)
def test_location_queries_equal_their_dense_reference(
    depth: int, per_depth_read: bool, query: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooler = replace(POOLER.pooler or PoolerConfig(width=64), depth=depth)
    pooler = replace(pooler, per_depth_read=per_depth_read)
    encoder = random_encoder(replace(POOLER, depth=2, pooler=pooler))
    values, dates = random_values(S2_S1, (1, 28, 36, 2)), random_dates(1, 2)
    expected = dense_encoder(
        encoder, values, dates, 4, window=4, monkeypatch=monkeypatch, query=query
    )
    output = DomainEncoder(encoder, 4)(values, dates, 4, location_query_patch_size=query)
    assert difference(output, expected) <= TOLERANCE


@pytest.mark.parametrize("version", ["v1.2", "v1.3"])
@pytest.mark.parametrize(
    ("patch_size", "grid", "times", "window", "query"),
    [(4, (12, 9), 3, 5, 2), (8, (6, 7), 1, 4, None), (1, (13, 17), 1, 8, None)],
)
def test_the_official_searchlight_gives_the_same(
    *,
    version: str,
    patch_size: int,
    grid: tuple[int, int],
    times: int,
    window: int,
    query: int | None,
) -> None:
    official = official_model(version, "nano")
    encoder = our_encoder(official, release_config(version, "nano"))
    values = random_values(S2_S1, (1, grid[0] * patch_size, grid[1] * patch_size, times))
    dates = random_dates(1, times)
    pooler_only = {}
    if version == "v1.3" and query is not None:
        pooler_only["location_query_patch_size"] = query
    with torch.no_grad():
        expected = official.encoder(
            official_sample(values, dates),
            patch_size=patch_size,
            searchlight=SearchlightSettings(window * patch_size),
            **pooler_only,
        )
    output = DomainEncoder(encoder, window)(values, dates, patch_size, **pooler_only)
    assert max_difference(output.tokens, expected["tokens_and_masks"]) <= TOLERANCE
    if output.locations is not None:
        assert output.locations.student is not None
        found, wanted = output.locations.tokens, expected["location_tokens"]
        assert (found - wanted).abs().max() <= TOLERANCE
        found, wanted = output.locations.student, expected["student_location_tokens"]
        assert (found - wanted).abs().max() <= TOLERANCE
        assert torch.equal(output.locations.positions, expected["location_query_positions"])


def test_a_missing_date_is_left_out_like_in_the_official_searchlight() -> None:
    official = official_model("v1.2", "nano")
    encoder = our_encoder(official, NANO)
    values, dates = random_values(S2_S1, (1, 32, 28, 3)), random_dates(1, 3)
    pixels = {m: torch.ones(x.shape[:4], dtype=torch.bool) for m, x in values.items()}
    pixels["sentinel1"][..., 1] = False
    with torch.no_grad():
        expected = official.encoder(
            official_sample(values, dates, pixels),
            patch_size=4,
            searchlight=SearchlightSettings(16),
        )["tokens_and_masks"]
    visible = {m: x[:, ::4, ::4, :, None] for m, x in pixels.items()}
    output = DomainEncoder(encoder, 4)(values, dates, 4, visible=visible)
    assert max_difference(output.tokens, expected) <= TOLERANCE
    assert (output.tokens["sentinel1"][..., 1, :, :] == 0).all()


@pytest.mark.parametrize("mask_scores", [neighborhood.MASK_SCORES, 1])
def test_missing_cells_are_seen_by_none(mask_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighborhood, "MASK_SCORES", mask_scores)  # 1: a block at a time
    encoder = random_encoder(POOLER)
    values, dates = random_values(S2_S1, (1, 52, 60, 2)), random_dates(1, 2)
    generator = torch.Generator().manual_seed(1)
    visible = {m: torch.rand(1, 13, 15, 2, 1, generator=generator) > 0.4 for m in values}
    for keep in visible.values():
        keep[:, 3:, 2:11] = False  # larger than a window: some queries see nothing
    expected = dense_encoder(
        encoder, values, dates, 4, window=4, monkeypatch=monkeypatch, visible=visible
    )
    output = DomainEncoder(encoder, 4)(values, dates, 4, visible=visible)
    assert difference(output, expected) <= TOLERANCE
    for m, x in output.tokens.items():
        assert (x[~visible[m]] == 0).all()


@pytest.mark.parametrize("config", [NANO, POOLER], ids=["v1.2", "v1.3"])
def test_a_domain_of_one_window_is_what_the_plain_encoder_gives(config: object) -> None:
    encoder = random_encoder(config)
    values, dates = random_values(S2_S1, (1, 36, 24, 2)), random_dates(1, 2)
    with torch.no_grad():
        expected = encoder(values, dates, 4)
    assert difference(DomainEncoder(encoder, 9)(values, dates, 4), expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("patch_size", "window", "make"),
    [
        (4, 3, lambda: random_encoder(NANO)),
        (8, 2, lambda: random_encoder(NANO)),
        (1, 3, lambda: random_encoder(NANO)),
        (4, 3, lambda: random_encoder(replace(POOLER, depth=2))),
    ],
)
def test_what_lies_beyond_the_reach_does_not_matter_and_what_lies_within_does(
    patch_size: int, window: int, make: Callable[[], Encoder]
) -> None:
    model = Model(make(), name="test", weights_id="test", precision="fp32")
    reach = reach_px(model.config, patch_size, window * patch_size)
    cells = reach // patch_size
    rng = np.random.default_rng(0)
    side = (2 * cells + 9) * patch_size
    large = rng.uniform(100, 4000, (1, 1, 12, side, side)).astype(np.float32)
    encode = model.domain_encoder(patch_size=patch_size, neighborhood_px=window * patch_size)
    dates = random_dates(1, 1).numpy()

    def core(cut: int) -> np.ndarray:
        """Nine cells in the middle, of a domain that is smaller by ``cut`` cells on each side."""
        px = slice(cut * patch_size, side - cut * patch_size)
        x = encode({"sentinel2_l2a": large[..., px, px]}, dates)
        return x[0, cells - cut : cells - cut + 9, cells - cut : cells - cut + 9]

    whole = core(0)
    # The core's border is exactly one reach from the edge: enlarging the domain changes nothing.
    padded = np.pad(large, [(0, 0)] * 3 + [(7 * patch_size,) * 2] * 2, mode="reflect")
    larger = encode({"sentinel2_l2a": padded}, dates)
    middle = larger[0, 7 + cells : 16 + cells, 7 + cells : 16 + cells]
    np.testing.assert_allclose(middle, whole, rtol=0, atol=TOLERANCE)
    # Two cells less are not enough (one is the resize, whose weights are faint).
    assert np.abs(core(2) - whole).max() > 10 * TOLERANCE


def test_the_reach_is_the_official_one_and_that_of_the_resize() -> None:
    base = release_config("v1.3", "base")
    assert reach_px(base, 8, 128) == searchlight_reach_px(128, 8, 12, 1)
    assert reach_px(base, 4) == searchlight_reach_px(64, 4, 12, 1) + 4
    assert reach_px(base, 1, 16) == searchlight_reach_px(16, 1, 12, 1) + 2
    assert reach_px(NANO, 8) == 4 * 8 * 8  # without a pooler only the blocks look


def test_a_domain_is_embedded_in_tiles_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = random_encoder(NANO)
    dates = random_dates(1, 2)
    for patch_size in (1, 3, 4, 8):
        values = random_values(S2, (1, 11 * patch_size, 14 * patch_size, 2))
        whole = DomainEncoder(encoder, 4)(values, dates, patch_size)
        with monkeypatch.context() as patch:
            patch.setattr(domain, "TILE_TOKENS", 32)
            tiled = DomainEncoder(encoder, 4)(values, dates, patch_size)
        assert difference(tiled, whole) <= TOLERANCE


def test_a_far_corner_is_as_exact_as_the_origin() -> None:
    # Positions of a hundred thousand units: fp32 angles would be off by a hundredth.
    encoder = random_encoder(replace(NANO, positions=replace(NANO.positions, coordinate_scale=30)))
    values = random_values(S2, (1, 8, 8 * 600, 1))
    repeated = {m: torch.cat([x[:, :, :160], x, x[:, :, :160]], dim=2) for m, x in values.items()}
    dates = random_dates(1, 1)
    near = DomainEncoder(encoder, 8)({m: x[:, :, -480:] for m, x in repeated.items()}, dates, 8)
    far = DomainEncoder(encoder, 8)(repeated, dates, 8)
    inner = slice(-30, -20)  # its reach, 16 cells, ends inside both
    a, b = near.tokens[S2[0]][:, :, inner], far.tokens[S2[0]][:, :, inner]
    assert (a - b).abs().max() <= TOLERANCE


def test_missing_pixels_come_back_as_nan_and_the_rest_does_not_see_them() -> None:
    model = load_model("olmoearth-v1.2-nano", weights=None, precision="fp32")
    encode = model.domain_encoder(patch_size=4, neighborhood_px=16)
    x = np.moveaxis(scene(1, 48, 64, 2), (3, 4), (1, 2)).copy()
    dates = random_dates(1, 2).numpy()
    x[..., 40:] = np.nan
    grid = encode({"sentinel2_l2a": x}, dates)
    assert grid.dtype == np.float32
    assert grid.shape == (1, 12, 16, 128)
    assert np.isnan(grid[:, :, 10:]).all()
    assert np.isfinite(grid[:, :, :10]).all()
    nothing = encode({"sentinel2_l2a": np.full_like(x, np.nan)}, dates)
    assert np.isnan(nothing).all()
    one_date = encode({"sentinel2_l2a": x[:, :1]}, dates[:, :1])
    x[:, 1] = np.nan
    np.testing.assert_allclose(
        encode({"sentinel2_l2a": x}, dates), one_date, rtol=0, atol=TOLERANCE
    )


def test_the_students_of_a_small_domain_are_those_of_a_window() -> None:
    model = Model(random_encoder(POOLER), name="test", weights_id="test", precision="fp32")
    x = {"sentinel2_l2a": np.moveaxis(scene(1, 32, 24, 1), (3, 4), (1, 2))}
    dates = random_dates(1, 1).numpy()
    options = {"patch_size": 4, "location_query_patch_size": 2}
    found = model.domain_encoder(**options)(x, dates)
    np.testing.assert_allclose(
        found, model.window_encoder(**options)(x, dates), rtol=0, atol=TOLERANCE
    )
    assert found.shape == (1, 16, 12, 128)
    pooled = model.domain_encoder(output="pooled")(x, dates)
    assert pooled.shape == (1, 8, 6, POOLER.width)


def test_bfloat16_stays_close() -> None:
    encoder = random_encoder(NANO)
    x = {"sentinel2_l2a": np.moveaxis(scene(1, 96, 96, 1), (3, 4), (1, 2))}
    dates = random_dates(1, 1).numpy()
    exact, fast = (
        torch.from_numpy(
            Model(encoder, name="test", weights_id="test", precision=precision).domain_encoder(
                neighborhood_px=32
            )(x, dates)
        )
        for precision in ("fp32", "bf16")
    )
    cosines = functional.cosine_similarity(exact, fast, dim=-1)
    assert cosines.mean() >= 0.9995
    assert not torch.equal(exact, fast)


@pytest.mark.parametrize("name", ["olmoearth-v1-nano", "olmoearth-v1.1-nano"])
def test_models_with_position_tables_are_refused(name: str) -> None:
    model = load_model(name, weights=None)
    with pytest.raises(ConfigError, match=r"v1\.2 or v1\.3"):
        model.domain_encoder()
    with pytest.raises(ConfigError, match=r"v1\.2 or v1\.3"):
        reach_px(model.config, 4)


def test_odd_options_are_refused_with_the_fix() -> None:
    model = load_model("olmoearth-v1.2-nano", weights=None)
    for neighborhood_px in (30, 2, 0, -8):
        with pytest.raises(ConfigError, match="multiple of the patch size"):
            model.domain_encoder(patch_size=4, neighborhood_px=neighborhood_px)
    with pytest.raises(InputError, match="patch_size=0"):
        model.domain_encoder(patch_size=0)
    assert reach_px(model.config, 8, 16.0) == 4 * 8  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="output"):
        model.domain_encoder(output="student")
    x = np.moveaxis(scene(2, 16, 16, 1), (3, 4), (1, 2))
    with pytest.raises(InputError, match="one domain per call"):
        model.domain_encoder()({"sentinel2_l2a": x}, random_dates(2, 1).numpy())
    with pytest.raises(InputError, match="multiples of the patch size"):
        model.domain_encoder()({"sentinel2_l2a": x[:1, ..., :15]}, random_dates(1, 1).numpy())
