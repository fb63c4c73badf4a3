import math
from itertools import pairwise

import pytest
import torch

from bocage.learn.classes import make_classes
from bocage.learn.finetune import FinetuneConfig, Task
from bocage.learn.finetune.network import make_token_network
from bocage.learn.finetune.rates import Schedule, frozen_epochs, make_optimizer, set_rates
from bocage.models.load import random_encoder
from bocage.models.releases import release_config


def network_of(release="v1.2", size="nano"):
    task = Task(kind="segmentation", classes=make_classes(["a", "b"]), label_px=1)
    encoder = random_encoder(release_config(release, size), 0)
    return make_token_network(encoder, task, patch_size=4, sensors={"sentinel2_l2a": 12})[0]


def rate_of(network, optimizer):
    """Rate of every trained parameter by name."""
    names = {id(p): n for n, p in network.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("release", ["v1", "v1.2", "v1.3"])
def test_rates_decay_by_layer(release):
    network = network_of(release)
    config = FinetuneConfig(recipe="layer-decay", lr=1e-4)
    rates = rate_of(network, make_optimizer(network, config))
    n_blocks = len(network.backbone.blocks)
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert set(rates) == trained
    assert "backbone.composite_encodings.month_embed.weight" not in rates
    for name, rate in rates.items():
        part = name.split(".")
        if part[:2] == ["backbone", "blocks"]:
            expected = 1e-4 * 0.65 ** (n_blocks - int(part[2]))
        elif part[0] == "head" or part[1] in {"norm", "attention_pooler"}:
            expected = 1e-4
        else:
            assert part[1] in {"patch_embeddings", "composite_encodings"}
            expected = 1e-4 * 0.65**n_blocks
        assert rate == pytest.approx(expected, rel=1e-12), name
    assert rates["backbone.blocks.3.norm1.weight"] == pytest.approx(0.65e-4)
    assert rates["backbone.blocks.0.norm1.weight"] == pytest.approx(1e-4 * 0.65**4)


def test_frozen_start_rests_a_fifth_of_the_epochs_then_takes_a_tenth():
    config = FinetuneConfig(epochs=12, lr=1e-3)
    assert frozen_epochs(config) == math.ceil(2.4) == 3
    assert frozen_epochs(FinetuneConfig(epochs=50)) == 10
    assert frozen_epochs(FinetuneConfig(recipe="layer-decay")) == 0
    network = network_of()
    optimizer = make_optimizer(network, config)
    schedule = Schedule(config, steps_per_epoch=7, higher_is_better=True)
    for step, expected in ((0, 1e-3), (20, 1e-3), (21, 1e-4), (83, 1e-4)):
        set_rates(optimizer, schedule.share(step))
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(expected)


def test_plateau_is_that_of_torch():
    config = FinetuneConfig(epochs=40, lr=1.0, frozen_share=0, recipe="plain", schedule="plateau")
    ours = Schedule(config, steps_per_epoch=1, higher_is_better=True)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.2, patience=2, cooldown=10
    )
    scores = [0.1, 0.2, 0.2, 0.2, 0.2, *[0.2] * 20]
    seen = []
    for epoch, score in enumerate(scores):
        ours.end_epoch(score)
        theirs.step(score)
        assert ours.share(epoch + 1) == optimizer.param_groups[0]["lr"]
        seen.append(ours.share(epoch + 1))
        if epoch == 9:  # a kill between two epochs
            kept = ours.state()
            ours = Schedule(config, steps_per_epoch=1, higher_is_better=True)
            ours.load_state(kept)
    assert seen[4] == pytest.approx(0.2) and seen[-1] == pytest.approx(0.04)


def test_cosine_warms_up_then_falls():
    config = FinetuneConfig(
        epochs=10, recipe="layer-decay", schedule="cosine", warmup_share=0.1, min_rate=0.01
    )
    schedule = Schedule(config, steps_per_epoch=10, higher_is_better=True)
    shares = [schedule.share(step) for step in range(100)]
    assert shares[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert shares[10] == 1.0
    middle = 0.01 + 0.99 * (1 + math.cos(math.pi * 0.5)) / 2
    assert shares[55] == pytest.approx(middle)
    assert all(a > b for a, b in pairwise(shares[10:]))
    assert shares[-1] == pytest.approx(0.01, abs=1e-3)
