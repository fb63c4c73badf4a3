import numpy as np
import pytest
import torch

from bocage.errors import InputError
from bocage.pretrain.architecture import make_pretraining_model, model_config
from bocage.pretrain.batch import Batch
from bocage.pretrain.whitening import whiten

SENSOR = "sentinel2_l2a"


def batch(seed=0, *, constant=False):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(12, 12)) * 0.02
    x = 0.4 + rng.normal(size=(8, 16, 16, 1, 12)) @ mixing
    x = torch.tensor(np.full_like(x, 0.4) if constant else x, dtype=torch.float32)
    return Batch(
        values={SENSOR: x},
        present={SENSOR: torch.ones(8, 2, 2, 1, 1, dtype=torch.bool)},
        timestamps=torch.tensor([[[1, 6, 2020]]] * 8),
        patch_size=8,
        ids=tuple(map(str, range(8))),
    )


@pytest.mark.parametrize("patch_embedding", ["convolution", "linear", "non_linear"])
def test_the_first_map_sees_what_numpy_whitens_and_tokens_have_no_common_part(patch_embedding):
    config = model_config("nano", "v1.2", patch_embedding=patch_embedding)
    data = batch()
    plain = make_pretraining_model(config, 0)
    model = make_pretraining_model(config, 0)
    whiten(model, [data], floor=0.0)

    x = data.values[SENSOR]
    corners = x[:, ::8, ::8].reshape(-1, 12).double().numpy()
    variance, axes = np.linalg.eigh(np.cov(corners.T))
    root = (axes / np.sqrt(variance)) @ axes.T
    white = (x.double().numpy() - corners.mean(0)) @ root
    white = torch.tensor(white, dtype=torch.float32)
    expected = plain.target_encoder({SENSOR: white}, 8)[SENSOR]
    got = model.target_encoder(data.values, 8)[SENSOR]
    expected = expected - expected.flatten(0, -2).mean(0)
    assert torch.allclose(got, expected, atol=2e-3)
    assert got.flatten(0, -2).mean(0).abs().max() < 1e-4


def test_encoder_and_target_start_equal_and_other_sensors_are_untouched():
    config = model_config("nano", "v1.2")
    plain, model = make_pretraining_model(config, 0), make_pretraining_model(config, 0)
    whiten(model, [batch()])
    before, after = plain.state_dict(), model.state_dict()
    changed = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert changed
    assert all("patch_embeddings" in name and SENSOR in name for name in changed)
    for name in changed:
        if name.startswith("encoder."):
            assert torch.equal(after[name], after["target_" + name])


def test_constant_imagery_cannot_be_whitened():
    with pytest.raises(InputError, match="all the same"):
        whiten(make_pretraining_model(model_config("nano"), 0), [batch(constant=True)])
