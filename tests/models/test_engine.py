"""The fast encoder gives the official package's answers within the bounds of its precision."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.latent_mim import LatentMIM
from torch import Tensor
from torch.nn import functional

from bocage.errors import BocageWarning, ConfigError
from bocage.models.encoder import Encoder
from bocage.models.engine import (
    FastEncoder,
    build,
    choose_batch,
    fast_encoder,
    kernels,
    library,
)
from bocage.models.engine import fast as fast_module
from bocage.models.engine.blocks import Int8Linear, PackedLinear
from bocage.models.engine.compiled import CompiledBackend
from bocage.models.missing import normalization, prepare
from bocage.models.model import Model
from bocage.models.releases import release_config

from .official import (
    ALL_SENSORS,
    official_model,
    official_sample,
    our_encoder,
    random_dates,
    random_values,
    randomize,
)

NO_KERNELS = library.why_unavailable()
needs_kernels = pytest.mark.skipif(NO_KERNELS is not None, reason=str(NO_KERNELS))

FP32_MAX_ABS = 2e-5
INT8_MEAN_COSINE = 0.999
BF16_MEAN_COSINE, BF16_LOW_COSINE = 0.9995, 0.998
DATA = Path(os.environ.get("BOCAGE_DATA", Path(__file__).parents[3] / "shared" / "data"))
RELEASES = [
    ("v1", "nano"),
    ("v1.1", "nano"),
    ("v1.2", "nano"),
    ("v1.2", "tiny"),
    ("v1.3", "nano"),
    ("v1.3", "tiny"),
]


@lru_cache(maxsize=8)
def pair(version: str, size: str) -> tuple[Encoder, LatentMIM]:
    official = official_model(version, size)
    return our_encoder(official, release_config(version, size)), official


@lru_cache(maxsize=16)
def engine(version: str, size: str, precision: str) -> FastEncoder:
    found = fast_encoder(pair(version, size)[0], precision=precision)
    assert found is not None
    assert "AMX" in found.description
    return found


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


def test_int8_says_where_it_cannot_run() -> None:
    with pytest.raises(ConfigError, match="width 128, which gains nothing"):
        fast_encoder(pair("v1.2", "nano")[0], precision="int8")
    with pytest.raises(ConfigError, match="compile=False"):
        fast_encoder(pair("v1.2", "small")[0], precision="int8", compile=False)


def check_gate(official: Tensor, ours: Tensor, precision: str) -> None:
    """The bounds of the equivalence gate, on tokens [..., D]."""
    if precision == "fp32":
        assert (official - ours).abs().max() <= FP32_MAX_ABS
        return
    cosine = functional.cosine_similarity(official, ours, dim=-1).flatten()
    assert cosine.mean() >= BF16_MEAN_COSINE
    assert cosine.quantile(0.01) >= BF16_LOW_COSINE


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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("version", ["v1", "v1.2"])
def test_the_portable_form_passes_the_gate(version: str, precision: str) -> None:
    plain, _ = pair(version, "nano")
    fast = FastEncoder(plain, CompiledBackend(plain, precision, compile=False), "portable")
    values, dates = random_values(ALL_SENSORS, (2, 10, 10, 2)), random_dates(2, 2)
    generator = torch.Generator().manual_seed(0)
    visible = {
        name: torch.rand(2, 2, 2, 2, len(sets), generator=generator) > 0.3
        for name, sets in plain.config.band_sets.items()
        if name in ALL_SENSORS
    }
    for shown in (None, visible):
        with torch.no_grad():
            expected = plain(values, dates, 5, visible=shown)
        ours = fast(values, dates, 5, visible=shown)
        for name, seen in expected.visible.items():
            check_gate(expected.tokens[name][seen], ours.tokens[name][seen], precision)
    with torch.no_grad():
        tokens = plain(values, dates, 5).tokens
    mean = torch.stack([x.mean(dim=(3, 4)) for x in tokens.values()]).mean(dim=0)
    check_gate(mean, fast.pooled(values, dates, 5), precision)


@pytest.mark.slow
def test_the_compiled_form_passes_the_gate() -> None:
    plain, _ = pair("v1.2", "nano")
    fast = FastEncoder(plain, CompiledBackend(plain, "fp32", compile=True), "compiled")
    values, dates = random_values(("sentinel2_l2a",), (2, 16, 16, 2)), random_dates(2, 2)
    with torch.no_grad():
        expected = plain(values, dates, 4).tokens["sentinel2_l2a"]
    check_gate(expected, fast(values, dates, 4).tokens["sentinel2_l2a"], "fp32")


@pytest.mark.slow
def test_a_second_process_reads_the_graphs_that_the_first_compiled(tmp_path: Path) -> None:
    code = """
