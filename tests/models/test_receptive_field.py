"""Receptive fields of networks whose field is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bocage.errors import ConfigError, InputError, ModelError
from bocage.models.receptive_field import (
    encoder_function,
    measure_by_exchange,
    measure_by_gradient,
    null_diameters,
)


def conv_stack(n_layers: int, channels: int = 2) -> nn.Sequential:
    """Linear 3 x 3 convolutions with equal positive weights: influence is a power of a box."""
    layers = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(n_layers)]
    for layer in layers:
        nn.init.constant_(layer.weight, 0.3)
    return nn.Sequential(*layers)


def box_power(n: int) -> np.ndarray:
    """What n box filters leave around a pixel: the outer product of trinomial coefficients."""
    row = np.ones(1)
    for _ in range(n):
        row = np.convolve(row, np.ones(3))
    return np.outer(row, row) / row.sum() ** 2


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 2, 33, 33, generator=torch.Generator().manual_seed(0))


def test_gradients_of_a_convolution_stack_are_the_power_of_a_box(images) -> None:
    found = measure_by_gradient(conv_stack(3), images, channel=0)
    expected = np.zeros((33, 33))
    expected[13:20, 13:20] = box_power(3)
    np.testing.assert_allclose(found.influence, expected, atol=1e-7)
    assert found.center_yx == (16.5, 16.5)
    # The diameters by sorting pixels: the whole field is a square of 7, its corners 3 away.
    y, x = np.mgrid[-16:17, -16:17]
    distance = np.hypot(y, x).ravel()
    order = np.argsort(distance, kind="stable")
    inside = np.cumsum(expected.ravel()[order])
    for share in (0.5, 0.9, 0.99):
        edge = distance[order][np.searchsorted(inside, share - 1e-9)]
        assert found.diameter_px[share].value == pytest.approx(2 * edge, abs=1e-5)
    assert found.mass[found.radius_px >= np.hypot(3, 3) - 1e-6].min() == pytest.approx(1)
    # A linear network has the same field everywhere: no spread over images.
    assert found.diameter_px[0.9].low == found.diameter_px[0.9].high
    assert not found.capped


def test_a_uniform_average_equals_the_null(images) -> None:
    def average(x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)

    for found in (
        measure_by_gradient(average, images),
        measure_by_exchange(
            average, images * 0 + torch.arange(6.0)[:, None, None, None], block_px=3
        ),
    ):
        np.testing.assert_allclose(found.mass, found.null_mass, atol=1e-6)
        for share in (0.5, 0.9, 0.99):
            assert found.ratio[share].value == pytest.approx(1)
        assert found.capped
        assert "larger tiles" in found.markdown()


def test_null_of_a_512_pixel_tile_is_the_published_arithmetic() -> None:
    # 50 % of a square lies in the circle of area 512^2 / 2.
    found = null_diameters((512, 512))
    assert found[0.5] == pytest.approx(2 * 512 * np.sqrt(0.5 / np.pi), abs=1)
    assert found[0.9] == pytest.approx(571, abs=1)
    assert found[0.99] == pytest.approx(673, abs=1)


def test_exchanged_blocks_of_a_linear_network_move_the_output_as_computed(images) -> None:
    network = conv_stack(2)
    found = measure_by_exchange(network, images, block_px=3, channel=1, batch_size=7)
    expected = np.zeros((11, 11))
    with torch.no_grad():
        for i in range(6):
            for a in range(11):
                for b in range(11):
                    change = torch.zeros(1, 2, 33, 33)
                    part = (slice(None), slice(3 * a, 3 * a + 3), slice(3 * b, 3 * b + 3))
                    change[0][part] = (images[(i + 1) % 6] - images[i])[part]
                    expected[a, b] += float(network(change)[0, 1, 16, 16].abs())
    np.testing.assert_allclose(found.influence, expected / expected.sum(), atol=1e-6)
    assert found.influence.shape == (11, 11)
    assert found.diameter_px[0.99].value <= 2 * np.hypot(3, 3) + 1e-6
    assert found.diameter_px[0.5].low <= found.diameter_px[0.5].value <= found.diameter_px[0.5].high


def test_signs_keep_opposite_gradients_from_cancelling(images) -> None:
    class Opposite(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left = torch.roll(x[:, :1], 5, dims=3)
            right = torch.roll(x[:, :1], -5, dims=3)
            return torch.cat([left, -left, right], dim=1)

    found = measure_by_gradient(Opposite(), images, n_projections=64)
    assert found.influence[16, 11] > 0.3  # the sum of the three outputs would see nothing here
    assert found.influence[16, 21] > 0.3
    assert found.diameter_px[0.5].value == pytest.approx(10)


def test_the_middle_of_a_coarse_output_is_the_middle_of_its_patch(images) -> None:
    x = images[..., :32, :32]
    found = measure_by_gradient(nn.AvgPool2d(4), x, channel=0)
    assert found.center_yx == (18, 18)
    expected = np.zeros((32, 32))
    expected[16:20, 16:20] = 1 / 16
    np.testing.assert_allclose(found.influence, expected, atol=1e-9)
    corner = measure_by_gradient(nn.AvgPool2d(4), x, channel=0, cell_yx=(0, 0))
    assert corner.center_yx == (2, 2)


def test_an_encoder_sees_its_whole_window_and_nothing_else(images) -> None:
    import bocage

    model = bocage.load_model("olmoearth-v1.2-nano", weights=None)
    network = encoder_function(model, "sentinel2_l2a", [[15, 6, 2024]], patch_size=4)
    x = torch.randn(2, 12, 32, 32, generator=torch.Generator().manual_seed(0))
    found = measure_by_gradient(network, x, n_projections=2)
    assert found.influence.shape == (32, 32)
    assert (found.influence > 0).all()
    assert 0 < found.ratio[0.5].value <= 1.01
    encoded = model.encode(
        {"sentinel2_l2a": x.permute(0, 2, 3, 1).unsqueeze(3)},
        torch.tensor([[[15, 6, 2024]]]).expand(2, -1, -1),
        patch_size=4,
        normalize=False,
    ).pooled()
    with torch.no_grad():
        torch.testing.assert_close(network(x).permute(0, 2, 3, 1), encoded, atol=1e-4, rtol=1e-4)


def test_networks_and_images_that_cannot_be_measured_are_refused(images) -> None:
    with pytest.raises(InputError, match="NaN"):
        measure_by_gradient(conv_stack(1), images * float("nan"))
    with pytest.raises(InputError, match=r"float \[B, C, H, W\]"):
        measure_by_gradient(conv_stack(1), images[0])
    with pytest.raises(ModelError, match=r"\[B, D, h, w\]"):
        measure_by_gradient(lambda x: x.mean(dim=1), images)
    with pytest.raises(ModelError, match="no gradient"):
        measure_by_gradient(lambda x: x.detach(), images)
    with pytest.raises(ModelError, match="does not depend"):
        measure_by_gradient(lambda x: x * 0, images)
    with pytest.raises(ConfigError, match="blocks of 5 px"):
        measure_by_exchange(conv_stack(1), images, block_px=5)
    with pytest.raises(ConfigError, match="with 1 images"):
        measure_by_exchange(conv_stack(1), images[:1], block_px=3)
    with pytest.raises(ConfigError, match="channel 9"):
        measure_by_gradient(conv_stack(1), images, channel=9)
