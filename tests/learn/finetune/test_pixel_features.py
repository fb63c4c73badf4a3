"""Fine-tuning on the location tokens of v1.3, which reach down to one pixel inside a patch."""

import numpy as np
import pytest
import torch

from bocage.errors import ConfigError
from bocage.learn.finetune import FinetuneConfig, finetune, load_finetuned, make_training_set
from bocage.learn.finetune.start import start
from bocage.models.encoder import Encoder
from bocage.models.model import Model
from bocage.models.releases import release_config
from tests.learn.finetune.crops import STAMPS


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = Encoder(release_config("v1.3", "nano"))
    return Model(encoder, name="v1.3-nano", weights_id="random:0", compile=False)


def pixel_crops(n=24, label_px=1, size_px=8):
    """Labels of pixels; a crop is bright or not, which fresh location tokens learn quickly."""
    rng = np.random.default_rng(0)
    x = rng.normal(1500, 300, (n, 2, size_px, size_px, 12)).clip(50).astype(np.float32)
    bright = rng.integers(0, 2, n)
    x[..., 3] += 4000 * bright[:, None, None, None]
    side = size_px // label_px
    return make_training_set(
        {"sentinel2_l2a": x},
        np.broadcast_to(bright[:, None, None], (n, side, side)),
        task="segmentation",
        timestamps=np.tile(STAMPS, (n, 1, 1)),
        split=np.arange(n) % 4 % 3,
    )


def test_learns_labels_of_pixels_and_maps_them(tmp_path, model):
    data = pixel_crops(n=64)
    config = FinetuneConfig(epochs=3, batch_size=4, lr=1e-3, recipe="plain", metric="accuracy")
    result = finetune(data, model, out=tmp_path / "run", config=config)
    assert result.val > 0.95
    saved = load_finetuned(tmp_path / "run", compile=False)
    about = saved.description
    assert (about.features, about.query_px) == ("locations", 1)
    assert (saved.cell_px, saved.patch_size) == (1, 4)
    # The map's way, in large windows through encode, says what the head says of each location.
    rows = data.rows("test")
    x = {"sentinel2_l2a": data.x["sentinel2_l2a"][rows]}
    windows = {"sentinel2_l2a": x["sentinel2_l2a"].transpose(0, 1, 4, 2, 3)}
    found = saved.window_encoder()(windows, data.timestamps[rows])
    assert found.shape == (len(rows), 8, 8, 2)
    encoded = saved.model.encode(
        {"sentinel2_l2a": np.moveaxis(x["sentinel2_l2a"], 1, 3)},
        data.timestamps[rows],
        patch_size=4,
        location_query_patch_size=1,
    )
    tokens = torch.as_tensor(np.asarray(encoded.locations))
    layer = saved.head.linear
    expected = (tokens @ layer.weight.T + layer.bias).softmax(dim=-1).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found.argmax(-1) == data.labels[rows]).mean() == pytest.approx(
        result.test["scores"]["accuracy"]["value"], abs=1e-3
    )
    # A network goes on from its folder with head and location tokens.
    short = FinetuneConfig(epochs=1, lr=1e-6)
    more = finetune(data, tmp_path / "run", out=tmp_path / "more", config=short)
    assert more.val > 0.9


@pytest.mark.parametrize(
    ("features", "label_px", "query_px"),
    [("auto", 1, 1), ("auto", 2, 2), ("auto", 4, 4), ("pooled", 2, 4)],
)
def test_features_have_the_resolution_of_the_labels(model, features, label_px, query_px):
    data = pixel_crops(label_px=label_px)
    begun = start(model, data, FinetuneConfig(features=features))
    assert begun.description.query_px == query_px
    x = torch.from_numpy(data.x["sentinel2_l2a"][:2]).movedim(1, 3)
    inputs = begun.prepare({"sentinel2_l2a": x}, torch.from_numpy(data.timestamps[:2]), False)
    answers = begun.network(inputs)
    assert answers.shape == (2, 8 // label_px, 8 // label_px, 2)
    answers.sum().backward()
    read = [n for n, p in begun.module.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("pooler" in n for n in read) == (query_px == label_px)  # pooled tokens go around it
    assert any("blocks.0" in n for n in read)


def test_the_students_features_cannot_be_tuned(model):
    with pytest.raises(ConfigError, match="gradient of the student stops"):
        start(model, pixel_crops(), FinetuneConfig(features="student"))


def test_labels_finer_than_a_patch_need_whole_cells(model):
    data = pixel_crops(label_px=4)
    with pytest.raises(ConfigError, match="labels of 4 px with patch size 2"):
        start(model, data, FinetuneConfig(patch_size=2))
