import json

import numpy as np
import pytest
import rioxarray  # noqa: F401 - gives DataArrays their .rio

from bocage import composite, embed, open_embeddings, open_stack
from bocage.embeddings import validate
from bocage.errors import ConfigError, InputError, StoreError
from bocage.mapping import EmbedConfig, make_plan

from .conftest import PatchMean, WindowMean, write_scene

OPTIONS = {"patch_size": 4, "window_px": 32, "halo_px": 8, "codec": "float32"}


def files(store):
    return {
        str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()
    }


def test_a_local_model_gives_its_closed_form_whatever_the_windows(scene, tmp_path):
    stack, x = scene
    rows, cols = 200, 144  # whole patches; the last 3 px of each axis make cells with too little
    expected = x[:, :rows, :cols].reshape(12, rows // 4, 4, cols // 4, 4).mean(axis=(2, 4)) / 10000
    for window, halo, block in ((32, 8, 64), (32, 0, 1024), (64, 12, 100), (256, 8, 1024)):
        out = tmp_path / f"{window}_{halo}_{block}.zarr"
        options = OPTIONS | {"window_px": window, "halo_px": halo, "block_px": block}
        embed(stack, PatchMean(), out=out, **options)
        emb = open_embeddings(out)
        assert emb.shape == (1, 12, 51, 37)
        np.testing.assert_allclose(emb.values[0, :, :50, :36], expected, atol=1e-6)


def blended_naively(x, model, *, patch, window, halo):
    """Cell by cell: every window's vector times its weight, over the sum of weights."""
    core = window - 2 * halo
    _, height, width = x.shape
    encode = model.window_encoder(patch_size=patch)
    sums = np.zeros((height // patch, width // patch, 12))
    total = np.zeros((height // patch, width // patch, 1))

    def starts(length):
        return [(k, max(0, min(k - halo, length - window))) for k in range(0, length, core)]

    def weight(cell, keep, length):
        center = (cell + 0.5) * patch
        end = min(keep + core, length)
        rise = (center - (keep - halo)) / (2 * halo)
        fall = (end + halo - center) / (2 * halo)
        return min(1.0, max(0.0, min(rise, fall)))

    for keep_y, y0 in starts(height):
        for keep_x, x0 in starts(width):
            crop = x[None, None, :, y0 : y0 + window, x0 : x0 + window]
            v = encode({"sentinel2_l2a": crop}, None)[0]
            for i in range(window // patch):
                for j in range(window // patch):
                    row, col = y0 // patch + i, x0 // patch + j
                    w = weight(row, keep_y, height) * weight(col, keep_x, width)
                    sums[row, col] += w * v[i, j]
                    total[row, col] += w
    return (sums / total).transpose(2, 0, 1)


@pytest.mark.parametrize("block", [32, 64, 1024])
def test_overlapping_windows_are_blended_and_blocks_do_not_show(tmp_path, block):
    path, x = write_scene(tmp_path, (160, 112))
    out = tmp_path / "x.zarr"
    embed(open_stack(path), WindowMean(), out=out, **(OPTIONS | {"block_px": block}))
    expected = blended_naively(x, WindowMean(), patch=4, window=32, halo=8)
    np.testing.assert_allclose(open_embeddings(out).values[0], expected, atol=2e-6)


def test_values_beyond_the_range_of_int8_codes_survive_with_the_models_scale(scene, tmp_path):
    class Large(WindowMean):
        def value_scale(self, output="auto"):
            return 4.0

        def window_encoder(self, **kwargs):
            encode = super().window_encoder(**kwargs)
            return lambda values, stamps: encode(values, stamps) * 5

    stack, _ = scene
    embed(stack, Large(), out=tmp_path / "exact.zarr", **OPTIONS)
    exact = open_embeddings(tmp_path / "exact.zarr").values
    assert np.nanmax(exact) > 1.5
    for name in ("x.zarr", "x.tif"):
        options = OPTIONS | {"codec": "signed_power", "block_px": 64}
        embed(stack, Large(), out=tmp_path / name, **options)
        coded = open_embeddings(tmp_path / name).values
        # Half a step of the codes at the largest value: 4 * 2 * sqrt(v / 4) / 127.5 / 2.
        np.testing.assert_allclose(coded, exact, atol=4 * np.sqrt(np.nanmax(exact) / 4) / 127.5)


def test_a_map_in_another_crs_than_utm_becomes_a_cog_and_no_store(tmp_path):
    path, x = write_scene(tmp_path, (64, 64), crs="EPSG:3035")
    stack = open_stack(path)
    with pytest.raises(InputError, match="utm"):
        embed(stack, PatchMean(), out=tmp_path / "x.zarr", **OPTIONS)
    first = embed(stack, PatchMean(), out=tmp_path / "x.tif", **OPTIONS)
    again = embed(stack, PatchMean(), out=tmp_path / "x.tif", **OPTIONS)
    assert again.n_windows == 0 and again.valid_fraction == first.valid_fraction == 1
    emb = open_embeddings(tmp_path / "x.tif")
    assert emb.attrs["precision"] == "fp32"
    assert emb.rio.crs.to_epsg() == 3035
    expected = x.reshape(12, 16, 4, 16, 4).mean(axis=(2, 4)) / 10000
    np.testing.assert_allclose(emb.values[0], expected, atol=1e-6)


def test_missing_pixels_stay_missing_and_reach_no_other_cell(tmp_path):
    path, _ = write_scene(tmp_path, (128, 128), missing=(slice(32, 96), slice(0, 64)))
    emb_path = tmp_path / "x.zarr"
    embed(open_stack(path), PatchMean(), out=emb_path, **(OPTIONS | {"block_px": 48}))
    missing = np.isnan(open_embeddings(emb_path).values[0]).all(axis=0)
    expected = np.zeros((32, 32), bool)
    expected[8:24, 0:16] = True
    np.testing.assert_array_equal(missing, expected)


def test_a_finished_run_does_nothing_and_another_configuration_is_refused(scene, tmp_path):
    stack, _ = scene
    out = tmp_path / "x.zarr"
    first = embed(stack, PatchMean(), out=out, **OPTIONS)
    before = files(out)
    again = embed(stack, PatchMean(), out=out, **OPTIONS)
    assert first.n_windows > 0 and again.n_windows == 0
    assert files(out) == before
    with pytest.raises(StoreError, match=r"halo_px 8 \(now 4\)"):
        embed(stack, PatchMean(), out=out, **(OPTIONS | {"halo_px": 4}))
    assert files(out) == before


def test_what_changes_values_but_not_names_is_another_configuration_too(tmp_path):
    path, _ = write_scene(tmp_path, (64, 64))
    embed(open_stack(path), PatchMean(), out=tmp_path / "x.zarr", **OPTIONS)

    class Rounded(PatchMean):
        precision = "bf16"

    with pytest.raises(StoreError, match=r"precision 'fp32' \(now 'bf16'\)"):
        embed(open_stack(path), Rounded(), out=tmp_path / "x.zarr", **OPTIONS)
    for options in ({"offset": 1.0}, {"cloud_mask": False}):
        with pytest.raises(StoreError, match="reading"):
            stack = open_stack(path, **options)
            embed(stack, PatchMean(), out=tmp_path / "x.zarr", **OPTIONS)
    with pytest.raises(StoreError, match="reading"):
        stack = composite(open_stack(path), period="month")
        stack = stack.assign_coords(time=open_stack(path)["time"].values)
        embed(stack, PatchMean(), out=tmp_path / "x.zarr", **OPTIONS)


@pytest.mark.parametrize("order", [("1/3", "2/3", "3/3"), ("3/3", "1/3", "2/3")])
def test_shards_of_a_run_in_any_order_give_the_same_bytes_as_one_run(scene, tmp_path, order):
    stack, _ = scene
    options = OPTIONS | {"block_px": 48}
    embed(stack, WindowMean(), out=tmp_path / "one.zarr", **options)
    for part in order:
        embed(stack, WindowMean(), out=tmp_path / "many.zarr", shard=part, **options)
    assert files(tmp_path / "many.zarr") == files(tmp_path / "one.zarr")


def test_a_block_behind_the_last_window_is_filled_by_its_neighbours(tmp_path):
    # Four cores of 16 px, and 4 px more, which are the third block of each row and column.
    path, _ = write_scene(tmp_path, (68, 68))
    maps = {}
    for block_px in (32, 1024):
        out = tmp_path / f"{block_px}.zarr"
        embed(open_stack(path), WindowMean(), out=out, **(OPTIONS | {"block_px": block_px}))
        maps[block_px] = open_embeddings(out).values
    shards = list((tmp_path / "32.zarr").glob("utm32/embeddings/c/0/0/*/*"))
    assert len(shards) == 9
    # Sums of a few windows in another order; NaN would not be close.
    np.testing.assert_allclose(maps[32], maps[1024], rtol=0, atol=1e-6)
    assert np.isfinite(maps[1024]).all()


def test_an_image_of_one_block_may_have_any_number_of_cells(tmp_path):
    # 257 is a prime above 256: no inner chunk but of one cell divides it.
    path, x = write_scene(tmp_path, (4 * 257, 32))
    options = {"patch_size": 4, "window_px": 4 * 260, "codec": "float32"}
    embed(open_stack(path), PatchMean(), out=tmp_path / "x.zarr", **options)
    found = open_embeddings(tmp_path / "x.zarr").values[0]
    cells = x.reshape(12, 257, 4, 8, 4).mean(axis=(2, 4)) / 10000
    np.testing.assert_allclose(found, cells, rtol=0, atol=1e-6)
    assert not validate(tmp_path / "x.zarr")


def test_a_failed_read_keeps_what_is_finished_and_the_rest_can_follow(scene, tmp_path):
    stack, _ = scene
    options = OPTIONS | {"block_px": 48}
    embed(stack, WindowMean(), out=tmp_path / "whole.zarr", **options)

    class Failing(WindowMean):
        calls = 0

        def window_encoder(self, **kwargs):
            encode = super().window_encoder(**kwargs)

            def fails_at_the_seventh(values, timestamps):
                type(self).calls += 1
                if self.calls == 7:
                    raise OSError("disk gone")
                return encode(values, timestamps)

            return fails_at_the_seventh

    out = tmp_path / "x.zarr"
    with pytest.raises(OSError, match="disk gone"):
        embed(stack, Failing(), out=out, **options)
    assert list(out.glob("bocage/*.npz"))
    resumed = embed(stack, WindowMean(), out=out, **options)
    assert resumed.n_blocks_kept > 0
    assert files(out) == files(tmp_path / "whole.zarr")


def test_a_damaged_part_is_named_and_its_block_can_be_encoded_anew(scene, tmp_path):
    stack, _ = scene
    options = OPTIONS | {"block_px": 48}
    embed(stack, WindowMean(), out=tmp_path / "whole.zarr", **options)
    out = tmp_path / "x.zarr"
    embed(stack, WindowMean(), out=out, shard="1/2", **options)
    part = sorted(out.glob("bocage/*.npz"))[0]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 255
    part.write_bytes(content)
    with pytest.raises(StoreError, match=f"{part.name}.*damaged"):
        embed(stack, WindowMean(), out=out, **options)
    part.unlink()
    embed(stack, WindowMean(), out=out, **options)
    assert files(out) == files(tmp_path / "whole.zarr")


def test_the_record_repeats_the_run_and_names_the_inputs(scene, tmp_path):
    stack, _ = scene
    result = embed(stack, PatchMean(), out=tmp_path / "x.zarr", request={"model": "m"}, **OPTIONS)
    record = json.loads((tmp_path / "x.zarr.run.json").read_text())
    assert tmp_path / "x.zarr.run.json" in result.files
    assert record["request"] == {"model": "m"}
    assert record["resolved"]["patch_size"] == 4
    assert any("S2_20240701" in source for source in record["resolved"]["sources"])
    assert record["versions"]["numpy"] == np.__version__


def test_a_cog_is_written_whole_without_leftovers_and_not_twice(scene, tmp_path):
    stack, _ = scene
    out = tmp_path / "x.tif"
    options = {k: v for k, v in OPTIONS.items() if k != "codec"}
    embed(stack, PatchMean(), out=out, **options)
    assert sorted(p.name for p in tmp_path.glob("x*")) == [
        "x.tif",
        "x.tif.run.json",
        "x.tif.stac.json",
    ]
    again = embed(stack, PatchMean(), out=out, **options)
    assert again.n_windows == 0
    with pytest.raises(StoreError, match="other options"):
        embed(stack, PatchMean(), out=out, **(options | {"halo_px": 4}))
    store = tmp_path / "y.zarr"
    embed(stack, PatchMean(), out=store, **options)
    np.testing.assert_array_equal(open_embeddings(out).values, open_embeddings(store).values)


def test_a_map_without_a_single_pixel_of_data_is_an_error(tmp_path):
    path, _ = write_scene(tmp_path, (64, 64))
    stack = open_stack(path)
    empty = stack.where(False)
    empty.attrs = stack.attrs
    with pytest.raises(InputError, match=r"no usable pixel|nodata"):
        embed(empty, PatchMean(), out=tmp_path / "x.tif", **OPTIONS)
    assert not (tmp_path / "x.tif").exists()


@pytest.mark.parametrize(
    ("options", "out", "message"),
    [
        ({"patch_size": 0}, "x.zarr", "from 1 to 8"),
        ({"patch_size": 9}, "x.zarr", "from 1 to 8"),
        ({"codec": "zip"}, "x.zarr", "signed_power"),
        ({"query_px": 3}, "x.zarr", "divides the patch size"),
        ({"colour": "red"}, "x.zarr", "unknown option colour"),
        ({}, "x.png", "ends in .zarr or .tif"),
        ({"shard": "4/3"}, "x.zarr", "3/40"),
        ({"shard": "1/3"}, "x.tif", "Zarr store"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    scene, tmp_path, options, out, message
):
    stack, _ = scene
    with pytest.raises(ConfigError, match=message):
        embed(stack, PatchMean(), out=tmp_path / out, **(OPTIONS | options))
    assert not (tmp_path / out).exists()


def test_windows_shrink_with_dates_and_sensors_to_what_models_were_trained_on():
    config = EmbedConfig(patch_size=4)
    sides = {n: config.resolve_window_px(n) // 4 for n in (1, 4, 12, 24, 36, 500)}
    assert sides == {1: 20, 4: 20, 12: 16, 24: 11, 36: 9, 500: 8}
    assert [config.resolve_halo_px(4 * n) // 4 for n in (20, 16, 11, 9, 8)] == [4, 3, 2, 2, 2]
    assert EmbedConfig(patch_size=4, window_px=64).resolve_window_px(36) == 64


def test_the_plan_says_what_will_happen(scene):
    stack, _ = scene
    plan = make_plan(stack, PatchMean(), EmbedConfig(patch_size=4, window_px=32, halo_px=8))
    text = plan.describe(0.5)
    # 204 x 148 padded pixels in cores of 16, the last of a row with 4 px more: 13 x 9 windows.
    assert plan.n_windows == 117
    assert "147 x 203 px" in text and "117 of 32 px" in text and "58 s" in text
    assert "padded" in text


@pytest.mark.parametrize("codec", ["signed_power", "float32"])
def test_a_map_given_as_imagery_is_called_what_it_is(scene, tmp_path, codec):
    stack, _ = scene
    embed(stack, PatchMean(), out=tmp_path / "x.zarr", patch_size=4, codec=codec)
    with pytest.raises(InputError, match="holds embeddings already") as caught:
        open_stack(tmp_path / "x.zarr")
    assert "open_embeddings" in str(caught.value)


def test_imagery_rewritten_under_its_name_is_not_taken_for_the_old(tmp_path):
    path, _ = write_scene(tmp_path, (68, 68))
    for name in ("x.zarr", "half.zarr", "x.tif"):
        part = {"shard": "1/2", "block_px": 32} if name == "half.zarr" else {}
        embed(open_stack(path), PatchMean(), out=tmp_path / name, patch_size=4, **part)
    write_scene(tmp_path, (68, 68), seed=1)
    for name in ("x.zarr", "half.zarr", "x.tif"):
        part = {"shard": "1/2", "block_px": 32} if name == "half.zarr" else {}
        with pytest.raises(StoreError, match="inputs"):
            embed(open_stack(path), PatchMean(), out=tmp_path / name, patch_size=4, **part)
