"""Missing bands, pixels, timesteps and sensors: official rules, and each sample as if alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from olmoearth_pretrain_minimal import NormalizerV1, NormalizerV1_1
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.constants import Modality

from bocage.errors import BocageWarning, InputError
from bocage.models.encoded import Encoded
from bocage.models.missing import nearest_bands, prepare
from bocage.models.model import Model
from bocage.models.releases import release_config
from bocage.sensors import SENSORS

from .official import (
    ALL_SENSORS,
    TOLERANCE,
    max_difference,
    official_model,
    official_sample,
    our_encoder,
    our_model,
    random_dates,
)

NANO = ["v1", "v1.1", "v1.2", "v1.3"]
NAN = float("nan")


def raw_values(shape_bhwt: tuple[int, int, int, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Plausible values in product units."""
    rng = np.random.default_rng(seed)
    return {
        name: np.stack(
            [rng.normal(b.mean, b.std / 3, shape_bhwt) for b in sensor.bands], axis=-1
        ).astype(np.float32)
        for name, sensor in SENSORS.items()
    }


def prepared(version: str, name: str, x: np.ndarray, patch_size: int = 2):
    config = release_config(version, "nano")
    return prepare(
        name,
        torch.from_numpy(x),
        band_sets=config.band_sets[name],
        patch_size=patch_size,
        copy_missing_bands=config.copies_missing_bands,
    )


@pytest.mark.parametrize("name", ALL_SENSORS)
def test_complete_values_are_normalized_as_officially(name: str) -> None:
    x = raw_values((2, 4, 4, 2))[name]
    ours, visible = prepared("v1.2", name, x)
    theirs = NormalizerV1_1().normalize(Modality.get(name), x.astype(np.float64))
    assert visible is None
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6)


@pytest.mark.parametrize("version", ["v1", "v1.2"])
@pytest.mark.parametrize("name", ALL_SENSORS)
def test_missing_bands_are_filled_as_officially(version: str, name: str) -> None:
    x = raw_values((1, 4, 4, 1))[name]
    n_bands = x.shape[-1]
    official = (NormalizerV1 if version == "v1" else NormalizerV1_1)()
    rng = np.random.default_rng(1)
    cases = [np.flatnonzero(rng.random(n_bands) < 0.5) for _ in range(12)]
    cases += [np.array([i]) for i in range(n_bands)]
    if name == "landsat":
        cases += [np.arange(9)]  # not a single optical band
    for missing in cases:
        if len(missing) in (0, n_bands):
            continue
        holes = x.copy()
        holes[..., missing] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours, visible = prepared(version, name, holes)
            theirs = official.normalize(Modality.get(name), holes.astype(np.float64))
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6, err_msg=str(missing))
        empty_set = version == "v1" and name == "landsat" and set(missing) >= set(range(9))
        assert (visible is None or bool(visible.all())) is not empty_set


def test_thermal_bands_are_only_replaced_by_thermal_bands() -> None:
    names = SENSORS["landsat"].band_names
    order = nearest_bands(SENSORS["landsat"])
    assert [names[i] for i in order[names.index("B10")]] == ["B11"]
    assert "B10" not in [names[i] for i in order[names.index("B7")]]


def test_many_missing_bands_are_announced_with_their_names() -> None:
    x = raw_values((1, 4, 4, 1))["sentinel2_l2a"]
    x[..., 2:5] = np.nan
    with pytest.warns(BocageWarning, match=r"3 of 12 sentinel2_l2a bands are missing \(B04, B08"):
        prepared("v1.2", "sentinel2_l2a", x)


def test_few_missing_bands_are_not_announced() -> None:
    x = raw_values((1, 4, 4, 1))["sentinel2_l2a"]
    x[..., 10:] = np.nan  # B01 and B09: 17 %, and BocageWarning is an error in these tests
    prepared("v1.2", "sentinel2_l2a", x)


