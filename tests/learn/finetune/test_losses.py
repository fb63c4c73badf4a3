import numpy as np
import pytest
import torch
from torch.nn import functional

from bocage.errors import InputError
from bocage.learn.classes import make_classes
from bocage.learn.finetune import Task
from bocage.learn.finetune.losses import Loss, class_weights

CLASSES = make_classes(["a", "b", "c"])


def test_cross_entropy_with_weights_and_ignored_pixels_is_that_of_torch():
    g = torch.Generator().manual_seed(0)
    answers = torch.randn(4, 6, 6, 3, generator=g)
    labels = torch.randint(-1, 3, (4, 6, 6), generator=g)
    weights = torch.tensor([0.2, 1.0, 3.0])
    task = Task(kind="segmentation", classes=CLASSES, label_px=1)
    loss = Loss(task, weights=weights)
    ours = loss.total(answers, labels) / loss.weight(labels)
    theirs = functional.cross_entropy(
        answers.movedim(-1, 1), labels, weight=weights, ignore_index=-1
    )
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    # Parts add up, however unequal.
    parts = [loss.total(answers[s], labels[s]) for s in (slice(0, 1), slice(1, 4))]
    assert float(sum(parts)) / loss.weight(labels) == pytest.approx(float(theirs), rel=1e-6)


def test_multilabel_is_soft_margin():
    g = torch.Generator().manual_seed(1)
    answers = torch.randn(5, 3, generator=g)
    labels = torch.randint(0, 2, (5, 3), generator=g)
    loss = Loss(Task(kind="multilabel", classes=CLASSES))
    theirs = torch.nn.MultiLabelSoftMarginLoss()(answers, labels.float())
    assert float(loss.total(answers, labels) / loss.weight(labels)) == pytest.approx(float(theirs))
    labels[2, 1] = -1
    keep = [0, 1, 3, 4]
    theirs = torch.nn.MultiLabelSoftMarginLoss()(answers[keep], labels[keep].float())
    assert float(loss.total(answers, labels) / loss.weight(labels)) == pytest.approx(float(theirs))


def test_regression_is_the_squared_error_of_z_scores():
    y = torch.tensor([[10.0, torch.nan], [20.0, 30.0]])
    answers = torch.tensor([[0.5, 9.0], [-1.0, 2.0]])[..., None]
    loss = Loss(Task(kind="regression", label_px=1), target_mean=20.0, target_std=5.0)
    expected = ((0.5 + 2) ** 2 + (-1 - 0) ** 2 + (2 - 2) ** 2) / 3
    assert float(loss.total(answers, y)) / loss.weight(y) == pytest.approx(expected)
    answers.requires_grad_()
    loss.total(answers, y).backward()
    assert torch.isfinite(answers.grad).all() and answers.grad[0, 1] == 0


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    y = np.array([0] * 10 + [1] * 3 + [2] * 1)
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=y)
    assert class_weights("balanced", np.bincount(y), 3).numpy() == pytest.approx(theirs)
    with pytest.raises(InputError, match="2 class weights for 3 classes"):
        class_weights((1.0, 2.0), np.bincount(y), 3)
