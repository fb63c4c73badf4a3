"""What a run would cost, told without leaving a trace."""

import re

import pytest
import torch

from bocage.errors import ConfigError, InputError
from bocage.learn.finetune import FinetuneConfig, finetune
from bocage.learn.finetune.plan import plan_finetune
from bocage.models import load_model
from tests.learn.finetune.crops import crops


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return load_model("olmoearth-v1.2-nano", weights=None, compile=False)


def test_says_what_the_run_then_does(tmp_path, model):
    data = crops(n=24)  # 12 of them to train with
    config = FinetuneConfig(epochs=3, batch_size=2, accumulate=2, lr=1e-3)
    text = plan_finetune(data, model, config=config)
    n_encoder = sum(p.numel() for p in model.encoder.parameters() if p.requires_grad)
    assert f"{n_encoder:,} parameters, head {128 * 2 * 16 + 2 * 16:,}" in text
    assert "3 epochs x 3 steps of 4 crops = 9" in text
    assert "24 crops of 16 x 16 px, 2 date(s), sentinel2_l2a (12 train, 6 val, 6 test)" in text
    assert re.search(r"memory   [\d.]+ [MG]B with a step of 4 crops", text)
    assert re.search(r"time     about .* on this machine \(.* per step", text)
    said = []
    finetune(data, model, out=tmp_path / "run", config=config, report=said.append)
    assert text.startswith(said[0])  # the plan of the run itself


def test_leaves_no_trace(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {n: x.clone() for n, x in model.encoder.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    plan_finetune(crops(n=16), model, config=FinetuneConfig(epochs=1, batch_size=8, lr=1e-2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(model.encoder.state_dict()[n], x) for n, x in before.items())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"lr": float("inf")}, {"lr": float("nan")}])
def test_numbers_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
        FinetuneConfig(**wrong)


def test_refuses_what_the_run_would_refuse(model):
    with pytest.raises(ConfigError, match=r"features locations for a v1\.2 model"):
        plan_finetune(crops(n=16), model, config=FinetuneConfig(features="locations"))
    with pytest.raises(ConfigError, match="metric 'beauty' for segmentation"):
        plan_finetune(crops(n=16), model, config=FinetuneConfig(metric="beauty"))
    with pytest.raises(InputError, match="3 class weights for 2 classes"):
        plan_finetune(crops(n=16), model, config=FinetuneConfig(class_weights=(1.0, 2.0, 3.0)))
