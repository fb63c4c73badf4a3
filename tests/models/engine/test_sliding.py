"""Seam-free inference on the engine's kernels gives what dense masks give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from bocage import load_model
from bocage.errors import InputError
from bocage.models.config import ModelConfig
from bocage.models.domain import DomainEncoder, Rotation
from bocage.models.encoded import Encoded
from bocage.models.encoder import EncoderOutput
from bocage.models.engine import sliding
from bocage.models.engine.cpu import CpuBackend
from bocage.models.engine.fast import FastEncoder
from bocage.models.engine.sliding import SlidingAttention, SlidingEncoder, sliding_encoder, turns
from bocage.models.model import Model
from bocage.models.releases import release_config

from ..dense import NANO, POOLER, S2, S2_S1, Case, dense_encoder, every_domain, random_encoder, sees
from ..official import TOLERANCE, random_dates, random_values
from ..test_model import scene
from .gate import needs_kernels

pytestmark = needs_kernels

TINY_POOLER = release_config("v1.3", "tiny")  # heads of 64, as all sizes but nano


def maps_of(output: EncoderOutput, kind: str, visible: dict[str, Tensor] | None = None) -> Tensor:
    """The map of an output, as the model makes it."""
    found = output.locations
    return Encoded(
        tokens=output.tokens,
        visible=visible or output.visible,
        locations=None if found is None else found.tokens,
        student=None if found is None else found.student,
    ).grid(kind)


def check_map(found: Tensor, expected: Tensor, precision: str) -> None:
    """The gate of a precision, and the same cells without data."""
    assert found.dtype == torch.float32
    assert torch.equal(found.isnan(), expected.isnan())
    seen = ~expected[..., 0].isnan()
    found, expected = found[seen], expected[seen]
    if precision == "fp32":
        assert (found - expected).abs().max() <= TOLERANCE
    else:
        cosines = functional.cosine_similarity(found, expected, dim=-1)
        assert cosines.mean() >= 0.9995
        assert cosines.quantile(0.01) >= 0.998
        assert not torch.equal(found, expected)


@settings(max_examples=700, deadline=None)
@example(
    grid=(3, 9),
    window=2,
    elements=3,
    head_width=64,
    precision="fp32",
    hide=None,
    length=5.0,
    strip=1,
    seed=0,
)
@example(
    grid=(8, 17),
    window=7,
    elements=3,
    head_width=16,
    precision="bf16",
    hide=0.97,
    length=5.0,
    strip=1,
    seed=85,
)
@given(
    grid=st.tuples(st.integers(1, 21), st.integers(1, 21)),
    window=st.integers(1, 18),
    elements=st.integers(1, 3),
    head_width=st.sampled_from((16, 64)),
    precision=st.sampled_from(("fp32", "bf16")),
    hide=st.sampled_from((None, 0.3, 0.97)),
    length=st.sampled_from((1.0, 5.0)),
    strip=st.sampled_from((1, 10**9)),
    seed=st.integers(0, 99),
)
def test_attention_is_that_of_one_dense_mask(
    *,
    grid: tuple[int, int],
    window: int,
    elements: int,
    head_width: int,
    precision: str,
    hide: float | None,
    length: float,
    strip: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    heads, width = 2, 2 * head_width
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    qkv = torch.randn(*grid, elements, 3 * width)
    qkv[..., : 2 * width] *= length  # 5: bounds of scores beyond 2^100, as no norm forbids
    qkv = qkv.to(dtype)
    coordinates = torch.rand(elements, 3)
    rotation = Rotation.of(torch.randn(3, heads, head_width // 2), grid, 0.3, coordinates)
    visible = None if hide is None else torch.rand(*grid, elements) > hide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliding, "STRIP_NUMBERS", strip)  # 1: a row of squares at a time
        attention = SlidingAttention(
            grid,
            window,
            heads=heads,
            n_queries=elements,
            n_keys=elements,
            width=width,
            dtype=dtype,
            shown=visible,
        )
    tables = turns(rotation, heads)

    def pack(rows: slice) -> None:
        attention.pack(rows, tables, queries=qkv[rows], keys=qkv[rows, ..., width:])

    found = [attention.attend(rows) for rows in attention.strips(pack)]

    # Halves of a head are turned as pairs.
    q, k, v = qkv.float().unflatten(-1, (3, heads, -1)).unbind(3)
    pairs = [x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) for x in (q, k)]
    q, k = (rotation.turn(x, slice(0, grid[0])).to(dtype).float() for x in pairs)
    cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    cells = cells.repeat_interleave(elements, 0)
    mask = sees(cells[:, 0], cells[:, 0], grid[0], window)
    mask &= sees(cells[:, 1], cells[:, 1], grid[1], window)
    if visible is not None:
        mask &= visible.flatten()
    q, k, v = (x.flatten(0, 2).transpose(0, 1).double() for x in (q, k, v))
    scores = (q @ k.transpose(1, 2) / head_width**0.5).masked_fill(~mask, -torch.inf)
    shares = scores.softmax(dim=-1).nan_to_num(0)  # nothing seen: zeros
    expected = (shares @ v).transpose(0, 1).reshape(*grid, elements, width).float()
    error = (torch.cat(found).float() - expected).abs()
    if precision == "fp32":
        # A score is rounded by half an epsilon of its size, and a share compares two scores.
        largest = scores[mask.expand_as(scores)].abs().max() if mask.any() else torch.zeros(())
        rounding = torch.finfo(torch.float32).eps * largest * v.abs().max()
        assert error.max() <= (3e-6 if length == 1 else rounding)
    elif length == 1:  # queries, keys and shares have 8 bits
        assert error.max() <= 0.04
    else:
        # Angles rounded in another order may turn a number of a query or key to the next of 8 bits.
        # That moves scores, and the mean where keys compete: as far as their values are spread.
        moved = 2**-7 * (q.abs() @ k.abs().transpose(1, 2) / head_width**0.5 * mask).amax(2)
        spread = (shares @ v**2 - (shares @ v) ** 2).clamp(min=0).sqrt()
        bound = torch.expm1(2 * moved)[..., None] * spread + 2**-6 * v.abs().max()
        assert (error <= bound.transpose(0, 1).reshape(error.shape)).all()
        assert error.mean() <= (0.01 if length == 1 else 0.03)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@every_domain
def test_maps_equal_the_dense_reference(
    case: Case, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = random_encoder(NANO)
    (values, dates), patch_size, window = case.inputs(), case.patch_size, case.window
    expected = dense_encoder(
        encoder, values, dates, patch_size, window=window, monkeypatch=monkeypatch
    )
    found = SlidingEncoder(encoder, CpuBackend(encoder, precision), window).grid(
        values, dates, patch_size, output="pooled"
    )
    check_map(found, maps_of(expected, "pooled"), precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "config", [POOLER, replace(TINY_POOLER, depth=2)], ids=["heads of 16", "heads of 64"]
)
@pytest.mark.parametrize(("query", "hidden"), [(4, False), (2, True)])
def test_locations_and_hidden_cells_equal_the_dense_reference(
    *,
    config: ModelConfig,
    query: int,
    hidden: bool,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = random_encoder(config)
    values, dates = random_values(S2_S1, (1, 52, 60, 2)), random_dates(1, 2)
    visible = None
    if hidden:
        generator = torch.Generator().manual_seed(1)
        visible = {m: torch.rand(1, 13, 15, 2, 1, generator=generator) > 0.4 for m in values}
        for keep in visible.values():
            keep[:, 3:, 2:11] = False  # larger than a window: some queries see nothing
        visible["sentinel1"][:, :, :, 1] = False  # a date that is missing everywhere
    expected = dense_encoder(
        encoder,
        values,
        dates,
        4,
        window=4,
        monkeypatch=monkeypatch,
        visible=visible,
        query=query,
    )
    fast = SlidingEncoder(encoder, CpuBackend(encoder, precision), 4)
    for output in ("pooled", "locations", "student"):
        found = fast.grid(
            values, dates, 4, output=output, visible=visible, location_query_patch_size=query
        )
        check_map(found, maps_of(expected, output, visible), precision)


def test_strips_of_a_large_domain_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = random_encoder(replace(NANO, depth=2))
    values, dates = random_values(S2, (1, 8 * 60, 8 * 18, 1)), random_dates(1, 1)
    fast = SlidingEncoder(encoder, CpuBackend(encoder, "fp32"), 16)
    whole = fast.grid(values, dates, 8, output="pooled")
    monkeypatch.setattr(sliding, "STRIP_NUMBERS", 1)
    strips = fast.grid(values, dates, 8, output="pooled")
    assert torch.equal(strips, whole)


def test_what_attention_keeps_does_not_grow_with_the_height_of_a_domain() -> None:
    def n_bytes(rows: int) -> int:
        attention = SlidingAttention(
            (rows, 288), 16, heads=12, n_queries=1, n_keys=1, width=768, dtype=torch.bfloat16
        )
        parts = (attention.q, attention.k, attention.v)
        return sum(x.numel() * x.itemsize for x in parts)

    assert n_bytes(2000) == n_bytes(100) < 0.25 * 3 * 100 * 288 * 768 * 2


def test_the_model_embeds_domains_on_the_kernels_in_product_units() -> None:
    encoder = random_encoder(NANO)
    x = np.moveaxis(scene(1, 96, 112, 2), (3, 4), (1, 2)).copy()
    dates = random_dates(1, 2).numpy()
    holes = x.copy()
    holes[:, :, :, 40:, 60:] = np.nan
    for precision in ("fp32", "bf16"):
        fast = Model(encoder, name="test", weights_id="test", precision=precision)
        plain = Model(encoder, name="test", weights_id="test", precision="fp32", compile=False)
        engine = fast.engine
        assert isinstance(engine, FastEncoder)
        assert sliding_encoder(encoder, engine, 4) is not None
        for values in (x, holes):
            found, expected = (
                torch.from_numpy(
                    m.domain_encoder(patch_size=4, neighborhood_px=24)(
                        {"sentinel2_l2a": values}, dates
                    )
                )
                for m in (fast, plain)
            )
            check_map(found, expected, precision)
        with pytest.raises(InputError, match="one domain per call"):
            fast.domain_encoder()(
                {"sentinel2_l2a": np.concatenate([x, x])}, np.concatenate([dates, dates])
            )


def test_int8_runs_domains() -> None:
    config = replace(release_config("v1.2", "base"), depth=1)
    encoder = random_encoder(config)
    values, dates = random_values(S2, (1, 64, 72, 1)), random_dates(1, 1)
    model = Model(encoder, name="test", weights_id="test", precision="int8")
    fast = sliding_encoder(encoder, model.engine, 6)
    assert fast is not None
    expected = DomainEncoder(encoder, 6)(values, dates, 8)
    check_map(fast.grid(values, dates, 8, output="pooled"), maps_of(expected, "pooled"), "bf16")


def test_without_an_engine_plain_modules_do_it() -> None:
    model = load_model("olmoearth-v1.2-nano", weights=None, compile=False)
    assert sliding_encoder(model.encoder, model.engine, 16) is None


def test_a_domain_that_hangs_over_its_image_ends_where_the_image_ends() -> None:
    encoder = random_encoder(POOLER)
    model = Model(encoder, name="test", weights_id="test", precision="fp32")
    image = np.moveaxis(scene(1, 96, 64, 1), (3, 4), (1, 2))  # [1, T, C, H, W]
    dates = random_dates(1, 1).numpy()
    encode = model.domain_encoder(
        patch_size=4, neighborhood_px=24, location_query_patch_size=2, check_units=False
    )
    whole = encode({"sentinel2_l2a": image}, dates)
    # One pixel more on the right is less than half of a patch: nothing sees it.
    ragged = np.concatenate([image, image[..., :1]], axis=-1)
    padding = [(0, 0)] * 3 + [(8, 24), (12, 11)]
    padded = np.pad(ragged, padding, constant_values=np.nan).astype(np.float32)
    found = encode({"sentinel2_l2a": padded}, dates)
    rows, cols = slice(4, 4 + whole.shape[1]), slice(6, 6 + whole.shape[2])
    np.testing.assert_array_equal(found[:, rows, cols], whole)
    found[:, rows, cols] = np.nan
    assert np.isnan(found).all()
