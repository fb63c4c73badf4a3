"""The losses are those of a plain loop over samples and tokens, in value and in gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bocage.pretrain import losses as module
from bocage.pretrain.losses import Pairs, info_nce, mean_of_counted, patch_discrimination


def naive_row(
    predictions: torch.Tensor, targets: torch.Tensor, *, tau: float, same_target: float | None
) -> torch.Tensor | None:
    """Loss of one sample's tokens [n, D] of one modality, by scalars; None if it does not count."""
    n = len(predictions)
    if n == 0:
        return None

    def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())

    terms = []
    for i in range(n):
        own = cosine(predictions[i], targets[i]) / tau
        negatives = [
            cosine(predictions[i], targets[j]) / tau
            for j in range(n)
            if j != i and not (same_target and cosine(targets[i], targets[j]) > same_target)
        ]
        if same_target and n > 1 and not negatives:
            return None
        scores = torch.stack([own, *negatives])
        terms.append(scores.exp().sum().log() - own)
    return 2 * tau * torch.stack(terms).mean()


def tokens(seed: int, counts: list[int], width: int = 5, groups: int = 0):
    """Predictions and targets [R, N, D]; with ``groups``, targets repeat as those of maps do."""
    generator = torch.Generator().manual_seed(seed)
    n = max(counts)
    predictions = torch.randn(len(counts), n, width, generator=generator, dtype=torch.float64)
    targets = torch.randn(len(counts), n, width, generator=generator, dtype=torch.float64)
    if groups:
        kinds = torch.randn(groups, width, generator=generator, dtype=torch.float64)
        targets = kinds[torch.randint(groups, (len(counts), n), generator=generator)]
    return predictions.float(), targets.float()


def row_losses(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    counts: torch.Tensor,
    same_target: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of padded tokens [R, N, D] of one modality, given in another order."""
    n = predictions.shape[0] * predictions.shape[1]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    where = order.argsort().view(predictions.shape[:2])
    losses, counted = patch_discrimination(
        predictions.flatten(0, 1)[order],
        targets.flatten(0, 1)[order],
        [Pairs(predictions=where, targets=where, counts=counts, same_target=same_target)],
    )
    return losses[0], counted[0]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    same_target=st.sampled_from([None, 0.999]),
    groups=st.integers(0, 3),
    chunk=st.sampled_from([1, 50, 2**23]),
)
def test_patch_discrimination_equals_a_loop_over_tokens(
    seed: int, counts: list[int], same_target: float | None, groups: int, chunk: int
) -> None:
    if max(counts) == 0:
        counts = [*counts, 1]
    predictions, targets = tokens(seed, counts, groups=groups)
    ours = predictions.clone().requires_grad_()
    weights = torch.rand(len(counts), generator=torch.Generator().manual_seed(seed))
    before, module.CHUNK_SCORES = module.CHUNK_SCORES, chunk
    try:
        rows, counted = row_losses(ours, targets, torch.tensor(counts), same_target)
    finally:
        module.CHUNK_SCORES = before
    (rows * weights).sum().backward()

    naive = predictions.double().requires_grad_()
    loop = [
        naive_row(naive[r, :n], targets[r, :n].double(), tau=0.1, same_target=same_target)
        for r, n in enumerate(counts)
    ]
    assert counted.tolist() == [x is not None for x in loop]
    total = sum(w * x for w, x in zip(weights.double(), loop, strict=True) if x is not None)
    expected = [0.0 if x is None else float(x.detach()) for x in loop]
    torch.testing.assert_close(rows, torch.tensor(expected), rtol=0, atol=1e-5)
    gradient = torch.zeros_like(naive)
    if isinstance(total, torch.Tensor):
        (gradient,) = torch.autograd.grad(total, naive)
    torch.testing.assert_close(ours.grad.double(), gradient, rtol=1e-5, atol=1e-6)


def test_a_negative_with_nearly_the_same_target_is_left_out_and_one_less_alike_is_not() -> None:
    angles = torch.tensor([0.0, 0.03, 0.06, 1.5])  # cosines 0.99955, 0.9982 and 0.07 to the first
    targets = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    predictions = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(0))
    rows, _ = row_losses(predictions, targets, torch.tensor([4]), 0.999)
    scores = torch.nn.functional.normalize(predictions[0], dim=-1) @ targets[0].T / 0.1
    out = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    expected = torch.nn.functional.cross_entropy(
        scores.masked_fill(out, -math.inf), torch.arange(4)
    )
    torch.testing.assert_close(rows, 0.2 * expected[None])


def test_a_sample_whose_targets_are_all_alike_does_not_count() -> None:
    predictions = torch.randn(2, 3, 4, requires_grad=True)
    targets = torch.stack([torch.ones(3, 4), torch.randn(3, 4)])
    rows, counted = row_losses(predictions, targets, torch.tensor([3, 3]), 0.999)
    assert counted.tolist() == [False, True]
    assert mean_of_counted(rows, counted) == rows[1]
    rows.sum().backward()
    assert torch.equal(predictions.grad[0], torch.zeros(3, 4))
    assert mean_of_counted(rows, torch.zeros(2, dtype=torch.bool)) == 0


def test_padding_may_hold_anything() -> None:
    predictions, targets = tokens(0, [2, 4])
    counts = torch.tensor([2, 4])
    before, _ = row_losses(predictions, targets, counts, 0.999)
    predictions[0, 2:], targets[0, 2:] = 1e6, -7.0
    after, _ = row_losses(predictions, targets, counts, 0.999)
    assert torch.equal(before, after)


def test_modalities_are_told_apart_and_weighted_by_themselves() -> None:
    predictions, targets = tokens(1, [3, 5])
    numbers = torch.arange(10).view(2, 5)
    first = Pairs(predictions=numbers[:, :2], targets=numbers[:, :2], counts=torch.tensor([2, 1]))
    second = Pairs(predictions=numbers[:, 2:], targets=numbers[:, 2:], counts=torch.tensor([1, 3]))
    gradients = {}
    for weights in ([1.0, 0.0], [0.0, 1.0], [2.0, 3.0]):
        flat = predictions.flatten(0, 1).clone().requires_grad_()
        losses, _ = patch_discrimination(flat, targets.flatten(0, 1), [first, second])
        (losses.sum(1) * torch.tensor(weights)).sum().backward()
        gradients[tuple(weights)] = flat.grad
    both = 2 * gradients[1.0, 0.0] + 3 * gradients[0.0, 1.0]
    torch.testing.assert_close(gradients[2.0, 3.0], both)
    assert bool((gradients[1.0, 0.0].view(2, 5, -1)[:, 2:] == 0).all())
    apart = row_losses(predictions[:, 2:], targets[:, 2:], second.counts)[0]
    torch.testing.assert_close(losses[1], apart)


def test_info_nce_equals_a_loop_over_samples() -> None:
    queries, keys = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for i in range(5):
        scores = [
            float(torch.cosine_similarity(queries[i], keys[j], dim=0)) / 0.1 for j in range(5)
        ]
        total += math.log(sum(math.exp(s) for s in scores)) - scores[i]
    assert float(info_nce(queries, keys)) == pytest.approx(total / 5, abs=1e-5)
    assert float(info_nce(queries, keys)) != pytest.approx(float(info_nce(keys, queries)), abs=1e-3)
