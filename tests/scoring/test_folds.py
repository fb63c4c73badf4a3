"""Splits against their own promises: nothing of the test side is known to the training side."""

from __future__ import annotations

import numpy as np
import pytest

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.scoring.folds import make_folds


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Six classes of 50 in 30 places of ten neighbors each."""
    rng = np.random.default_rng(0)
    places = rng.uniform(-40, 40, (30, 2))[np.arange(300) // 10] + rng.normal(0, 0.01, (300, 2))
    return np.array(list("abcdef"))[np.repeat(np.arange(6), 50)], places


def great_circle_m(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Haversine on the sphere of 111.2 km a degree, written out."""
    (lon_a, lat_a), (lon_b, lat_b) = np.radians(a).T, np.radians(b).T
    h = (
        np.sin((lat_a - lat_b) / 2) ** 2
        + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_a - lon_b) / 2) ** 2
    )
    return 2 * 111_200 * np.degrees(np.arcsin(np.sqrt(h)))


def test_random_folds_have_equal_shares_of_every_class(labelled) -> None:
    labels, _ = labelled
    folds = make_folds("random", labels=labels)
    for label in np.unique(labels):
        assert np.bincount(folds.fold[labels == label]).tolist() == [10] * 5


def test_splits_serve_scikit_learn_and_test_everything_once(labelled) -> None:
    sk = pytest.importorskip("sklearn.model_selection")
    dummy = pytest.importorskip("sklearn.dummy").DummyClassifier()
    labels, _ = labelled
    folds = make_folds("random", labels=labels)
    predicted = sk.cross_val_predict(dummy, np.zeros((300, 1)), labels, cv=list(folds.splits()))
    assert len(predicted) == 300
    for train, test in folds.splits():
        assert not set(train) & set(test)
        assert len(train) + len(test) == 300


def test_spatial_folds_never_split_a_block(labelled) -> None:
    _, places = labelled
    folds = make_folds("spatial", lonlat=places, block_m=20_000)
    for block in np.unique(folds.block):
        assert len(np.unique(folds.fold[folds.block == block])) == 1
    sizes = np.bincount(folds.fold)
    assert sizes.max() <= 1.5 * sizes.min()
    # Blocks are squares on the ground: 20 km is 20 km at 40 degrees too.
    at_40 = np.stack([np.linspace(0, 5, 500), np.full(500, 40.0)], axis=1)
    n_blocks = len(np.unique(make_folds("spatial", lonlat=at_40, block_m=20_000).block))
    assert n_blocks == pytest.approx(5 * 111.2 * np.cos(np.radians(40)) / 20, abs=1.5)
    with pytest.raises(InputError, match="smaller blocks"):
        make_folds("spatial", lonlat=places[:20], block_m=500_000)
    with pytest.raises(InputError, match="EPSG:4326"):
        make_folds("spatial", lonlat=places * 10_000)


def test_blocks_are_dealt_so_that_each_fold_has_its_share_of_a_rare_class() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 10_000, (2000, 2))
    labels = np.where((xy[:, 0] < 3000) & (rng.random(2000) < 0.3), "rare", "common")
    folds = make_folds("spatial", labels=labels, xy_m=xy, block_m=1000)
    share = np.bincount(folds.fold, labels == "rare") / (labels == "rare").sum()
    assert share.min() > 0.15
    sizes = np.bincount(folds.fold)
    assert sizes.max() < 1.15 * sizes.min()


@pytest.mark.parametrize("where", ["metres", "antimeridian"])
def test_no_training_sample_is_within_the_buffer_of_a_test_sample(where) -> None:
    rng = np.random.default_rng(0)
    n, buffer_m = 400, 3000.0
    offset = rng.uniform(-10_000, 10_000, (n, 2))
    if where == "metres":
        folds = make_folds("leave_one_block_out", xy_m=offset, block_m=5000, buffer_m=buffer_m)
        apart = np.linalg.norm(offset[:, None] - offset[None], axis=2)
    else:
        lonlat = np.array([180.0, -17.0]) + offset / 111_200
        lonlat[:, 0] = np.where(lonlat[:, 0] > 180, lonlat[:, 0] - 360, lonlat[:, 0])
        assert (lonlat[:, 0] > 0).any()
        assert (lonlat[:, 0] < 0).any()
        folds = make_folds("leave_one_block_out", lonlat=lonlat, block_m=5000, buffer_m=buffer_m)
        apart = great_circle_m(np.repeat(lonlat, n, axis=0), np.tile(lonlat, (n, 1)))
        apart = apart.reshape(n, n)
    assert folds.n_folds == len(np.unique(folds.block))
    for i, (train, test) in enumerate(folds.splits()):
        assert apart[np.ix_(test, train)].min() > buffer_m
        # And no more was left out than the buffer asks for.
        left_out = np.setdiff1d(np.arange(n), np.concatenate([train, test]))
        np.testing.assert_array_equal(left_out, np.sort(folds.dropped[i]))
        assert (apart[np.ix_(left_out, test)].min(axis=1) <= buffer_m * (1 + 1e-9)).all()


def test_a_group_is_never_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 40, 500).astype(str)
    folds = make_folds("group", group=group, labels=rng.integers(0, 3, 500))
    for train, test in folds.splits():
        assert not set(group[train]) & set(group[test])
    with pytest.raises(InputError, match="3 groups for 5 folds"):
        make_folds("group", group=np.arange(300) % 3)


