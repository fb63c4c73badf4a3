"""Batches: pure functions of the step, right numbers, damaged samples left out."""

import itertools
import logging
import threading
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from bocage.errors import BocageWarning, ConfigError, InputError, StoreError
from bocage.pretrain.augmentation import apply_symmetry
from bocage.pretrain.loader import Loader
from bocage.pretrain.modalities import MODALITIES, normalize
from bocage.pretrain.official_h5 import write_official
from bocage.pretrain.sampling import SamplingConfig
from bocage.pretrain.sources import JoinedSamples, MemorySamples, open_samples
from bocage.pretrain.store import StoreLayout, StoreWriter

from .sample_data import make_sample

SMALL = SamplingConfig(sides=(1, 2, 3, 4), patch_sizes=(1, 2, 4))
FIXED = SamplingConfig(sides=(4,), patch_sizes=(2,), max_steps=3)


def same(a, b):
    return (
        a.ids == b.ids
        and a.patch_size == b.patch_size
        and torch.equal(a.timestamps, b.timestamps)
        and all(torch.equal(a.values[m], b.values[m]) for m in a.values)
        and all(torch.equal(a.present[m], b.present[m]) for m in a.present)
    )


@pytest.fixture(scope="module")
def samples():
    return [
        make_sample(0, absent=(("sentinel2_l2a", 1), ("sentinel1", 0))),
        make_sample(1, sensors=("sentinel1",), maps=()),
        *(make_sample(i, n_steps=1 + i % 7) for i in range(2, 12)),
    ]


def find_crop(sample, batch, row):
    """Where a crop of a batch lies in its sample: (row, column, first step, symmetry)."""
    name = next(n for n in sample.values if not MODALITIES[n].is_map)
    crop = batch.values[name][row].numpy()
    side, n_steps = crop.shape[0], crop.shape[2]
    x = np.nan_to_num(normalize(name, sample.values[name]))
    x = np.pad(x, ((0, 0), (0, 0), (0, n_steps), (0, 0)))
    size = x.shape[0] - side + 1
    for r, c, t in itertools.product(range(size), range(size), range(len(sample.timestamps))):
        piece = x[r : r + side, c : c + side, t : t + n_steps]
        for element in range(8):
            if np.array_equal(apply_symmetry(piece, element), crop):
                return r, c, t, element
    return None


@pytest.mark.parametrize("augment", [False, True])
def test_every_layer_is_the_same_crop_of_the_named_sample(samples, augment):
    loader = Loader(MemorySamples(samples), FIXED, batch_size=6, seed=5, augment=augment)
    by_id = {s.id: s for s in samples}
    elements = set()
    for step in range(4):
        batch = loader.batch(step)
        assert batch.patch_size == 2
        for row, name in enumerate(batch.ids):
            sample = by_id[name]
            found = find_crop(sample, batch, row)
            assert found is not None
            r, c, t, element = found
            elements.add(element)
            for layer in loader.modalities:
                crop = batch.values[layer][row].numpy()
                there = batch.present[layer][row].numpy()
                if layer not in sample.values:
                    assert not there.any()
                    assert not crop.any()
                    continue
                is_map = MODALITIES[layer].is_map
                steps = slice(0, 1) if is_map else slice(t, t + 3)
                piece = normalize(layer, sample.values[layer][r : r + 8, c : c + 8, steps])
                piece = apply_symmetry(piece, element)
                n = piece.shape[2]
                np.testing.assert_array_equal(crop[:, :, :n], np.nan_to_num(piece))
                assert not crop[:, :, n:].any()
                whole = np.isfinite(piece[::2, ::2]).all(axis=-1)
                np.testing.assert_array_equal(there[:, :, :n, 0], whole)
                assert not there[:, :, n:].any()
            stamps = sample.timestamps[t : t + 3]
            stamps = np.concatenate([stamps, np.repeat(stamps[-1:], 3 - len(stamps), axis=0)])
            np.testing.assert_array_equal(batch.timestamps[row], stamps)
    assert len(elements) > 4 if augment else elements == {0}


def test_all_eight_symmetries_occur_and_change_the_data():
    samples = MemorySamples([make_sample(0, size_px=8, n_steps=1, maps=())])
    config = SamplingConfig(sides=(4,), patch_sizes=(2,))
    plain = Loader(samples, config, batch_size=1, seed=0).batch(0).values["sentinel2_l2a"]
    turned = Loader(samples, config, batch_size=1, seed=0, augment=True)
    seen = Counter(
        turned.batch(step).values["sentinel2_l2a"].numpy().tobytes() for step in range(80)
    )
    expected = {apply_symmetry(plain[0].numpy(), k).tobytes() for k in range(8)}
    assert set(seen) == expected
    assert len(expected) == 8


