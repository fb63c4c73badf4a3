"""A training step goes another way through the encoder than a forward: same loss and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bocage.learn.classes import make_classes
from bocage.learn.finetune import Task
from bocage.learn.finetune.inputs import Inputs
from bocage.learn.finetune.network import TokenNetwork, make_token_network
from bocage.models.encoder import Encoder
from bocage.models.patch_embedding import PatchEmbedding
from bocage.models.releases import release_config
from tests.models.official import random_dates, random_values, randomize

SENSORS = {"sentinel2_l2a": 12, "sentinel1": 2}
N, PX, PATCH, TIMES, CLASSES = 3, 16, 4, 3, 3


def network_and_inputs(version: str, *, hidden: bool) -> tuple[TokenNetwork, Inputs]:
    config = release_config(version, "nano")
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    randomize(encoder, 0)
    task = Task(
        kind="segmentation", classes=make_classes([str(i) for i in range(CLASSES)]), label_px=2
    )
    network, _ = make_token_network(encoder, task, patch_size=PATCH, sensors=SENSORS)
    values = random_values(tuple(SENSORS), (N, PX, PX, TIMES))
    visible = None
    if hidden:
        cells = PX // PATCH
        visible = {
            m: torch.rand(N, cells, cells, TIMES, len(config.band_sets[m])) < 0.6 for m in SENSORS
        }
    return network, Inputs(values=values, timestamps=random_dates(N, TIMES), visible=visible)


def loss_and_gradients(
    network: TokenNetwork, inputs: Inputs
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    labels = torch.arange(N * (PX // 2) ** 2).reshape(N, PX // 2, PX // 2) % CLASSES
    answers = network(inputs)
    value = functional.cross_entropy(answers.flatten(0, -2), labels.flatten())
    network.zero_grad(set_to_none=True)
    value.backward()
    found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return value.detach(), found


@pytest.mark.parametrize("version", ["v1", "v1.1", "v1.2", "v1.3"])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_step_has_the_loss_and_gradients_of_the_plain_encoder(version, hidden, monkeypatch):
    network, inputs = network_and_inputs(version, hidden=hidden)
    loss, gradients = loss_and_gradients(network, inputs)
    plain = network.backbone.forward
    monkeypatch.setattr(network.backbone, "encode_for_training", plain)
    expected, wanted = loss_and_gradients(network, inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    # Readouts and sensors that take no part have no gradient in either.
    assert {n for n, g in gradients.items() if g.any()} == {n for n, g in wanted.items() if g.any()}
    assert sum(n.startswith("backbone.blocks.") for n in wanted) > 30
    largest = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in gradients.items():
        if name in wanted:
            torch.testing.assert_close(
                gradient, wanted[name], rtol=1e-5, atol=1e-5 * largest, msg=name
            )


def test_stochastic_depth_skips_the_branches_that_a_forward_skips(monkeypatch) -> None:
    network, inputs = network_and_inputs("v1.2", hidden=True)
    for block in network.backbone.blocks:
        block.drop_path = 0.4
    evaluated, _ = loss_and_gradients(network, inputs)
    network.train()
    torch.manual_seed(3)
    loss, gradients = loss_and_gradients(network, inputs)
    assert loss != evaluated
    monkeypatch.setattr(network.backbone, "encode_for_training", network.backbone.forward)
    torch.manual_seed(3)
    expected, wanted = loss_and_gradients(network, inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    name = "backbone.blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(gradients[name], wanted[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [5, 600])  # one piece, and several with a rest
@pytest.mark.parametrize("half", [False, True])
def test_the_pixel_network_in_pieces_has_the_gradients_of_its_layers(n: int, half: bool) -> None:
    torch.manual_seed(0)
    embedding = PatchEmbedding(6, 16, 8, (12,))
    torch.nn.init.normal_(embedding.pixel_proj[0].bias)
    x = torch.randn(n, 8, 8, 6, requires_grad=True)
    weights = torch.randn(n, 16)
    inputs = [x, *embedding.parameters()]

    def gradients(tokens: torch.Tensor) -> list[torch.Tensor]:
        return [tokens.detach().float(), *torch.autograd.grad((tokens * weights).sum(), inputs)]

    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        ours = gradients(embedding.project(x))
    assert all(g.dtype == torch.float32 for g in ours)
    expected = gradients(embedding.proj(embedding.pixel_proj(x).flatten(1)))
    bound = 3e-2 if half else 1e-5
    for found, wanted in zip(ours, expected, strict=True):
        if half:  # a hidden value near 0 may fall on the other side
            assert (found - wanted).norm() < bound * wanted.norm()
        else:
            torch.testing.assert_close(
                found, wanted, rtol=bound, atol=bound * float(wanted.abs().max())
            )