import logging, sys, torch
from dataclasses import replace
from bocage.models.encoder import Encoder
from bocage.models.engine import FastEncoder
from bocage.models.engine.compiled import CompiledBackend
from bocage.models.releases import release_config
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
torch.manual_seed(0)
plain = Encoder(replace(release_config("v1.2", "nano"), depth=1)).eval()
fast = FastEncoder(plain, CompiledBackend(plain, "fp32", compile=True), "compiled")
dates = torch.tensor([[[1, 5, 2022]]])
for _ in range(3):
    fast.pooled({"sentinel2_l2a": torch.rand(1, 16, 16, 1, 12)}, dates, 8)
"""
    environment = {**os.environ, "BOCAGE_CACHE": str(tmp_path)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    # Patches and blocks are a graph each; three windows of one shape share them.
    assert said[0].count("0 of 1 graphs from the cache") == 2, said[0]
    assert said[1].count("1 of 1 graphs from the cache") == 2, said[1]
    assert all(text.count("compiled in") == 2 for text in said)
    assert (tmp_path / "torch" / "fxgraph").is_dir()


@needs_kernels
@pytest.mark.parametrize("head_width", [16, 64])
@pytest.mark.parametrize("n_tokens", [1, 15, 16, 17, 33, 250])
@pytest.mark.parametrize("spread", [1.0, 12.0], ids=["usual", "scores over 100"])
def test_attention_kernel(head_width: int, n_tokens: int, spread: float) -> None:
    heads, n_batch = 3, 2
    generator = torch.Generator().manual_seed(n_tokens)
    qkv = torch.randn(n_batch, n_tokens, 3, heads, head_width, generator=generator)
    qkv[:, :, :2] *= spread
    qkv = qkv.bfloat16()
    zeros = torch.zeros(1, n_tokens, dtype=torch.int32)
    lengths = torch.tensor([n_tokens, max(n_tokens - 9, 1)])
    order = kernels.TokenOrder(time=zeros, place=zeros, lengths=lengths)
    ours = kernels.attention(qkv.flatten(2), heads, None, order).float()
    # The kernel rounds queries once more, scaled so that exponentials are powers of two.
    q, k, v = qkv.float().permute(2, 0, 3, 1, 4)
    scale = head_width**-0.5 * math.log2(math.e)
    q = (q * scale).bfloat16().double()
    for b, length in enumerate(lengths.tolist()):
        scores = q[b, :, :length] @ k[b, :, :length].double().mT * math.log(2)
        exact = (scores.softmax(dim=-1) @ v[b, :, :length].double()).transpose(0, 1).flatten(1)
        assert (ours[b, :length] - exact).abs().max() < 0.02  # 2^-9 of shares and of values to 4


@needs_kernels
@pytest.mark.parametrize("head_width", [16, 64])
@pytest.mark.parametrize("n_queries", [1, 16, 37])
@pytest.mark.parametrize("spread", [1.0, 30.0], ids=["usual", "scores over 100"])
def test_reading_kernel(head_width: int, n_queries: int, spread: float) -> None:
    heads, n_batch, n_tokens = 3, 3, 83
    generator = torch.Generator().manual_seed(n_queries)
    q = torch.randn(heads, n_queries, head_width, generator=generator) * spread
    q = (q * head_width**-0.5 * math.log2(math.e)).bfloat16()
    kv = torch.randn(n_batch, n_tokens, 2, heads, head_width, generator=generator).bfloat16()
    lengths = torch.tensor([n_tokens, 1, 33])
    zeros = torch.zeros(1, n_tokens, dtype=torch.int32)
    order = kernels.TokenOrder(time=zeros, place=zeros, lengths=lengths)
    ours = kernels.reading(
        functional.pad(q, (0, 0, 0, -n_queries % 16)).contiguous(),
        q.float().norm(dim=-1).amax(dim=-1),
        kv.flatten(2),
        None,
        order,
        n_queries=n_queries,
    ).float()
    k, v = kv.double().permute(2, 0, 3, 1, 4)
    for b, length in enumerate(lengths.tolist()):
        scores = q.double() @ k[b, :, :length].mT * math.log(2)
        exact = (scores.softmax(dim=-1) @ v[b, :, :length]).transpose(0, 1).flatten(1)
        assert (ours[b] - exact).abs().max() < 0.02


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


def test_auto_picks_the_batch_that_fills_the_caches_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nano, base = release_config("v1.2", "nano"), release_config("v1.2", "base")
    cpu = torch.device("cpu")
    assert choose_batch(nano, 400, cpu, "bf16")[0] == 1024 * 768 // (400 * 128)
    assert choose_batch(base, 400, cpu, "bf16")[0] == 2
    assert choose_batch(base, 100_000, cpu, "bf16")[0] == 1
    assert choose_batch(nano, 1, cpu, "bf16")[0] == 64
    memory = SimpleNamespace(total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    halves, why = choose_batch(base, 3072, torch.device("cuda"), "bf16")
    assert halves * 3072 * 768 * 12 * 2 <= 2 * 2**30 < (halves + 1) * 3072 * 768 * 12 * 2
    assert "16 GiB" in why
    assert choose_batch(base, 3072, torch.device("cuda"), "fp32")[0] == halves // 2
    model = Model(pair("v1.2", "nano")[0], name="m", weights_id="random:0", precision="fp32")
    with caplog.at_level(logging.INFO):
        assert model.windows_per_batch(400) == 15
    assert "m takes 15 windows at once: 15 x 400 tokens of width 128 fill the caches" in caplog.text


@needs_kernels
def test_a_split_batch_gives_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    values, dates = random_values(["sentinel2_l2a"], (5, 16, 16, 2)), random_dates(5, 2)
    for precision in ("fp32", "bf16"):
        fast = engine("v1.2", "nano", precision)
        whole = fast.pooled(values, dates, 4)
        monkeypatch.setattr(fast_module, "NUMBERS_AT_ONCE", 2 * 32 * 128)
        assert fast._samples_at_once(values, 4) == 2
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


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 32, 32), (77, 128, 384), (33, 3072, 64), (250, 768, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_product_kernel(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    n_rows, n_in, n_out = shape
    generator = torch.Generator().manual_seed(n_in)
    x = (torch.randn(n_rows, n_in, generator=generator) * 3 + 1).to(dtype)
    weight = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
    bias = torch.randn(n_out, generator=generator)
    plus = torch.randn(n_rows, n_out, generator=generator).to(dtype)
    linear = PackedLinear(weight, bias, dtype)
    exact_weight = weight.to(dtype).double()
    product = x.double() @ exact_weight.mT + bias
    bound = 2e-5 if dtype == torch.float32 else 2**-8 * float(product.abs().max())
    assert (linear(x) - product).abs().max() <= bound
    added = linear(x, plus=plus)
    assert (added - product - plus).abs().max() <= 2 * bound
    if n_in <= 1024:  # a norm reads whole rows
        normed = functional.layer_norm(x.double(), (n_in,), eps=1e-5)
        expected = functional.gelu(normed @ exact_weight.mT + bias)
        ours = linear(x, norm_epsilon=1e-5, gelu=True)
        assert (ours - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 0.02)


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 32, 32), (77, 128, 384), (530, 3072, 64), (650, 768, 96)])
def test_products_of_tiles_equal_those_of_rows(shape: tuple[int, int, int]) -> None:
    n_rows, n_in, n_out = shape
    generator = torch.Generator().manual_seed(n_in)
    x = torch.randn(n_rows, n_in, generator=generator).bfloat16()
    linear = PackedLinear(
        torch.randn(n_out, n_in, generator=generator) / n_in**0.5,
        torch.randn(n_out, generator=generator),
        torch.bfloat16,
    )
    plus = torch.randn(n_rows, n_out, generator=generator).bfloat16()
    tiles = kernels.to_tiles(x)
    assert torch.equal(tiles.transpose(1, 2).reshape(-1, n_in)[:n_rows], x)
    assert torch.equal(kernels.from_tiles(tiles, x.shape), x)
    assert torch.equal(linear.from_tiles(tiles, n_rows), linear(x))
    made = linear.to_tiles(tiles, n_rows, norm_epsilon=1e-5, gelu=True)
    expected = linear(x, norm_epsilon=1e-5, gelu=True)
    assert torch.equal(kernels.from_tiles(made, expected.shape), expected)
    sums = kernels.to_tiles(plus)
    assert linear.to_tiles(tiles, n_rows, plus=sums) is sums
    assert torch.equal(kernels.from_tiles(sums, plus.shape), linear(x, plus=plus))


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 64, 32), (77, 768, 96), (530, 3072, 64)])
def test_int8_products_are_those_of_their_codes(shape: tuple[int, int, int]) -> None:
    n_rows, n_in, n_out = shape
    generator = torch.Generator().manual_seed(n_in)
    x = (torch.randn(n_rows, n_in, generator=generator) * 3 + 1).bfloat16()
    weight = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
    bias = torch.randn(n_out, generator=generator)
    plus = torch.randn(n_rows, n_out, generator=generator).bfloat16()
    linear, tiles = Int8Linear(weight, bias), kernels.to_tiles(x)

    def to_codes(rows: Tensor) -> Tensor:
        scale = rows.abs().amax(dim=1, keepdim=True) / 127
        return (rows / scale).round() * scale

    product = to_codes(x.double()) @ to_codes(weight.double()).mT + bias
    # Codes at the border of two may round differently in fp32: a few steps of one factor.
    bound = 2**-8 * float(product.abs().max()) + 0.02
    assert (linear.from_tiles(tiles, n_rows) - product).abs().max() <= bound
    sums = kernels.to_tiles(plus)
    linear.to_tiles(tiles, n_rows, plus=sums)
    assert (kernels.from_tiles(sums, plus.shape) - product - plus).abs().max() <= 2 * bound
    normed = functional.layer_norm(x.double(), (n_in,), eps=1e-5)
    expected = functional.gelu(to_codes(normed) @ to_codes(weight.double()).mT + bias)
    made = linear.to_tiles(tiles, n_rows, norm_epsilon=1e-5, gelu=True)
    assert (kernels.from_tiles(made, expected.shape) - expected).abs().max() <= 0.03


@needs_kernels
def test_the_norm_of_a_product_does_not_mind_a_mean() -> None:
    """The mean is taken off after the product: a large one must not cost digits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 768, generator=generator) * 0.5 + 30
    weight = torch.randn(96, 768, generator=generator) / 768**0.5
    linear = PackedLinear(weight, torch.zeros(96), torch.bfloat16)
    normed = functional.layer_norm(x.bfloat16().double(), (768,), eps=1e-5)
    expected = normed @ weight.bfloat16().double().mT
    error = linear(x.bfloat16(), norm_epsilon=1e-5) - expected
    assert error.abs().max() <= 2**-8 * float(expected.abs().max())


