"""The fast encoder gives the official package's answers within the bounds of its precision."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bocage.models.engine import FastEncoder, build, fast_encoder
from bocage.models.engine import fast as fast_module
from bocage.models.engine.compiled import CompiledBackend
from bocage.models.missing import normalization, prepare
from bocage.models.releases import release_config

from ..official import ALL_SENSORS, official_sample, random_dates, random_values
from .gate import check_gate, engine, needs_kernels, pair

INT8_MEAN_COSINE = 0.999
DATA = Path(os.environ.get("BOCAGE_DATA", Path(__file__).parents[4] / "shared" / "data"))
RELEASES = [
    ("v1", "nano"),
    ("v1.1", "nano"),
    ("v1.2", "nano"),
    ("v1.2", "tiny"),
    ("v1.3", "nano"),
    ("v1.3", "tiny"),
]


def scenes(size_px: int, times: int) -> Tensor:
    """Normalized Sentinel-2 of four real tiles, two years in turn, [4, H, W, T, 12]."""
    rasterio = pytest.importorskip("rasterio")
    folder = DATA / "s2_india_2024_2025"
    if not folder.is_dir():
        pytest.skip(f"no real tiles in {folder} (set BOCAGE_DATA)")
    samples = []
    for place, tile in (("delhi", 0), ("delhi", -1), ("mahe", 0), ("mahe", -1)):
        steps = []
        for i in range(times):
            path = sorted((folder / place / str(2024 + i % 2)).glob("*.tif"))[tile]
            with rasterio.open(path) as file:
                x = file.read()[:, 16 * i :, 16 * i :][:, :size_px, :size_px]
            steps.append(np.moveaxis(x, 0, -1).astype(np.float32))
        samples.append(np.stack(steps, axis=2))
    values, _ = prepare(
        "sentinel2_l2a",
        torch.from_numpy(np.stack(samples)),
        band_sets=((tuple(range(12))),),
        patch_size=1,
        copy_missing_bands=False,
    )
    return values


@needs_kernels
@pytest.mark.parametrize("size", ["base", pytest.param("large", marks=pytest.mark.slow)])
@pytest.mark.parametrize("window", [(64, 1, 8), (16, 3, 4)], ids=str)
def test_int8_passes_its_gate_on_real_scenes(size: str, window: tuple[int, int, int]) -> None:
    size_px, times, patch_size = window
    values, dates = {"sentinel2_l2a": scenes(size_px, times)}, random_dates(4, times)
    for version in ("v1.2", "v1.3") if size == "base" else ("v1",):
        plain, official = pair(version, size)
        with torch.no_grad():
            output = official.encoder(
                official_sample(values, dates), patch_size=patch_size, fast_pass=True
            )
        expected = output["tokens_and_masks"].sentinel2_l2a
        fast = fast_encoder(plain, precision="int8")
        assert fast is not None
        found = fast(values, dates, patch_size)
        if found.locations is not None:
            student = found.locations.student
            cosine = functional.cosine_similarity(
                output["student_location_tokens"], student, dim=-1
            )
            assert cosine.mean() >= INT8_MEAN_COSINE
        ours = found.tokens["sentinel2_l2a"]
        cosine = functional.cosine_similarity(expected, ours, dim=-1)
        assert cosine.mean() >= INT8_MEAN_COSINE
        alone = fast({"sentinel2_l2a": values["sentinel2_l2a"][2:3]}, dates[2:3], patch_size)
        assert (alone.tokens["sentinel2_l2a"] - ours[2:3]).abs().max() < 0.02  # one scale per token


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("version", "size"), RELEASES)
@pytest.mark.parametrize("window", [(64, 1, 8), (16, 3, 4), (4, 2, 1)], ids=str)
def test_real_scenes_pass_the_gate(
    version: str, size: str, precision: str, window: tuple[int, int, int]
) -> None:
    size_px, times, patch_size = window
    values = {"sentinel2_l2a": scenes(size_px, times)}
    dates = random_dates(4, times)
    with torch.no_grad():
        expected = pair(version, size)[1].encoder(
            official_sample(values, dates), patch_size=patch_size, fast_pass=True
        )
    ours = engine(version, size, precision)(values, dates, patch_size)
    tokens = expected["tokens_and_masks"].sentinel2_l2a
    check_gate(tokens, ours.tokens["sentinel2_l2a"], precision)
    if ours.locations is not None:
        check_gate(expected["location_tokens"], ours.locations.tokens, precision)
        check_gate(expected["student_location_tokens"], ours.locations.student, precision)


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("version", "size"),
    [("v1.2", "small"), ("v1.2", "base"), ("v1.3", "base"), ("v1", "base"), ("v1", "large")],
)
def test_real_scenes_pass_the_gate_with_large_models(
    version: str, size: str, precision: str
) -> None:
    test_real_scenes_pass_the_gate(version, size, precision, (64, 1, 8))
    test_real_scenes_pass_the_gate(version, size, precision, (16, 3, 4))


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("patch_size", [1, 2, 3, 5, 7, 8])
def test_every_patch_size_and_all_sensors(patch_size: int, precision: str) -> None:
    values = random_values(ALL_SENSORS, (2, 2 * patch_size, 2 * patch_size, 2))
    dates = random_dates(2, 2)
    for version in ("v1", "v1.2"):
        plain, official = pair(version, "nano")
        with torch.no_grad():
            expected = official.encoder(
                official_sample(values, dates), patch_size=patch_size, fast_pass=True
            )["tokens_and_masks"]
        fast = engine(version, "nano", precision)
        ours = fast(values, dates, patch_size)
        for name in ALL_SENSORS:
            check_gate(getattr(expected, name), ours.tokens[name], precision)
        with torch.no_grad():
            tokens = plain(values, dates, patch_size).tokens
        mean = torch.stack([x.mean(dim=(3, 4)) for x in tokens.values()]).mean(dim=0)
        check_gate(mean, fast.pooled(values, dates, patch_size), precision)


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("version", ["v1.1", "v1.2", "v1.3"])
def test_hidden_tokens_are_not_seen(version: str, precision: str) -> None:
    values = random_values(ALL_SENSORS, (3, 8, 8, 3))
    dates = random_dates(3, 3)
    generator = torch.Generator().manual_seed(0)
    visible = {name: torch.rand(3, 2, 2, 3, 1, generator=generator) > 0.3 for name in ALL_SENSORS}
    for shown in visible.values():
        shown[2] = False  # a sample that sees nothing
    plain, _ = pair(version, "nano")
    with torch.no_grad():
        expected = plain(values, dates, 4, visible=visible)
    ours = engine(version, "nano", precision)(values, dates, 4, visible=visible)
    for name, shown in visible.items():
        assert torch.equal(ours.tokens[name][~shown], torch.zeros_like(ours.tokens[name][~shown]))
        check_gate(expected.tokens[name][shown], ours.tokens[name][shown], precision)
    if ours.locations is not None:
        assert expected.locations is not None
        check_gate(expected.locations.tokens[:2], ours.locations.tokens[:2], precision)


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_batch_that_sees_nothing_is_all_zeros(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "INT8_MIN_WIDTH", 128)
    values, dates = random_values(("sentinel2_l2a",), (2, 8, 8, 1)), random_dates(2, 1)
    visible = {"sentinel2_l2a": torch.zeros(2, 2, 2, 1, 1, dtype=torch.bool)}
    fast = fast_encoder(pair("v1.2", "nano")[0], precision=precision)
    assert fast is not None
    assert not fast(values, dates, 4, visible=visible).tokens["sentinel2_l2a"].any()


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_mates_do_not_matter(precision: str) -> None:
    fast = engine("v1.2", "nano", precision)
    values, dates = random_values(("sentinel2_l2a",), (3, 16, 8, 2)), random_dates(3, 2)
    together = fast(values, dates, 4).tokens["sentinel2_l2a"]
    alone = fast({"sentinel2_l2a": values["sentinel2_l2a"][1:2]}, dates[1:2], 4)
    assert (together[1:2] - alone.tokens["sentinel2_l2a"]).abs().max() < 0.05 * (
        1 if precision == "bf16" else 1e-3
    )


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("patch_size", [4, 8])
def test_the_engine_normalizes_as_it_reads(precision: str, patch_size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    raw, normalized = {}, {}
    for name, release in (("sentinel2_l2a", "v1.2"), ("sentinel1", "v1.2"), ("landsat", "v1.2")):
        low, span = normalization(name)
        x = torch.rand(1, 16, 16, 2, len(low), generator=generator)
        raw[name] = x * span + low
        normalized[name], _ = prepare(
            name,
            raw[name],
            band_sets=release_config(release, "nano").band_sets[name],
            patch_size=patch_size,
            copy_missing_bands=False,
        )
        assert (normalized[name] - x).abs().max() < 1e-4
    dates = random_dates(1, 2)
    fast = engine("v1.2", "nano", precision)
    expected = fast.pooled(normalized, dates, patch_size)
    check_gate(expected, fast.pooled(raw, dates, patch_size, raw=raw.keys()), precision)
    some = {**normalized, "sentinel1": raw["sentinel1"]}
    check_gate(expected, fast.pooled(some, dates, patch_size, raw={"sentinel1"}), precision)
    plain = CompiledBackend(pair("v1.2", "nano")[0], precision, compile=False)
    encoder = FastEncoder(pair("v1.2", "nano")[0], plain, "")
    check_gate(expected, encoder.pooled(raw, dates, patch_size, raw=raw.keys()), precision)


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("version", "patch_size"), [("v1.2", 8), ("v1.2", 3), ("v1", 4)])
def test_imagery_may_lie_in_memory_in_any_order(
    version: str, patch_size: int, precision: str
) -> None:
    generator = torch.Generator().manual_seed(3)
    side = 4 * patch_size
    strip = 5000 * torch.rand(2, 12, side + 5, 90, generator=generator)  # [T, C, rows, cols]
    view = strip.as_strided((3, 2, 12, side, side), (7, *strip.stride()), 90 + 4)
    stamps = torch.tensor([[[1, 3, 2020], [1, 7, 2020]]]).expand(3, -1, -1)
    maps = []
    for x in (view.permute(0, 3, 4, 1, 2), view.permute(0, 3, 4, 1, 2).contiguous()):
        values = {"sentinel2_l2a": x}
        raw = {"sentinel2_l2a"}
        maps.append(engine(version, "nano", precision).pooled(values, stamps, patch_size, raw=raw))
    assert torch.equal(*maps)


@needs_kernels
def test_a_split_batch_gives_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    values, dates = random_values(["sentinel2_l2a"], (5, 16, 16, 2)), random_dates(5, 2)
    for precision in ("fp32", "bf16"):
        fast = engine("v1.2", "nano", precision)
        whole = fast.pooled(values, dates, 4)
        monkeypatch.setattr(fast_module, "NUMBERS_AT_ONCE", 2 * 32 * 128)
        assert len(list(fast._parts(values, dates, None, 4))) == 3
        check_gate(whole, fast.pooled(values, dates, 4), precision)
        monkeypatch.undo()


@needs_kernels
def test_a_split_batch_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    values, dates = random_values(["sentinel2_l2a", "landsat"], (5, 8, 8, 2)), random_dates(5, 2)
    visible = {name: torch.rand(5, 2, 2, 2, 1) > 0.3 for name in values}
    fast = engine("v1.3", "nano", "fp32")
    for shown in (None, visible):
        whole = fast(values, dates, 4, visible=shown)
        monkeypatch.setattr(fast_module, "NUMBERS_AT_ONCE", 2 * 16 * 128)
        parts = fast(values, dates, 4, visible=shown)
        monkeypatch.undo()
        for name in values:
            check_gate(whole.tokens[name], parts.tokens[name], "fp32")
            assert torch.equal(whole.visible[name], parts.visible[name])
        assert whole.locations is not None
        assert parts.locations is not None
        check_gate(whole.locations.tokens, parts.locations.tokens, "fp32")
        assert whole.locations.positions.shape == parts.locations.positions.shape
