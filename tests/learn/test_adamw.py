"""The official linear probe in numpy beside the same in plain torch."""

import numpy as np
import pytest
import torch

from bocage.learn.adamw import BATCH, EPOCHS, RATES, fit_adamw, rate_at
from bocage.learn.crossval import Target, cross_validate
from bocage.scoring.folds import make_folds

N, D, K = 107, 9, 4
rng = np.random.default_rng(0)
Y = rng.integers(0, K, N)
X = (rng.normal(size=(K, D))[Y] + rng.normal(size=(N, D)) * 1.5 + 3).astype(np.float32)
FLAGS = rng.random((N, K)) < 1 / (1 + np.exp(3 - X[:, :K]))


def in_torch(x, y, rate, rows, seed):
    """torch's own layers, loss and optimizer; start and order as drawn there."""
    draws = np.random.default_rng(seed)
    flags = y.dtype == bool
    norm, linear = torch.nn.BatchNorm1d(D).double(), torch.nn.Linear(D, K).double()
    bound = D**-0.5
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(draws.uniform(-bound, bound, (D, K)).T.copy()))
        linear.bias.copy_(torch.from_numpy(draws.uniform(-bound, bound, K)))
    optimizer = torch.optim.AdamW([*norm.parameters(), *linear.parameters()], weight_decay=0.01)
    loss_of = torch.nn.MultiLabelSoftMarginLoss() if flags else torch.nn.CrossEntropyLoss()
    xt, yt = torch.from_numpy(x).double(), torch.from_numpy(y.astype(float) if flags else y)
    n_batches = -(-len(rows) // BATCH)
    for epoch in range(EPOCHS):
        order = draws.permutation(rows)
        for i in range(n_batches):
            batch = torch.from_numpy(order[i * BATCH : (i + 1) * BATCH])
            optimizer.param_groups[0]["lr"] = rate_at(epoch + i / n_batches, rate)
            optimizer.zero_grad()
            loss_of(linear(norm(xt[batch])), yt[batch]).backward()
            optimizer.step()
    norm.eval()
    with torch.no_grad():
        return linear(norm(xt)).numpy()


@pytest.mark.parametrize("rate", [RATES[0], 0.1])
@pytest.mark.parametrize("flags", [False, True])
def test_training_is_that_of_torch(flags, rate):
    rows = np.arange(0, N, 2)
    y = FLAGS if flags else np.eye(K)[Y]
    found = fit_adamw(X, y, rate=rate, rows=rows, seed=3)
    ours = (X - found.mean) / found.scale @ found.weight + found.bias
    np.testing.assert_allclose(
        ours, in_torch(X, FLAGS if flags else Y, rate, rows, 3), rtol=1e-7, atol=1e-8
    )


def test_the_rate_warms_up_and_falls_to_its_least():
    assert rate_at(0, 0.1) == 0 and rate_at(2.5, 0.1) == pytest.approx(0.05)
    assert rate_at(5, 0.1) == pytest.approx(0.1) and rate_at(EPOCHS, 0.1) == pytest.approx(1e-5)


def test_the_rate_is_chosen_without_the_test_fold():
    folds = make_folds("random", n_folds=3, labels=Y, group=np.arange(N))
    target = Target(y=Y, task="classification", n_classes=K)
    some = [{"rate": r} for r in (1e-4, 1e-2)]
    found = cross_validate(X, target, folds, "adamw", settings=some)
    assert {c.setting["rate"] for c in found.choices} == {1e-2}
    assert (found.scores.argmax(axis=1) == Y).mean() > 0.6
    spoiled = np.where(folds.fold == 1, (Y + 1) % K, Y)
    target = Target(y=spoiled, task="classification", n_classes=K)
    again = cross_validate(X, target, folds, "adamw", settings=some)
    assert again.choices[1] == found.choices[1]
    np.testing.assert_array_equal(again.scores[folds.fold == 1], found.scores[folds.fold == 1])
