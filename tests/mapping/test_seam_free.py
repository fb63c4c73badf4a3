import numpy as np
import pytest

from bocage import embed, load_model, open_embeddings, open_stack
from bocage.errors import ConfigError
from bocage.mapping import EmbedConfig, make_plan, seam_figure
from bocage.mapping.demo import scene_folder

from .conftest import write_scene
from .test_embed import files


@pytest.fixture(scope="module")
def model():
    return load_model("olmoearth-v1.2-nano", weights=None)


OPTIONS = {"patch_size": 8, "window_px": 32, "seam_free": True, "codec": "float32"}


def test_blocks_with_a_halo_of_the_models_reach_equal_one_large_domain(model, tmp_path):
    path, x = write_scene(tmp_path, (512, 448))
    whole = model.domain_encoder(patch_size=8, neighborhood_px=32)(
        {"sentinel2_l2a": x[None, None]}, np.array([[[1, 6, 2024]]])
    )[0]
    halo = model.reach_px(8, 32)
    assert halo % 8 == 0 and 2 * halo < 448
    out = tmp_path / "x.zarr"
    embed(open_stack(path), model, out=out, **OPTIONS, halo_px=halo, block_px=200)
    found = open_embeddings(out).values[0].transpose(1, 2, 0)
    # Cells within a halo of a border are blended from domains of which only one is exact there.
    assert np.abs(found - whole).max() < 0.05
    middle = np.abs(found - whole).max(axis=2)
    assert np.median(middle) < 1e-4


def test_seams_of_windows_are_gone(model, tmp_path):
    # A real scene: neighbouring cells are alike, so a step between windows shows.
    stack = open_stack(scene_folder(), date="2017-07-01", level="L1C")
    stack = stack.isel(y=slice(400, 912), x=slice(200, 712))
    embed(stack, model, out=tmp_path / "free.zarr", **(OPTIONS | {"window_px": 128}))
    options = {"patch_size": 8, "window_px": 128, "halo_px": 0, "codec": "float32"}
    embed(stack, model, out=tmp_path / "cut.zarr", **options)
    free, cut = (open_embeddings(tmp_path / f"{n}.zarr").values[0] for n in ("free", "cut"))
    assert seam_figure(cut, 16) > 1.3
    assert seam_figure(free, 16) == pytest.approx(1, abs=0.1)


def test_models_with_absolute_positions_are_refused_before_anything_is_written(tmp_path):
    path, _ = write_scene(tmp_path, (64, 64))
    with pytest.raises(ConfigError, match=r"v1\.2 or v1\.3"):
        embed(
            open_stack(path),
            load_model("olmoearth-v1.1-nano", weights=None),
            out=tmp_path / "x.zarr",
            **OPTIONS,
        )
    assert not (tmp_path / "x.zarr").exists()


def test_an_image_narrower_than_a_domain_has_missing_cells_only_outside(model, tmp_path):
    path, _ = write_scene(tmp_path, (640, 96))
    out = tmp_path / "x.zarr"
    embed(open_stack(path), model, out=out, **(OPTIONS | {"block_px": 128, "halo_px": 64}))
    assert np.isfinite(open_embeddings(out).values).all()
    plan = make_plan(open_stack(path), model, EmbedConfig(patch_size=8, seam_free=True))
    assert plan.batch_size == 1
    assert "domains" in plan.describe()


def test_a_run_that_died_between_domains_goes_on_to_the_same_bytes(tmp_path):
    path, _ = write_scene(tmp_path, (176, 144))
    model = load_model("olmoearth-v1.2-nano", weights=None, precision="bf16")
    options = OPTIONS | {"window_px": 32, "halo_px": 16, "block_px": 64}
    whole, died = tmp_path / "whole.zarr", tmp_path / "died.zarr"
    embed(open_stack(path), model, out=whole, **options)

    class Dying:
        """The model, until its fourth domain."""

        def __getattr__(self, name):
            return getattr(model, name)

        def domain_encoder(self, **arguments):
            encode, calls = model.domain_encoder(**arguments), []

            def dies(values, timestamps):
                calls.append(None)
                if len(calls) > 3:
                    raise KeyboardInterrupt
                return encode(values, timestamps)

            return dies

    with pytest.raises(KeyboardInterrupt):
        embed(open_stack(path), Dying(), out=died, **options)
    result = embed(open_stack(path), model, out=died, **options)
    assert result.n_blocks_kept > 0
    assert files(died) == files(whole)
