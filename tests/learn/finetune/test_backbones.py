import numpy as np
import pytest
import torch

from bocage.errors import ConfigError
from bocage.learn.finetune import FinetuneConfig, finetune, load_finetuned, make_training_set

pytest.importorskip("timm", reason="the extra backbones: make test-backbones")
pytest.importorskip("segmentation_models_pytorch", reason="the extra backbones")


def any_bands(task, n=16, n_times=2, size_px=40):
    """Five bands of a sensor nobody knows; sides that are no multiple of 32."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (n, size_px // 8, size_px // 8)).repeat(8, 1).repeat(8, 2)
    x = rng.normal(0, 1, (n, n_times, size_px, size_px, 5)).astype(np.float32)
    if task == "classification":
        y = rng.integers(0, 2, n)
        x[..., 2] += 4 * y[:, None, None, None]
    else:
        x[..., 2] += 4 * y[:, None]
    x[:, :, :3, :3] = np.nan
    stamps = np.tile([[1, 5, 2022], [1, 8, 2022]][:n_times], (n, 1, 1))
    split = np.arange(n) % 4 % 3
    return make_training_set({"naip": x}, y, task=task, timestamps=stamps, split=split)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("smp:Unet/resnet18", "segmentation"),
        ("smp:DeepLabV3/resnet18", "segmentation"),
        ("smp:Segformer/mit_b0", "segmentation"),
        ("timm:resnet18", "classification"),
        ("timm:efficientnet_b0", "classification"),
    ],
)
def test_trains_saves_and_maps_with_any_bands(tmp_path, name, task):
    torch.set_num_threads(1)
    data = any_bands(task)
    config = FinetuneConfig(
        epochs=3, batch_size=4, lr=2e-3, recipe="plain", normalization="dataset"
    )
    result = finetune(data, name, out=tmp_path / "run", config=config)
    assert np.isfinite(result.val)
    again = finetune(data, name, out=tmp_path / "run", config=config)
    assert again.val == result.val
    saved = load_finetuned(tmp_path / "run")
    x = data.x["naip"][:2].transpose(0, 1, 4, 2, 3)
    p = saved.window_encoder()({"naip": x}, data.timestamps[:2])
    assert p.shape == ((2, 40, 40, 2) if task == "segmentation" else (2, 1, 1, 2))
    seen = np.isfinite(p).all(axis=-1)
    assert p[seen].sum(axis=-1) == pytest.approx(1, abs=1e-5)
    if task == "segmentation":
        assert not seen[:, :3, :3].any() and seen[:, 3:, 3:].all()


def test_a_frozen_start_leaves_the_encoder_alone(tmp_path):
    from bocage.learn.finetune.start import start

    data = any_bands("segmentation")
    config = FinetuneConfig(epochs=1, batch_size=4, normalization="dataset")
    before = start("smp:Unet/resnet18", data, config).module.state_dict()
    finetune(data, "smp:Unet/resnet18", out=tmp_path / "run", config=config)
    after = load_finetuned(tmp_path / "run").network.state_dict()
    changed = {n.split(".")[1] for n, x in before.items() if not torch.equal(after[n], x)}
    assert "encoder" not in changed and {"decoder", "segmentation_head"} <= changed


def test_unet_with_stacked_dates_sees_each_channel_once():
    from bocage.learn.finetune.backbones import ImageNetwork
    from bocage.learn.finetune.inputs import Inputs

    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen["x"] = x
            return x

    x = torch.arange(2 * 32 * 32 * 3 * 5, dtype=torch.float32).reshape(2, 32, 32, 3, 5)
    network = ImageNetwork(Spy(), dense=True, encoder_prefix="encoder.")
    out = network(Inputs(values={"naip": x}, timestamps=torch.zeros(2, 3, 3, dtype=torch.int64)))
    for t in range(3):
        for c in range(5):
            assert torch.equal(seen["x"][:, t * 5 + c], x[..., t, c])
    assert torch.equal(out, x.flatten(3))


def test_mistakes_are_one_sentence(tmp_path):
    data = any_bands("segmentation")
    config = FinetuneConfig(epochs=1, normalization="dataset", recipe="plain")
    for name, words in (
        ("smp:Nonsense/resnet18", "Nonsense"),
        ("smp:Unet/nonsense", "nonsense"),
        ("timm:resnet18", "per pixel"),
    ):
        with pytest.raises(Exception, match=words) as caught:
            finetune(data, name, out=tmp_path / "run", config=config)
        assert type(caught.value).__name__ in {"ModelError", "ConfigError"}
    with pytest.raises(ConfigError, match="layer-decay"):
        finetune(
            data,
            "smp:Unet/resnet18",
            out=tmp_path / "run",
            config=FinetuneConfig(epochs=1, normalization="dataset", recipe="layer-decay"),
        )
    with pytest.raises(ConfigError, match="pretraining statistics for naip"):
        finetune(data, "smp:Unet/resnet18", out=tmp_path / "run", config=FinetuneConfig(epochs=1))
