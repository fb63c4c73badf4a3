import numpy as np
import pytest
import torch

from bocage.errors import BocageWarning
from bocage.learn.finetune import FinetuneConfig
from bocage.learn.finetune.augment import choose_way, turn
from bocage.learn.finetune.batches import Batches
from bocage.learn.finetune.start import start
from bocage.models import load_model
from tests.learn.finetune.crops import crops


@pytest.fixture(scope="module")
def model():
    return load_model("olmoearth-v1.2-nano", weights=None, compile=False)


def test_the_eight_ways_are_the_symmetries_of_a_square():
    x = np.arange(9).reshape(3, 3)
    images = {turn(x, way, (0, 1)).tobytes() for way in range(8)}
    expected = set()
    for mirrored in (x, x[:, ::-1]):
        y = mirrored
        for _ in range(4):
            y = np.array([[y[2 - c][r] for c in range(3)] for r in range(3)])  # a quarter turn
            expected.add(y.tobytes())
    assert images == expected and len(images) == 8


def test_rectangles_keep_their_shape():
    rng = np.random.default_rng(0)
    ways = {choose_way(rng, (8, 16)) for _ in range(100)}
    assert ways == {0, 2, 4, 6}
    assert all(turn(np.zeros((8, 16)), way, (0, 1)).shape == (8, 16) for way in ways)


def test_labels_turn_with_their_image_and_really_turn(model):
    """Each pixel of the image carries its label; after augmentation it still does."""
    data = crops(n=32)
    data.x["sentinel2_l2a"][..., 0] = 1000 + 1000 * data.labels[:, None]
    data.x["sentinel2_l2a"][:, :, 0, 0, 1] = 9000  # a mark in the first corner
    config = FinetuneConfig(batch_size=32)
    prepare = start(model, data, config).prepare
    batches = Batches(data, config, prepare)
    corners = set()
    for epoch in range(4):
        (batch,) = batches.step(epoch, 0)
        image = batch.inputs.values["sentinel2_l2a"]  # [B, H, W, T, C]
        for t in range(2):
            band = image[..., t, 0]
            high = band > (band.min() + band.max()) / 2
            assert torch.equal(high, batch.labels == 1)
        marks = image[..., 0, 1]
        for b in range(len(marks)):
            row, col = divmod(int(marks[b].argmax()), marks.shape[-1])
            corners.add((row, col))
    assert corners == {(0, 0), (0, 15), (15, 0), (15, 15)}
    (plain,) = Batches(data, FinetuneConfig(batch_size=32, flips=False), prepare).step(0, 0)
    assert torch.equal(plain.labels, torch.from_numpy(data.labels[plain.rows]))


def test_a_hidden_date_is_as_if_it_were_missing(model):
    data = crops(n=16)
    config = FinetuneConfig(batch_size=16, drop_timesteps=0.5, drop_bands=0.2, flips=False)
    begun = start(model, data, config)
    (batch,) = Batches(data, config, begun.prepare).step(0, 0)
    visible = batch.inputs.visible["sentinel2_l2a"]
    shown = visible.all(dim=(1, 2, 4))  # [B, T]
    assert torch.equal(shown, visible.any(dim=4).any(dim=2).any(dim=1))
    assert shown.any(dim=1).all() and not shown.all()
    values = batch.inputs.values["sentinel2_l2a"]
    bands = (values != 0).any(dim=3).any(dim=2).any(dim=1)  # [B, C]
    assert 0.6 < bands.float().mean() < 0.95
    # The same crop with NaN in the hidden date and bands gives the same answer.
    b = int(torch.nonzero(~shown.all(dim=1))[0])
    raw = data.x["sentinel2_l2a"][batch.rows[b]].copy()  # [T, H, W, C]
    raw[~shown[b].numpy()] = np.nan
    raw[..., ~bands[b].numpy()] = np.nan
    with pytest.warns(BocageWarning) if (~bands[b]).sum() > 2 else _quiet():
        missing = begun.prepare(
            {"sentinel2_l2a": torch.from_numpy(raw[None]).movedim(1, 3)},
            batch.inputs.timestamps[b : b + 1],
            False,
        )
    network = begun.module.eval()
    with torch.no_grad():
        hidden = network(batch.inputs)[b]
        assert torch.allclose(hidden, network(missing)[0], atol=1e-5)


def _quiet():
    from contextlib import nullcontext

    return nullcontext()
