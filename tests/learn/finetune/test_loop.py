import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bocage.errors import ConfigError, InputError
from bocage.learn.finetune import FinetuneConfig, finetune, load_finetuned
from bocage.learn.finetune.log import read_metrics
from bocage.mapping.plan import ChoosesBatches
from bocage.mapping.streams import RunsInStreams
from bocage.models import load_model
from tests.learn.finetune.crops import crops

ROOT = Path(__file__).parents[3]
KILLED = {"epochs": 4, "batch_size": 4, "lr": 1e-3, "drop_timesteps": 0.3, "checkpoint_steps": 1}


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return load_model("olmoearth-v1.2-nano", weights=None, compile=False)


def start(out, options, *launcher):
    command = [sys.executable, *launcher, "-m", "tests.learn.finetune.train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, str(out), json.dumps(options)], cwd=ROOT, env=environment)


def curve(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder)]


def test_a_run_that_is_killed_ends_as_one_that_was_not(tmp_path):
    whole = start(tmp_path / "whole", KILLED)
    killed = start(tmp_path / "killed", KILLED)
    while killed.poll() is None:
        if len([r for r in read_metrics(tmp_path / "killed") if "loss" in r]) >= 7:  # of 12
            killed.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/run.json").exists()
    assert start(tmp_path / "killed", KILLED).wait() == 0
    assert whole.wait() == 0
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    for name in ("weights.safetensors", "head.safetensors", "head.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    options = {"epochs": 3, "lr": 1e-3, "drop_path": 0.0, "drop_timesteps": 0.3, "n": 32}
    alone = start(tmp_path / "one", {**options, "batch_size": 8})
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    both = start(tmp_path / "two", {**options, "batch_size": 4}, *torchrun)
    assert alone.wait() == 0 and both.wait() == 0
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "val_loss"):
            assert b.get(name, 0) == pytest.approx(a.get(name, 0), rel=1e-4)
    # The scores are sums over all samples, whoever judged them.
    assert two[-1]["test"]["n"] == one[-1]["test"]["n"]


def test_accumulated_parts_make_the_step_of_the_whole(tmp_path, model):
    options = {"epochs": 2, "drop_path": 0.0, "lr": 1e-3, "class_weights": "balanced"}
    data = crops(n=32)
    data.labels[::3, :5] = -1  # parts with unequal numbers of labels
    finetune(data, model, out=tmp_path / "whole", config=FinetuneConfig(batch_size=8, **options))
    finetune(
        data,
        model,
        out=tmp_path / "parts",
        config=FinetuneConfig(batch_size=2, accumulate=4, **options),
    )
    for a, b in zip(curve(tmp_path / "whole"), curve(tmp_path / "parts"), strict=True):
        assert b.get("loss", 0) == pytest.approx(a.get("loss", 0), rel=1e-4)


@pytest.mark.parametrize(
    ("task", "options", "at_least"),
    [
        ("classification", {}, 0.9),
        ("multilabel", {}, 0.5),
        ("segmentation", {"recipe": "layer-decay"}, 0.8),
        ("segmentation", {"head": "unet"}, 0.9),
        # All of a random network at 4e-3 without warm-up finds the way in some runs only.
        ("regression", {"recipe": "plain", "schedule": "cosine", "lr": 1e-3}, 0.9),
    ],
)
def test_learns_what_the_near_infrared_says(tmp_path, model, task, options, at_least):
    config = FinetuneConfig(**{"epochs": 12, "batch_size": 8, "lr": 4e-3, **options})
    result = finetune(crops(task, n=64), model, out=tmp_path / "run", config=config)
    assert result.val > at_least
    assert result.test["n"] > 0
    rows = read_metrics(tmp_path / "run")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert (tmp_path / "run/curves.png").stat().st_size > 1000
    assert json.loads((tmp_path / "run/run.json").read_text())["result"]["val"] == result.val


def test_the_folder_holds_the_best_epoch(tmp_path, model):
    # A rate that destroys what was learned: the last epoch is not the best.
    config = FinetuneConfig(
        epochs=4, batch_size=8, lr=0.3, recipe="plain", schedule="constant", metric="loss"
    )
    data = crops("classification", n=32)
    result = finetune(data, model, out=tmp_path / "run", config=config)
    losses = [r["val_loss"] for r in read_metrics(tmp_path / "run") if "val_loss" in r]
    assert result.best_epoch == int(np.argmin(losses))
    assert result.val == min(losses)
    saved = load_finetuned(tmp_path / "run", compile=False)
    rows = data.rows("val")
    x = data.x["sentinel2_l2a"][rows].transpose(0, 1, 4, 2, 3)
    p = saved.window_encoder()({"sentinel2_l2a": x}, data.timestamps[rows])
    # The answer of a crop is the softmax of the mean of its cells' logits.
    logits = np.log(p).mean(axis=(1, 2))
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -logits[np.arange(len(rows)), data.labels[rows]].mean()
    assert loss == pytest.approx(min(losses), rel=1e-3, abs=1e-5)


