"""Which dates make one embedding, how windows share batches, and how long a plan says it takes."""

import time

import numpy as np
import pytest
from affine import Affine

from bocage import embed, open_embeddings, open_stack
from bocage.embeddings import EmbeddingGrid
from bocage.errors import InputError
from bocage.mapping import EmbedConfig, make_plan, time_window
from bocage.mapping.worker import batches, encode_batch, read_strip, strip_places

from .conftest import PatchMean, write_scene

OPTIONS = {"patch_size": 4, "window_px": 32, "halo_px": 8, "codec": "float32"}


@pytest.fixture
def two_years(tmp_path):
    arrays = {}
    for year in (2023, 2024):
        folder = tmp_path / str(year)
        folder.mkdir()
        path, arrays[year] = write_scene(folder, (64, 64), seed=year)
        path.rename(path.with_name(f"S2_{year}0701.tif"))
    paths = [tmp_path / str(year) / f"S2_{year}0701.tif" for year in (2023, 2024)]
    return open_stack(paths), arrays


def cells(x):
    return x.reshape(12, 16, 4, 16, 4).mean(axis=(2, 4)) / 10000


def test_each_calendar_year_becomes_an_embedding_of_its_own_dates(two_years, tmp_path):
    stack, arrays = two_years
    out = tmp_path / "x.zarr"
    embed(stack, PatchMean(), out=out, period="year", **OPTIONS)
    emb = open_embeddings(out)
    assert emb["time"].values.tolist() == [2023, 2024]
    for index, year in enumerate((2023, 2024)):
        np.testing.assert_allclose(emb.values[index], cells(arrays[year]), atol=1e-6)


def test_more_than_a_year_as_one_embedding_is_refused_with_the_way_out(two_years, tmp_path):
    stack, _ = two_years
    stretched = stack.assign_coords(time=np.array(["2023-01-01", "2024-07-01"], "datetime64[ns]"))
    with pytest.raises(InputError, match="--period year"):
        make_plan(stretched, PatchMean(), EmbedConfig(**OPTIONS))
    season = stack.assign_coords(time=np.array(["2023-10-01", "2024-09-30"], "datetime64[ns]"))
    assert make_plan(season, PatchMean(), EmbedConfig(**OPTIONS)).years == (2024,)


def test_windows_that_miss_nothing_never_share_a_batch_with_those_that_do(tmp_path):
    path, _ = write_scene(tmp_path, (160, 160), missing=(slice(0, 50), slice(0, 50)))
    stack = open_stack(path)
    plan = make_plan(stack, PatchMean(), EmbedConfig(**OPTIONS, batch_size=1000))
    seen = []

    def encoder(values, timestamps):
        x = values["sentinel2_l2a"]
        seen.append(np.isnan(x).any(axis=(1, 2, 3, 4)))
        return np.zeros((len(x), 8, 8, 12), np.float32)

    (block,) = plan.layout.blocks()
    n_windows = 0
    for place in strip_places(stack, plan, block, 2024):
        strip = read_strip(stack, plan, place)
        n_windows += len(place.windows)
        for windows in batches(strip, plan):
            encode_batch(strip, windows, plan, encoder)
    assert n_windows == plan.n_windows
    assert {bool(b.all()) for b in seen} == {True, False}
    assert all(b.all() or not b.any() for b in seen)
    # Windows without a single pixel of data are not encoded at all.
    assert sum(len(b) for b in seen) < plan.n_windows


def test_the_time_of_a_large_domain_grows_with_its_area(scene):
    stack, _ = scene
    config = EmbedConfig(patch_size=1, window_px=160, halo_px=0, block_px=160)
    plan = make_plan(stack, PatchMean(), config)

    def encoder(values, timestamps):
        side = values["sentinel2_l2a"].shape[-1]
        time.sleep(side**2 / 160**2 * 0.8)
        return np.zeros((1, side, side, 12), np.float32)

    # A sixteenth of the area is timed, so a window is said to take sixteen times that.
    assert plan.layout.window_px == 160
    assert time_window(plan, encoder) == pytest.approx(0.8, rel=0.3)


