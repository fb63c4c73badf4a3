"""Sums that add up over processes, and intervals against the slow way of drawing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bocage.errors import InputError
from bocage.scoring.accumulator import compare_scores, square_blocks
from bocage.scoring.confusion import Confusion
from bocage.scoring.multilabel import Multilabel
from bocage.scoring.regression import Regression


def images(seed: int, n: int = 12, k: int = 4, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Truth and predictions whose quality differs from image to image."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, k, (n, side, side))
    wrong = rng.random((n, side, side)) < rng.uniform(0.05, 0.6, n)[:, None, None]
    return np.where(wrong, rng.integers(0, k, target.shape), target), target


def sum_states_of_two_processes(rank: int, folder: str) -> None:
    """What a DDP validation does: each rank its own images, then one all_reduce."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    prediction, target = images(0)
    rng = np.random.default_rng(0)
    y = rng.normal(size=(12, 30))
    block = np.arange(12)
    mine = slice(rank, None, 2)
    metrics = {
        "confusion": Confusion(4).update(prediction[mine], target[mine], block=block[mine]),
        "regression": Regression().update((y + 0.1)[mine, None], y[mine, None], block=block[mine]),
        "multilabel": Multilabel(30).update(
            1 / (1 + np.exp(-y[mine])), y[mine] > 0.5, block=block[mine]
        ),
    }
    for name, metric in metrics.items():
        for part in metric.state().values():
            dist.all_reduce(torch.from_numpy(part))
        content = metric.compute(n_bootstrap=100).as_dict()
        with open(f"{folder}/{name}{rank}.json", "w") as file:  # noqa: PTH123
            json.dump(content, file)
    dist.destroy_process_group()


def test_states_of_two_gloo_processes_add_up_to_the_whole(tmp_path) -> None:
    mp = pytest.importorskip("torch.multiprocessing", reason="needs torch")
    mp.spawn(sum_states_of_two_processes, (str(tmp_path),), nprocs=2)
    prediction, target = images(0)
    y = np.random.default_rng(0).normal(size=(12, 30))
    whole = {
        "confusion": Confusion(4).update(prediction, target, block=np.arange(12)),
        "regression": Regression().update((y + 0.1)[:, None], y[:, None], block=np.arange(12)),
        "multilabel": Multilabel(30).update(1 / (1 + np.exp(-y)), y > 0.5, block=np.arange(12)),
    }
    for name, metric in whole.items():
        expected = metric.compute(n_bootstrap=100).as_dict()
        for rank in (0, 1):
            found = json.loads((tmp_path / f"{name}{rank}.json").read_text())
            assert found["n"] == expected["n"]
            for score, value in expected["scores"].items():
                assert found["scores"][score]["value"] == pytest.approx(value["value"], rel=1e-12)
                assert found["scores"][score]["low"] == pytest.approx(value["low"], rel=1e-9)


def test_interval_equals_scoring_every_draw_of_whole_images_again() -> None:
    from sklearn.metrics import f1_score

    prediction, target = images(1)
    metric = Confusion(4).update(prediction, target)
    found = metric.compute(n_bootstrap=300, seed=5)
    # The same draws of images, each scored from its pixels by scikit-learn.
    times = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), 300)
    slow = []
    for draw in times:
        rows = np.repeat(np.arange(12), draw)
        slow.append(f1_score(target[rows].ravel(), prediction[rows].ravel(), average="macro"))
    low, high = np.quantile(slow, [0.025, 0.975])
    assert found["f1_macro"].low == pytest.approx(low, abs=1e-12)
    assert found["f1_macro"].high == pytest.approx(high, abs=1e-12)
    assert found.n_blocks == 12


def test_interval_of_independent_samples_covers_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(250):
        target = rng.integers(0, 2, 500)
        prediction = np.where(rng.random(500) < 0.8, target, 1 - target)
        found = Confusion(2).update(prediction, target).compute(n_bootstrap=200)["accuracy"]
        hits += found.low <= 0.8 <= found.high
    assert 0.91 < hits / 250 < 0.98


def test_blocks_widen_intervals_where_their_samples_agree() -> None:
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(50), 40)
    target = rng.integers(0, 2, 2000)
    right = rng.random(50)[block] < 0.7
    prediction = np.where(right, target, 1 - target)
    naive = Confusion(2).update(prediction, target).compute()["accuracy"]
    honest = Confusion(2).update(prediction, target, block=block).compute()["accuracy"]
    assert honest.value == naive.value
    assert honest.high - honest.low > 4 * (naive.high - naive.low)


def test_one_image_has_a_score_and_no_interval() -> None:
    prediction, target = images(0)
    found = Confusion(4).update(prediction[0], target[0]).compute()
    assert found.n_blocks == 1
    assert found["miou"].value > 0
    assert np.isnan(found["miou"].low)
    assert "no intervals" in found.markdown()
    assert found.as_dict()["scores"]["miou"]["low"] is None


def test_merging_and_streaming_equal_one_update() -> None:
    prediction, target = images(2)
    whole = Confusion(4).update(prediction, target)
    streamed = Confusion(4)
    for i in range(0, 12, 5):
        streamed.update(prediction[i : i + 5], target[i : i + 5])
    assert streamed.compute().as_dict() == whole.compute().as_dict()
    halves = [
        Confusion(4).update(prediction[s], target[s], block=np.arange(12)[s])
        for s in (slice(0, 6), slice(6, 12))
    ]
    assert halves[0].merge(halves[1]).compute().as_dict() == whole.compute().as_dict()
    copy = Confusion(4).load_state({k: v.copy() for k, v in whole.state().items()})
    assert copy.compute().as_dict() == whole.compute().as_dict()
    assert whole.reset().compute().n == 0
    with pytest.raises(InputError, match="like this one"):
        Confusion(4).merge(Confusion(5))
    with pytest.raises(InputError, match="restore into a metric of the same"):
        Confusion(4).load_state(Confusion(5).state())


def test_paired_difference_is_tighter_than_two_intervals_and_sees_no_difference_in_twins() -> None:
    prediction, target = images(3, n=40)
    rng = np.random.default_rng(0)
    better = np.where(rng.random(target.shape) < 0.05, target, prediction)
    a, b = Confusion(4).update(prediction, target), Confusion(4).update(better, target)
    found = compare_scores(a, b)["miou"]
    alone = a.compute()["miou"]
    assert 0 < found.low < found.difference < found.high
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    assert found.p < 0.01
    twin = compare_scores(a, a)["miou"]
    assert (twin.low, twin.difference, twin.high, twin.p) == (0, 0, 0, 1)
    with pytest.raises(InputError, match="different samples or blocks"):
        compare_scores(a, Confusion(4).update(prediction[:39], target[:39]))
    one = Confusion(4).update(prediction[0], target[0])
    with pytest.raises(InputError, match="1 block"):
        compare_scores(one, one)


def test_squares_of_a_map_are_units() -> None:
    block = square_blocks((5, 7), 3)
    np.testing.assert_array_equal(
        block,
        [[0, 0, 0, 1, 1, 1, 2]] * 3 + [[3, 3, 3, 4, 4, 4, 5]] * 2,
    )
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (5, 7))
    found = Confusion(2).update(target, target, block=block)
    np.testing.assert_array_equal(found.state()["n"][:6], np.bincount(block.ravel()))
    with pytest.raises(InputError, match="block of"):
        Confusion(2).update(target, target, block=np.arange(5))
