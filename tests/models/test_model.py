"""What a user can get wrong, and what comes out when all is right."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from bocage import load_model
from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.models.model import Model, spread_pixels
from bocage.models.releases import release_config
from bocage.sensors import SENSORS

from .official import official_model, our_model, random_dates


@pytest.fixture(name="model", scope="module")
def _model() -> Model:
    return load_model("olmoearth-v1.2-nano", weights=None)


@pytest.fixture(name="pooler_model", scope="module")
def _pooler_model() -> Model:
    return our_model(official_model("v1.3", "nano"), release_config("v1.3", "nano"))


def scene(*shape_bhwt: int, sensor: str = "sentinel2_l2a", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    bands = SENSORS[sensor].bands
    x = np.stack([rng.normal(b.mean, b.std / 4, shape_bhwt) for b in bands], axis=-1)
    return np.maximum(x, 20 if sensor != "sentinel1" else -40).astype(np.float32)


DATES = random_dates(2, 3).numpy()


def encode(model: Model, x: object = None, dates: object = None, **options: object):
    inputs = {"sentinel2_l2a": scene(2, 8, 8, 3) if x is None else x}
    return model.encode(inputs, DATES if dates is None else dates, **options)


def test_shapes_and_widths_of_all_outputs(model: Model, pooler_model: Model) -> None:
    encoded = encode(model, patch_size=2)
    assert encoded.tokens["sentinel2_l2a"].shape == (2, 4, 4, 3, 1, 128)
    assert encoded.pooled().shape == (2, 4, 4, 128)
    assert (model.dims(), model.output_name()) == (128, "pooled")
    assert (model.name, model.weights_id) == ("olmoearth-v1.2-nano", "random:0")
    assert (model.release, model.max_timesteps) == ("v1.2", 12)
    encoded = encode(pooler_model, patch_size=4, location_query_patch_size=1)
    assert encoded.grid().shape == (2, 8, 8, pooler_model.dims())
    assert encoded.grid("locations").shape == (2, 8, 8, 128)
    assert (pooler_model.dims(), pooler_model.output_name()) == (128, "student")
    assert torch.equal(encoded.grid("student"), encoded.student)


def test_numpy_torch_float64_integers_and_odd_strides_are_the_same(model: Model) -> None:
    x = np.round(scene(2, 8, 8, 3))
    expected = encode(model, x).pooled()
    frozen = x.copy()
    frozen.setflags(write=False)
    for same in (
        torch.from_numpy(x),
        x.astype(np.float64),
        x.astype(np.uint16),
        x[:, ::-1].copy()[:, ::-1],
        frozen,
        x.tolist(),
    ):
        torch.testing.assert_close(encode(model, same).pooled(), expected, rtol=0, atol=1e-6)


def test_inputs_are_not_changed(model: Model) -> None:
    x = scene(2, 8, 8, 3)
    x[0, :2, :2] = np.nan
    before = x.copy()
    encode(model, x)
    np.testing.assert_array_equal(x, before)


def test_normalized_values_are_taken_as_they_are(model: Model) -> None:
    x = scene(2, 8, 8, 3)
    bands = SENSORS["sentinel2_l2a"].bands
    low = np.array([b.mean - 2 * b.std for b in bands])
    span = np.array([4 * b.std for b in bands])
    done = ((x - low) / span).astype(np.float32)
    torch.testing.assert_close(
        encode(model, done, normalize=False).pooled(), encode(model, x).pooled(), rtol=0, atol=1e-5
    )


def test_tokens_can_be_trained_upon(model: Model) -> None:
    head = torch.nn.Linear(128, 2)
    head(encode(model).pooled()).sum().backward()
    assert head.weight.grad is not None


@pytest.mark.parametrize("output", ["auto", "student", "locations", "pooled"])
def test_window_encoder_is_encode_on_plain_arrays(pooler_model: Model, output: str) -> None:
    x, radar = scene(2, 8, 8, 3), scene(2, 8, 8, 3, sensor="sentinel1")
    x[1, :4, :4] = np.nan
    radar[1, :4, :4] = np.nan
    encode_windows = pooler_model.window_encoder(patch_size=4, output=output)
    values = {"sentinel2_l2a": x, "sentinel1": radar}
    result = encode_windows({m: v.transpose(0, 3, 4, 1, 2) for m, v in values.items()}, DATES)
    expected = pooler_model.encode(values, DATES, patch_size=4).grid(output).numpy()
    assert (type(result), result.dtype) == (np.ndarray, np.float32)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert np.isnan(result[1, 0, 0]).all()


def test_mixed_precision_is_close_to_fp32(model: Model) -> None:
    half = load_model("olmoearth-v1.2-nano", weights=None, precision="bf16")
    difference = (encode(half).pooled() - encode(model).pooled()).abs()
    assert 0 < difference.mean() < 2e-2


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (scene(2, 8, 8, 3) / 10000, "reflectance"),
        (scene(2, 8, 8, 3)[..., :10], r"shape \[2, 8, 8, 3, 10\].*B02 B03"),
        (scene(2, 8, 8, 3)[0], r"shape \[8, 8, 3, 12\]"),
        (scene(2, 8, 6, 3), "8 x 6 pixels with patch_size=4.*pad"),
        (scene(2, 8, 8, 2), r"timestamps of shape \[2, 3, 3\]"),
        (scene(2, 0, 8, 3), "shape"),
        (np.full((2, 8, 8, 3, 12), "a"), "numbers"),
        (scene(2, 8, 8, 3).astype(complex), "complex"),
        (torch.zeros(2, 8, 8, 3, 12, dtype=torch.complex64), "complex"),
        ([scene(1, 8, 8, 3), scene(1, 4, 4, 3)], "one array"),
    ],
)
def test_imagery_that_does_not_fit(model: Model, x: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(model, x)


@pytest.mark.parametrize("wrong_batch", [0, 1, 6])
def test_windows_of_every_batch_are_checked_for_units(model: Model, wrong_batch: int) -> None:
    encode_windows = model.window_encoder(patch_size=8)
    rng = np.random.default_rng(0)
    stamps = np.array([[[1, 6, 2024]]] * 3)
    for batch in range(wrong_batch + 1):
        x = rng.gamma(2, 600, (3, 1, 12, 64, 64)).astype(np.float32)
        if batch < wrong_batch:
            assert encode_windows({"sentinel2_l2a": x}, stamps).shape[:3] == (3, 8, 8)
    with pytest.raises(InputError, match="look like reflectance"):
        encode_windows({"sentinel2_l2a": x / 10_000}, stamps)
    unchecked = model.window_encoder(patch_size=8, check_units=False)
    assert unchecked({"sentinel2_l2a": x / 10_000}, stamps).shape[:3] == (3, 8, 8)


@pytest.mark.parametrize("shape", [(8, 160, 160, 1, 2), (1, 1, 1, 1, 2), (900, 8, 8, 12, 2)])
def test_pixels_to_check_are_spread_over_every_window(shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    picked = spread_pixels(x, 2048)
    assert picked.shape[0] == shape[0]
    assert picked.size > 0
    n = picked[..., 0].size
    assert n <= 4 * 2048 or picked.shape[1:3] == (1, 1)
    assert n >= min(1024, x[..., 0].size)


def test_units_are_not_checked_on_request(model: Model) -> None:
    encode(model, scene(2, 8, 8, 3) / 10000, check_units=False)


@pytest.mark.parametrize("patch_size", [0, 9, -1, 2.5, "4", None])
def test_patch_sizes_that_do_not_exist(model: Model, patch_size: object) -> None:
    with pytest.raises(InputError, match=r"patch_size=.*from 1 to 8"):
        encode(model, patch_size=patch_size)


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        ((1, 12, 2020), "month 12.*January is 0"),
        ((0, 5, 2020), "day 0"),
        ((32, 5, 2020), "day 32"),
        ((1, 5, 20), "year 20"),
        ((2020, 5, 1), "year 1.*put the year last"),
        ((1.5, 5, 2020), "whole numbers"),
        ((1, 2020), "shape"),
        (("a", "b", "c"), "type"),
    ],
)
def test_dates_that_cannot_be(model: Model, stamp: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(model, scene(1, 8, 8, 1), np.array([[stamp]]))


def test_sensors_must_be_known_and_on_one_grid(model: Model) -> None:
    with pytest.raises(InputError, match="sensor 'sentinel3'"):
        model.encode({"sentinel3": scene(1, 8, 8, 1)}, DATES[:1, :1])
    with pytest.raises(InputError, match="no inputs"):
        model.encode({}, DATES)
    with pytest.raises(InputError, match="got a ndarray"):
        model.encode(scene(2, 8, 8, 3), DATES)
    with pytest.raises(InputError, match="different"):
        model.encode(
            {
                "sentinel2_l2a": scene(1, 8, 8, 2),
                "sentinel1": scene(1, 8, 8, 1, sensor="sentinel1"),
            },
            DATES[:1, :2],
        )


@pytest.mark.parametrize("version", ["v1", "v1.1"])
def test_rectangles_are_refused_where_the_release_cannot_have_them(version: str) -> None:
    model = load_model(f"olmoearth-{version}-nano", weights=None)
    with pytest.raises(InputError, match=r"8 x 12 pixels.*square"):
        encode(model, scene(2, 8, 12, 3))


def test_long_series_are_announced_once(model: Model) -> None:
    dates = random_dates(1, 13).numpy()
    with pytest.warns(BocageWarning, match="13 timesteps"):
        encode(model, scene(1, 4, 4, 13), dates)
    encode(model, scene(1, 4, 4, 13), dates)


@pytest.mark.parametrize("query", [3, 0, 8])
def test_location_queries_must_divide_the_patch(pooler_model: Model, query: int) -> None:
    with pytest.raises(ConfigError, match="divisor"):
        encode(pooler_model, location_query_patch_size=query)


def test_outputs_of_v1_3_are_refused_on_other_models(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"v1\.3"):
        encode(model, location_query_patch_size=2)
    for ask in (model.dims, encode(model).grid, lambda o: model.window_encoder(output=o)):
        with pytest.raises(ConfigError, match="output='student'"):
            ask("student")
    with pytest.raises(ConfigError, match="output='other'"):
        model.dims("other")


def test_random_weights_say_that_they_mean_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    load_model("olmoearth-v1-nano", weights=None)
    assert "mean nothing" in caplog.text


@pytest.mark.parametrize("name", ["olmoearth-v1-nano", "olmoearth-v1.2-nano"])
def test_value_scale_brings_embeddings_into_the_range_of_int8_codes(name):
    model = load_model(name, weights=None)
    x = np.random.default_rng(0).uniform(200, 4000, (2, 1, 12, 32, 32)).astype(np.float32)
    stamps = np.tile([[1, 6, 2020]], (2, 1, 1))
    vectors = model.window_encoder(patch_size=4)({"sentinel2_l2a": x}, stamps)
    assert (np.abs(vectors) > 1).mean() > 0.1  # unscaled codes would clip these
    assert (np.abs(vectors / model.value_scale()) > 0.99).mean() < 1e-3


def test_value_scale_of_small_gains_is_one():
    model = load_model("olmoearth-v1.2-nano", weights=None)
    model.encoder.norm.weight.data.fill_(0.23)
    assert model.value_scale() == 1
    model.encoder.norm.bias.data[3] = -2.5
    assert model.value_scale() == 4