def test_a_map_takes_batches_and_streams_as_the_encoder_does(tmp_path, model):
    finetune(
        crops("classification", n=32), model, out=tmp_path / "run", config=FinetuneConfig(epochs=1)
    )
    saved = load_finetuned(tmp_path / "run", compile=False)
    assert isinstance(saved, ChoosesBatches)
    assert isinstance(saved, RunsInStreams)
    assert saved.windows_per_batch(100_000) == 1 < model.windows_per_batch(256)
    assert saved.windows_per_batch(256) == model.windows_per_batch(256)
    assert saved.streams() == model.streams()
    with saved.in_streams(1) as begin:
        begin()
    assert torch.get_num_threads() == 1


def test_a_resting_backbone_does_not_change(tmp_path, model):
    before = {n: x.clone() for n, x in model.encoder.state_dict().items()}
    config = FinetuneConfig(epochs=1, batch_size=8, lr=1e-2)
    finetune(crops(n=16), model, out=tmp_path / "run", config=config)
    saved = load_finetuned(tmp_path / "run", compile=False).network.backbone.state_dict()
    assert all(torch.equal(saved[n], x) for n, x in before.items())
    config = FinetuneConfig(epochs=1, batch_size=8, lr=1e-2, recipe="plain", schedule="constant")
    finetune(crops(n=16), model, out=tmp_path / "all", config=config)
    saved = load_finetuned(tmp_path / "all", compile=False).network.backbone.state_dict()
    assert not torch.equal(saved["blocks.0.mlp.fc1.weight"], before["blocks.0.mlp.fc1.weight"])
    # Nor is the caller's model touched.
    assert all(torch.equal(model.encoder.state_dict()[n], x) for n, x in before.items())


def test_the_saved_encoder_serves_load_model(tmp_path, model):
    finetune(crops(n=16), model, out=tmp_path / "run", config=FinetuneConfig(epochs=1))
    again = load_model(tmp_path / "run", compile=False)
    assert again.config == model.config


def test_refuses_to_go_on_with_other_settings_or_classes(tmp_path, model):
    config = FinetuneConfig(epochs=1, batch_size=8)
    finetune(crops("classification", n=16), model, out=tmp_path / "run", config=config)
    with pytest.raises(ConfigError, match=r"seed 42, now 1"):
        finetune(
            crops("classification", n=16),
            model,
            out=tmp_path / "run",
            config=FinetuneConfig(epochs=1, batch_size=8, seed=1),
        )
    three = crops("classification", n=16, classes={0: "a", 1: "b", 2: "c"})
    with pytest.raises(ConfigError, match=r"head of 2 classes \(0, 1\); expected 3 \(a, b, c\)"):
        finetune(three, model, out=tmp_path / "run", config=config)
    with pytest.raises(ConfigError, match=r"head for classification of 2 classes.*--new-head"):
        finetune(three, tmp_path / "run", out=tmp_path / "next", config=config)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="other files"):
        finetune(crops(n=16), model, out=tmp_path / "mine", config=config)


def test_a_head_goes_on_in_a_new_run(tmp_path, model):
    data = crops("classification", n=32)
    config = FinetuneConfig(epochs=8, batch_size=8, lr=4e-3)
    first = finetune(data, model, out=tmp_path / "first", config=config)
    second = finetune(
        data, tmp_path / "first", out=tmp_path / "second", config=FinetuneConfig(epochs=1, lr=1e-6)
    )
    assert second.val == pytest.approx(first.val, abs=0.1)


def test_a_damaged_state_is_said(tmp_path, model):
    config = FinetuneConfig(epochs=1, batch_size=8)
    finetune(crops(n=16), model, out=tmp_path / "run", config=config)
    state = tmp_path / "run/state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(Exception, match="cannot be read") as caught:
        finetune(crops(n=16), model, out=tmp_path / "run", config=config)
    assert type(caught.value).__name__ == "StoreError"


def test_sensors_the_model_does_not_read_are_refused(tmp_path, model):
    data = crops("classification", n=16)
    strange = type(data)(
        **{
            **data.__dict__,
            "x": {"naip": data.x["sentinel2_l2a"]},
            "sensors": {"naip": ("b",) * 12},
        }
    )
    with pytest.raises(InputError, match="naip"):
        finetune(
            strange,
            model,
            out=tmp_path / "run",
            config=FinetuneConfig(epochs=1, normalization="dataset"),
        )