def test_missing_band_at_the_first_pixel_of_a_patch_hides_its_band_set():
    sample = make_sample(0, size_px=8, n_steps=1, sensors=("sentinel2_l2a",), maps=())
    x = sample.values["sentinel2_l2a"]
    x[2, 4, 0, 11] = np.nan  # B09, first pixel of patch (1, 2)
    x[1, 1, 0, :] = np.nan  # not the first pixel of a patch
    config = SamplingConfig(sides=(4,), patch_sizes=(2,), band_sets="v1")
    batch = Loader(MemorySamples([sample]), config, batch_size=1, seed=0).batch(0)
    there = batch.present["sentinel2_l2a"][0, :, :, 0]
    assert there.shape == (4, 4, 3)
    assert (~there).nonzero().tolist() == [[1, 2, 2]]
    single = Loader(MemorySamples([sample]), FIXED, batch_size=1, seed=0).batch(0)
    assert (~single.present["sentinel2_l2a"][0, :, :, 0]).nonzero().tolist() == [[1, 2, 0]]


def test_a_step_can_be_had_alone_and_in_any_order(samples):
    source = MemorySamples(samples)
    loader = Loader(source, SMALL, batch_size=4, seed=1, augment=True)
    in_order = [loader.batch(step) for step in range(7)]
    for step in (6, 2, 0, 5):
        fresh = Loader(source, SMALL, batch_size=4, seed=1, augment=True)
        assert same(fresh.batch(step), in_order[step])
    other = Loader(source, SMALL, batch_size=4, seed=2, augment=True)
    assert not same(other.batch(0), in_order[0])


@pytest.mark.parametrize("n_workers", [1, 3])
def test_threads_change_nothing(samples, n_workers):
    source = MemorySamples(samples)
    plain = Loader(source, SMALL, batch_size=4, seed=1)
    threaded = Loader(source, SMALL, batch_size=4, seed=1, n_workers=n_workers)
    batches = threaded.batches(5)
    for step in range(5, 25):
        assert same(next(batches), plain.batch(step))
    batches.close()


def test_two_ranks_have_the_two_halves(samples):
    source = MemorySamples(samples)
    whole = Loader(source, SMALL, batch_size=6, seed=3, augment=True)
    halves = [
        Loader(source, SMALL, batch_size=6, seed=3, augment=True, rank=r, world_size=2)
        for r in range(2)
    ]
    for step in range(6):
        everyone = whole.batch(step)
        parts = [half.batch(step) for half in halves]
        assert everyone.ids == parts[0].ids + parts[1].ids
        for name, x in everyone.values.items():
            assert torch.equal(x, torch.cat([p.values[name] for p in parts]))
        for name, x in everyone.present.items():
            assert torch.equal(x, torch.cat([p.present[name] for p in parts]))
        assert torch.equal(everyone.timestamps, torch.cat([p.timestamps for p in parts]))
        assert everyone.patch_size == parts[0].patch_size == parts[1].patch_size


def test_every_epoch_is_another_order_of_all(samples):
    loader = Loader(MemorySamples(samples), SMALL, batch_size=4, seed=0)
    assert len(loader) == 3
    epochs = [[i for k in range(3) for i in loader.batch(3 * e + k).ids] for e in range(3)]
    for ids in epochs:
        assert sorted(ids) == sorted(s.id for s in samples)
    assert epochs[0] != epochs[1] != epochs[2]


def test_store_official_files_and_memory_give_the_same_batches(tmp_path):
    samples = [make_sample(i, n_steps=12, absent=(("landsat", i),)) for i in range(8)]
    folder, _ = write_official(samples, tmp_path)
    layout = StoreLayout(modalities=tuple(samples[0].values), size_px=32)
    writer = StoreWriter(tmp_path / "s.zarr", layout, job={})
    for sample in samples:
        writer.add(sample)
    writer.finish()
    sources = [open_samples(s) for s in (samples, tmp_path / "s.zarr", folder)]
    with pytest.warns(BocageWarning, match=r"whole sample for every crop.*pretrain convert"):
        loaders = [Loader(source, SMALL, batch_size=4, seed=0, augment=True) for source in sources]
    for step in range(6):
        memory, store, official = (loader.batch(step) for loader in loaders)
        assert same(memory, store)
        assert official.ids[0].endswith(".h5")
        for name, x in memory.values.items():
            assert torch.equal(x, official.values[name])
            assert torch.equal(memory.present[name], official.present[name])


class Damaged(MemorySamples):
    """Samples of which some cannot be read."""

    def __init__(self, samples, bad):
        super().__init__(samples)
        self.bad = set(bad)

    @contextmanager
    def sample(self, index):
        if index in self.bad:
            raise StoreError(got=f"rot in {index}", expected="none", fix="mend it")
        with super().sample(index) as one:
            yield one