def test_the_model_chooses_the_batch_unless_the_user_did(two_years):
    class Choosy(PatchMean):
        def windows_per_batch(self, n_tokens):
            assert n_tokens == 64
            return 7

    stack, _ = two_years
    options = {**OPTIONS, "period": "year"}
    assert make_plan(stack, Choosy(), EmbedConfig(**options)).batch_size == 7
    assert make_plan(stack, Choosy(), EmbedConfig(**options, batch_size=3)).batch_size == 3
    assert make_plan(stack, PatchMean(), EmbedConfig(**options)).batch_size == 64


def test_a_seam_free_block_holds_about_as_many_tokens_whatever_the_dates():
    config = EmbedConfig(patch_size=4, seam_free=True)
    sides = [config.most_domain_px(n) // 4 for n in (1, 4, 12, 24)]
    assert sides == [256, 128, 96, 96]
    assert EmbedConfig(patch_size=1, seam_free=True).most_domain_px(1) == 256
    assert EmbedConfig(patch_size=4, seam_free=True, block_px=512).most_domain_px(12) == 512


@pytest.mark.parametrize(
    ("shape_yx", "side_px"),
    [
        ((960, 960), 960),
        ((1933, 1947), 1056),  # 2 x 2 blocks instead of 3 x 3, five of them slivers
        ((960, 1900), 960),  # one row of two either way
        ((2200, 2200), 960),  # 3 x 3 either way
        ((10980, 10980), 1056),
    ],
)
def test_a_block_is_a_core_larger_where_that_takes_fewer_blocks(shape_yx, side_px):
    config = EmbedConfig(patch_size=8)
    assert config.resolve_block_px(96, shape_yx) == side_px
    assert EmbedConfig(patch_size=8, block_px=960).resolve_block_px(96, shape_yx) == 960


@pytest.mark.parametrize("patch_size", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("window_px", [None, 23])
def test_blocks_of_windows_are_shards_that_a_store_takes(patch_size, window_px):
    config = EmbedConfig(patch_size=patch_size, window_px=window_px and patch_size * window_px)
    window = config.resolve_window_px(1)
    core = window - 2 * config.resolve_halo_px(window)
    for length in range(200, 9000, 311):
        side = config.resolve_block_px(core, (length, length // 2))
        assert side % core == 0
        EmbeddingGrid(
            crs="EPSG:32618",
            transform=Affine(10, 0, 500_000, 0, -10, 4_000_000),
            shape_yx=(length, length),
            dims=8,
            shard_cells=side // patch_size,
        )


@pytest.mark.parametrize(
    ("length_px", "side_px"),
    [
        (2048, 2048),  # one domain
        (2304, 2048),  # one with its halo
        (2400, 1136),  # two, not 2048 and a small one that costs as much; the last has a halo more
        (4000, 1936),
        (4224, 2048),
        (20000, 1992),  # ten
    ],
)
def test_seam_free_domains_share_an_image_evenly(length_px, side_px):
    config = EmbedConfig(patch_size=8, seam_free=True)
    domain_px, halo_px = config.resolve_domain_px(400, 1, (length_px, length_px))
    assert (domain_px - 2 * halo_px, halo_px) == (side_px, 128)


@pytest.mark.parametrize(("block_px", "query_px"), [(None, None), (8 * 512, None), (8 * 512, 2)])
@pytest.mark.parametrize("length_px", [2100, 4700, 6424, 9000, 20001])
def test_seam_free_domains_are_shards_that_a_store_takes(block_px, query_px, length_px):
    config = EmbedConfig(patch_size=8, seam_free=True, block_px=block_px, query_px=query_px)
    domain_px, halo_px = config.resolve_domain_px(400, 1, (length_px, length_px))
    if length_px > domain_px:
        cells = (domain_px - 2 * halo_px) // config.cell_px
        assert cells <= 256 or any(cells % n == 0 for n in range(64, 257))