@pytest.mark.parametrize(("n_missing", "visible"), [(1, True), (2, True), (3, False), (4, False)])
def test_a_patch_is_visible_if_half_of_its_pixels_are_valid(n_missing: int, visible: bool) -> None:
    x = raw_values((1, 4, 4, 1))["sentinel2_l2a"]
    for pixel in range(n_missing):
        x[0, pixel // 2, pixel % 2, 0, pixel] = np.nan  # one band each is enough
    values, seen = prepared("v1.2", "sentinel2_l2a", x, patch_size=2)
    if visible:
        assert seen is None
    else:
        assert not bool(seen[0, 0, 0, 0, 0])
        assert bool(seen[0, 1:].all())
    assert bool(torch.isfinite(values).all())


def test_lone_missing_pixels_get_the_mean_of_their_band() -> None:
    x = raw_values((2, 4, 4, 1))["sentinel1"]
    x[0, 0, 0, 0, 0] = np.nan
    values, _ = prepared("v1.2", "sentinel1", x)
    mean = np.nanmean(x[0, ..., 0, 0])
    band = SENSORS["sentinel1"].bands[0]
    expected = (mean - (band.mean - 2 * band.std)) / (4 * band.std)
    np.testing.assert_allclose(values[0, 0, 0, 0, 0], expected, atol=1e-6)


def test_infinite_values_are_an_error() -> None:
    x = raw_values((1, 4, 4, 1))["sentinel1"]
    x[0, 0, 0, 0, 0] = np.inf
    with pytest.raises(InputError, match="infinite values in sentinel1"):
        prepared("v1.2", "sentinel1", x)


# --- each sample as if alone -----------------------------------------------------------------


@pytest.mark.parametrize("version", NANO)
def test_hidden_tokens_equal_the_official_masked_batch_of_one(version: str) -> None:
    official = official_model(version, "nano")
    ours = our_encoder(official, release_config(version, "nano"))
    generator = torch.Generator().manual_seed(0)
    values = {
        m: torch.rand(3, 8, 8, 3, len(SENSORS[m].bands), generator=generator) for m in ALL_SENSORS
    }
    sets = ours.config.band_sets
    visible = {
        m: torch.rand(3, 2, 2, 3, len(sets[m]), generator=generator)
        > torch.tensor([0.2, 0.5, 0.8]).view(3, 1, 1, 1, 1)
        for m in ALL_SENSORS
    }
    dates = random_dates(3, 3)
    with torch.no_grad():
        output = ours(values, dates, 4, visible=visible)
        for i in range(3):
            one = slice(i, i + 1)
            pixels = {
                m: v[one].repeat_interleave(4, 1).repeat_interleave(4, 2)
                for m, v in visible.items()
            }
            # The official mask has room for three band sets; unused ones stay visible.
            pixels = {
                m: torch.cat(
                    [v, torch.ones(*v.shape[:4], max(values[m].shape[-1], 3) - v.shape[-1]) > 0], -1
                )
                for m, v in pixels.items()
            }
            sample = official_sample({m: x[one] for m, x in values.items()}, dates[one], pixels)
            expected = official.encoder(sample, patch_size=4, fast_pass=False)
            tokens = {m: x[one] for m, x in output.tokens.items()}
            assert max_difference(tokens, expected["tokens_and_masks"]) <= TOLERANCE
            if output.locations is not None:
                difference = output.locations.tokens[one] - expected["location_tokens"]
                assert difference.abs().max() <= TOLERANCE


@pytest.fixture(params=NANO, name="model")
def _model(request: pytest.FixtureRequest) -> Model:
    config = release_config(request.param, "nano")
    return our_model(official_model(request.param, "nano"), config)


def alone(model: Model, x: dict[str, np.ndarray], dates: torch.Tensor, i: int) -> Encoded:
    return model.encode({m: v[i : i + 1] for m, v in x.items()}, dates[i : i + 1])


def test_ragged_batches_give_the_result_of_each_sample_alone(model: Model) -> None:
    x = raw_values((4, 8, 8, 4))
    dates = random_dates(4, 4)
    x["sentinel2_l2a"][0, :, :, 1:3] = NAN  # two timesteps
    x["sentinel1"][1] = NAN  # a whole sensor
    x["landsat"][1, :, :, 0] = NAN
    x["sentinel2_l2a"][2, :4, :4, :, :] = NAN  # a corner in all timesteps
    x["sentinel2_l2a"][3, ..., 10] = NAN  # a band
    batch = model.encode(x, dates)
    for i in range(4):
        one = alone(model, x, dates, i)
        torch.testing.assert_close(batch.pooled()[i], one.pooled()[0], rtol=0, atol=TOLERANCE)
        if batch.student is not None:
            torch.testing.assert_close(batch.student[i], one.student[0], rtol=0, atol=TOLERANCE)


def test_a_missing_timestep_equals_its_absence(model: Model) -> None:
    # v1 and v1.1 number the slots, so only the end may be cut.
    missing = [2, 3] if model.config.square_only else [0, 2]
    kept = [t for t in range(4) if t not in missing]
    x = raw_values((1, 8, 8, 4))
    dates = random_dates(1, 4)
    holes = {m: v.copy() for m, v in x.items()}
    for v in holes.values():
        v[:, :, :, missing] = NAN
    short = model.encode({m: v[:, :, :, kept] for m, v in x.items()}, dates[:, kept])
    long = model.encode(holes, dates)
    torch.testing.assert_close(long.pooled(), short.pooled(), rtol=0, atol=TOLERANCE)


def test_a_missing_sensor_equals_its_absence(model: Model) -> None:
    x = raw_values((1, 8, 8, 2))
    dates = random_dates(1, 2)
    without = model.encode({"sentinel2_l2a": x["sentinel2_l2a"]}, dates)
    x["sentinel1"][:] = NAN
    x["landsat"][:] = NAN
    torch.testing.assert_close(
        model.encode(x, dates).pooled(), without.pooled(), rtol=0, atol=TOLERANCE
    )


def test_a_sample_without_data_is_nan_and_its_neighbor_is_not(model: Model) -> None:
    x = {"sentinel2_l2a": raw_values((2, 8, 8, 2))["sentinel2_l2a"]}
    x["sentinel2_l2a"][0] = NAN
    dates = random_dates(2, 2)
    batch = model.encode(x, dates)
    assert bool(batch.pooled()[0].isnan().all())
    assert bool(batch.grid()[0].isnan().all())
    one = alone(model, x, dates, 1)
    torch.testing.assert_close(batch.pooled()[1], one.pooled()[0], rtol=0, atol=TOLERANCE)
    nothing = model.encode({"sentinel2_l2a": x["sentinel2_l2a"][:1]}, dates[:1])
    assert bool(nothing.grid().isnan().all())


def test_cells_that_saw_nothing_are_nan_in_every_grid(model: Model) -> None:
    x = {"sentinel2_l2a": raw_values((1, 8, 8, 2))["sentinel2_l2a"]}
    x["sentinel2_l2a"][0, :4, 4:] = NAN
    encoded = model.encode(x, random_dates(1, 2))
    for output in ["pooled", "auto"] + (["locations"] if encoded.locations is not None else []):
        nan = encoded.grid(output)[0].isnan().all(dim=-1)
        assert nan.tolist() == [[False, True], [False, False]]