def test_time_folds_train_on_the_past_only() -> None:
    rng = np.random.default_rng(0)
    time = np.datetime64("2020-01-01") + rng.integers(0, 60, 900) * np.timedelta64(7, "D")
    folds = make_folds("time", time=time, n_folds=4)
    tested = []
    for train, test in folds.splits():
        assert time[train].max() < time[test].min()
        tested += [test]
    assert np.mean([len(t) for t in tested]) == pytest.approx(900 / 5, rel=0.1)
    assert len(np.unique(np.concatenate(tested))) == (folds.fold >= 0).sum()
    # One date with nearly all samples still gives every fold something to test.
    skewed = np.r_[np.zeros(500, int), np.arange(1, 9)]
    assert set(make_folds("time", time=skewed, n_folds=4).fold) == {-1, 0, 1, 2, 3}
    with pytest.raises(InputError, match="4 different times for 4 folds"):
        make_folds("time", time=np.arange(400) % 4, n_folds=4)


def test_the_side_of_blocks_is_the_range_of_the_data_and_is_said() -> None:
    # Labels in patches of 1.5 km over 40 km: neither the spacing of samples nor the extent.
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 40_000, (3000, 2))
    patch = np.floor(xy / 1500).astype(int)
    labels = rng.integers(0, 4, (30, 30))[patch[:, 0], patch[:, 1]]
    folds = make_folds("spatial", labels=labels, xy_m=xy)
    assert 1000 < folds.block_m < 2500
    assert f"blocks of {folds.block_m:,.0f} m" in folds.describe()
    assert "autocorrelation range" in folds.describe()
    buffered = make_folds("leave_one_block_out", labels=labels, xy_m=xy, block_m=10_000)
    assert buffered.buffer_m == pytest.approx(folds.block_m)


def test_blocks_shrink_with_a_warning_where_the_area_is_too_small_for_the_range() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (400, 2))
    labels = (xy[:, 0] + xy[:, 1] > 1000).astype(int)
    with pytest.warns(BocageWarning, match="may be too good"):
        folds = make_folds("spatial", labels=labels, xy_m=xy)
    assert folds.block.max() + 1 >= 10


def test_a_class_that_lies_together_is_announced() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 10_000, (500, 2))
    labels = np.where((xy < 1000).all(axis=1), "quarry", np.where(rng.random(500) < 0.5, "a", "b"))
    with pytest.warns(BocageWarning, match="leave quarry out"):
        make_folds("spatial", labels=labels, xy_m=xy, block_m=1000)


def test_what_cannot_be_split_is_refused_in_one_sentence() -> None:
    xy = np.random.default_rng(0).uniform(0, 1000, (40, 2))
    labels = np.arange(40) % 2
    with pytest.raises(InputError, match="3 samples for 5 folds"):
        make_folds("random", labels=labels[:3])
    with pytest.raises(InputError, match=r"40 labels of one class \(water\)"):
        make_folds("random", labels=np.full(40, "water"))
    with pytest.raises(InputError, match="all 40 samples in one block of 5,000 m"):
        make_folds("spatial", labels=labels, xy_m=xy, block_m=5000)
    with pytest.raises(InputError, match="NaN"):
        make_folds("random", labels=np.r_[np.nan, np.ones(20)])
    with pytest.raises(InputError, match="NaN or infinity"):
        make_folds("spatial", labels=labels, xy_m=np.where(xy > 990, np.nan, xy))
    with pytest.raises(InputError, match="columns of 30 and 40 samples"):
        make_folds("spatial", labels=labels[:30], xy_m=xy)
    with pytest.raises(InputError, match="both lonlat and xy_m"):
        make_folds("spatial", labels=labels, xy_m=xy, lonlat=xy / 1000)
    with pytest.raises(InputError, match="holds every other sample"):
        make_folds("spatial", labels=labels, xy_m=xy, block_m=300, buffer_m=5000)
    with pytest.raises(InputError, match="train on 1 class"):
        make_folds("group", group=labels, labels=labels, n_folds=2)
    with pytest.raises(ConfigError, match="spatial folds without lonlat or xy_m"):
        make_folds("spatial", labels=labels)
    with pytest.raises(ConfigError, match="folds 'checkerboard'"):
        make_folds("checkerboard", labels=labels)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"all 40 samples in one block"):
        make_folds("spatial", labels=labels, xy_m=np.zeros((40, 2)))
    with pytest.raises(InputError, match="20 of 40 samples without a group"):
        make_folds("group", group=np.array([None, "a"] * 20, dtype=object), labels=labels)
    with pytest.raises(InputError, match="20 of 40 samples without a time"):
        make_folds("time", time=np.array(["2020-01-01", "NaT"] * 20, "datetime64[D]"), n_folds=2)
    with pytest.raises(InputError, match="20 of 40 samples without a label"):
        make_folds("random", labels=np.array([None, "a"] * 20, dtype=object))
    with pytest.raises(InputError, match="0 labels of one class"):
        make_folds("random", labels=np.zeros(0, int))
    with pytest.raises(ConfigError, match="buffer_m -5"):
        make_folds("spatial", labels=labels, xy_m=xy, block_m=300, buffer_m=-5)