@needs_kernels
def test_gelu_of_products() -> None:
    x = torch.linspace(-12, 12, 24032).view(-1, 32)
    for dtype in (torch.float32, torch.bfloat16):
        same = kernels.pack_weight(torch.eye(32), dtype)
        exact = functional.gelu(x.to(dtype).double())
        error = (kernels.product(x.to(dtype), same, torch.zeros(32), gelu=True) - exact).abs()
        if dtype == torch.float32:
            assert error.max() < 1e-6
        else:
            assert (error <= 2**-8 * exact.abs() + 1e-4).all()


@needs_kernels
def test_fp32_products_are_as_exact_as_torch() -> None:
    """Three bf16 numbers hold 24 bits: no value, however mixed in size, loses more than in fp32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 768, generator=generator) * 10 ** torch.linspace(-6, 4, 768)
    weight = torch.randn(128, 768, generator=generator)
    exact = x.double() @ weight.double().mT
    scale = x.double().abs() @ weight.double().abs().mT
    ours = kernels.product(x, kernels.pack_weight(weight, torch.float32), torch.zeros(128))
    theirs = functional.linear(x, weight)
    assert ((ours - exact).abs() / scale).max() <= 4 * ((theirs - exact).abs() / scale).max()


@needs_kernels
def test_a_second_process_opens_the_kernels_that_the_first_built(tmp_path: Path) -> None:
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "from bocage.models.engine import library; assert library.why_unavailable() is None"
    )
    environment = {**os.environ, "BOCAGE_CACHE": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert "compiled the kernels in" in said[0]
    assert "compiled" not in said[1]
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_compiler_the_plain_encoder_runs_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, _ = pair("v1.2", "nano")
    monkeypatch.setattr(build.cpu, "why_unsuited", lambda *_: "no kernels")
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    build._warn_plain.cache_clear()
    with pytest.warns(BocageWarning, match="no C\\+\\+ compiler.*plain encoder"):
        assert fast_encoder(plain, precision="fp32") is None
    assert fast_encoder(plain, precision="fp32") is None  # once
    with pytest.raises(ConfigError, match="compile=True"):
        fast_encoder(plain, precision="fp32", compile=True)
    assert fast_encoder(plain, precision="fp32", compile=False) is None


def test_auto_says_what_it_picked_and_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nano, base = pair("v1.2", "nano")[0], pair("v1.2", "base")[0]
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    monkeypatch.setattr(build.cpu, "why_unsuited", lambda *_: None)
    assert build.choose_precision("auto", nano)[0] == "bf16"
    assert "width 128" in build.choose_precision("auto", nano)[1]
    assert build.choose_precision("auto", base)[0] == "int8"
    assert "cosine" in build.choose_precision("auto", base)[1]
    assert build.choose_precision("auto", base, False)[0] == "bf16"
    assert build.choose_precision("fp32", base) == ("fp32", "as asked")
    monkeypatch.setattr(build.cpu, "why_unsuited", lambda *_: "there is no compiler")
    assert build.choose_precision("auto", base)[0] == "bf16"
    monkeypatch.setattr(build, "cpu_flags", frozenset)
    assert build.choose_precision("auto", base)[0] == "fp32"
    with pytest.raises(ConfigError, match="precision='half'"):
        build.choose_precision("half", nano)
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        found = fast_encoder(pair("v1.2", "nano")[0])
    if found is not None:
        assert found.description in caplog.text
    encoder = pair("v1.2", "nano")[0]
    with caplog.at_level(logging.INFO):
        model = Model(encoder, name="m", weights_id="random:0", precision="auto")
    assert f"m runs in {model.precision}: " in caplog.text
    assert model.description.startswith(model.precision)
    assert model._precision_reason in model.description
    plain = Model(encoder, name="m", weights_id="random:0", precision="fp32", compile=False)
    assert plain.description == "fp32, plain encoder on cpu (as asked)"