def test_a_damaged_sample_is_named_and_replaced_for_all_ranks_alike(samples, caplog):
    source = Damaged(samples, {3, 7})
    loader = Loader(source, SMALL, batch_size=4, seed=0)
    with caplog.at_level(logging.WARNING, "bocage"):
        batches = [loader.batch(step) for step in range(6)]
    for batch in batches:
        assert len(set(batch.ids)) == 4
        assert not {"sample 3", "sample 7"} & set(batch.ids)
        assert all(torch.isfinite(x).all() for x in batch.values.values())
    assert set(loader.bad) == {3, 7}
    assert "sample 3 left out (" in caplog.text
    assert "rot in 3" in caplog.text
    half = Loader(source, SMALL, batch_size=4, seed=0, rank=1, world_size=2)
    assert [half.batch(k).ids for k in (5, 0)] == [batches[k].ids[2:] for k in (5, 0)]


def test_too_many_damaged_samples_stop_the_run(samples):
    loader = Loader(Damaged(samples, range(4)), SMALL, batch_size=4, seed=0)
    with pytest.raises(InputError, match="4 damaged of 12 samples, the last of them sample"):
        for step in range(3):
            loader.batch(step)
    patient = Loader(Damaged(samples, range(4)), SMALL, batch_size=4, seed=0, max_bad_share=0.5)
    assert len({i for step in range(3) for i in patient.batch(step).ids}) == 8


def test_every_other_sample_may_replace_a_damaged_one(samples):
    # 12 samples, batches of 8: strides of 8 among the other 4 alone would only ever meet one.
    for good in range(12):
        source = Damaged(samples, set(range(12)) - {good})
        loader = Loader(source, FIXED, batch_size=8, seed=0, max_bad_share=1)
        assert set(loader.batch(0).ids) == {f"sample {good}"}


def test_an_error_in_a_thread_reaches_the_caller(samples):
    loader = Loader(Damaged(samples, range(12)), SMALL, batch_size=4, seed=0, n_workers=2)
    with pytest.raises(InputError, match=r"damaged of 12 samples|no readable sample left"):
        next(loader.batches())


def test_a_sample_without_the_wanted_sensors_counts_as_damaged(samples):
    loader = Loader(
        MemorySamples(samples), SMALL, batch_size=4, seed=0, modalities=("landsat", "srtm")
    )
    ids = {i for step in range(3) for i in loader.batch(step).ids}
    assert "sample 1" not in ids  # it has Sentinel-1 only
    assert "all timesteps are missing" in loader.bad[1]


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_reading_goes_on_while_the_caller_works(samples):
    opened = []

    class Counted(MemorySamples):
        @contextmanager
        def sample(self, index):
            opened.append(index)
            with super().sample(index) as one:
                yield one

    loader = Loader(Counted(samples), SMALL, batch_size=2, seed=0, n_workers=1)
    batches = loader.batches()
    next(batches)
    wait_for(lambda: len(opened) == 6)  # the batch in hand and two ahead
    time.sleep(0.05)
    assert len(opened) == 6  # and no more than that: memory is bounded
    batches.close()
    wait_for(lambda: not any(t.name.startswith("bocage-loader") for t in threading.enumerate()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 5, "world_size": 2}, "batch_size=5 on rank 0 of 2"),
        ({"batch_size": 13}, "batch_size=13 with 12 samples"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2, "rank": 1}, "rank 1 of 1"),
        ({"batch_size": 2, "modalities": ("cdl",)}, "modalities cdl; expected some of sentinel2"),
        ({"batch_size": 2, "modalities": ("srtm",)}, "at least one of them a sensor"),
    ],
)
def test_bad_options_are_named(samples, options, message):
    with pytest.raises(ConfigError, match=message):
        Loader(MemorySamples(samples), SMALL, seed=0, **options)


def test_several_collections_are_one(samples):
    joined = open_samples([MemorySamples(samples[:5]), MemorySamples(samples[5:])])
    assert isinstance(joined, JoinedSamples)
    one = Loader(MemorySamples(samples), SMALL, batch_size=4, seed=0)
    two = Loader(joined, SMALL, batch_size=4, seed=0)
    for step in range(4):
        assert same(one.batch(step), two.batch(step))
    with pytest.raises(InputError, match=r"2 collections with samples of \[16, 32\] pixels"):
        open_samples([MemorySamples(samples), MemorySamples([make_sample(size_px=16)])])


def test_infinite_values_are_missing_and_never_reach_the_network():
    damaged = [make_sample(i, maps=()) for i in range(4)]
    for sample in damaged:
        for x in sample.values.values():
            x[1::2, 1::2] = np.inf
    loader = Loader(MemorySamples(damaged), FIXED, batch_size=4, seed=0)
    for step in range(3):
        batch = loader.batch(step)
        assert all(x.abs().max() < 1e6 for x in batch.values.values())
        assert any((x == 0).any() for x in batch.values.values())
