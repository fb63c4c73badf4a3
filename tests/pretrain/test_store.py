"""The store: exact, readable by zarr itself, cheap for crops, safe when killed or damaged."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from bocage.errors import InputError, StoreError
from bocage.pretrain.modalities import MODALITIES
from bocage.pretrain.store import JOURNAL, StoreLayout, StoreWriter
from bocage.pretrain.store_samples import StoreSamples

from .sample_data import make_sample

NAMES = ("sentinel2_l2a", "sentinel1", "landsat", "worldcover", "srtm", "openstreetmap_raster")
LAYOUT = StoreLayout(modalities=NAMES, size_px=32, chunk_px=8, samples_per_shard=4, max_steps=6)


def write(path, samples, layout=LAYOUT):
    writer = StoreWriter(path, layout, job={})
    for sample in samples:
        writer.add(sample)
    writer.finish()
    return StoreSamples(path)


def read_all(samples, index):
    whole = slice(0, samples.size_px)
    with samples.sample(index) as one:
        steps = tuple(range(len(one.timestamps)))
        return {
            name: one.read(name, whole, whole, (0,) if MODALITIES[name].is_map else steps)
            for name in one.present
        }


def tree(path):
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


def test_samples_come_back_exactly_with_what_they_lack(tmp_path):
    samples = [
        make_sample(0, absent=(("sentinel2_l2a", 1), ("sentinel1", 4))),
        make_sample(1, n_steps=6, sensors=("sentinel1",), maps=()),
        *(make_sample(i, n_steps=1 + i % 6, maps=("srtm",)) for i in range(2, 9)),
    ]
    store = write(tmp_path / "s.zarr", samples)
    assert len(store) == 9
    for index, sample in enumerate(samples):
        got = read_all(store, index)
        assert set(got) == set(sample.values)
        for name, x in sample.values.items():
            np.testing.assert_array_equal(got[name], x)
        with store.sample(index) as one:
            np.testing.assert_array_equal(one.timestamps, sample.timestamps)
            assert one.id == sample.id
        assert store.n_steps(index) == len(sample.timestamps)
        np.testing.assert_allclose(store.latlon[index], sample.latlon, rtol=1e-6)


def test_whole_numbers_are_kept_as_such_and_zarr_reads_the_same(tmp_path):
    samples = [make_sample(i, n_steps=6) for i in range(5)]
    write(tmp_path / "s.zarr", samples)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    types = {name: str(group[name].dtype) for name in NAMES}
    assert types == {
        "sentinel2_l2a": "uint16",
        "sentinel1": "float32",
        "landsat": "uint16",
        "worldcover": "uint8",
        "srtm": "int16",
        "openstreetmap_raster": "uint8",
    }
    for name in NAMES:
        expected = np.stack([np.moveaxis(s.values[name], (2, 3), (0, 1)) for s in samples])
        np.testing.assert_array_equal(group[name][:].astype(np.float32), expected)
    assert group["sentinel2_l2a"].shards == (4, 6, 12, 32, 32)
    assert group["sentinel2_l2a"].chunks == (1, 3, 12, 8, 8)
    assert group.attrs["bands"]["landsat"] == list(MODALITIES["landsat"].bands)


def test_random_boxes_equal_slices_of_the_sample(tmp_path):
    samples = [make_sample(i, n_steps=5) for i in range(5)]
    store = write(tmp_path / "s.zarr", samples)
    rng = np.random.default_rng(0)
    for _ in range(60):
        index = int(rng.integers(5))
        top, left = rng.integers(0, 31, 2)
        bottom, right = rng.integers(top + 1, 33), rng.integers(left + 1, 33)
        first = int(rng.integers(5))
        steps = tuple(range(first, int(rng.integers(first + 1, 6))))
        name = ("sentinel2_l2a", "sentinel1")[int(rng.integers(2))]
        with store.sample(index) as one:
            got = one.read(name, slice(top, bottom), slice(left, right), steps)
        expected = samples[index].values[name][top:bottom, left:right, first : first + len(steps)]
        np.testing.assert_array_equal(got, expected)


def test_a_crop_decompresses_only_the_chunks_it_touches(tmp_path):
    layout = replace(LAYOUT, modalities=("sentinel2_l2a",), max_steps=6)
    samples = [make_sample(i, n_steps=6, sensors=("sentinel2_l2a",), maps=()) for i in range(8)]
    store = write(tmp_path / "s.zarr", samples, layout)
    array = store.arrays["sentinel2_l2a"]
    shard_bytes = (tmp_path / "s.zarr/sentinel2_l2a/c/1/0/0/0/0").stat().st_size
    boxes = {
        ((0, 8), (0, 8), (0,)): 1,
        ((0, 8), (0, 8), (0, 1, 2)): 1,  # one chunk holds 3 timesteps
        ((4, 12), (0, 8), (2, 3)): 4,  # two rows of chunks, two runs of timesteps
        ((7, 17), (7, 9), (5,)): 6,
        ((0, 32), (0, 32), (0, 1, 2, 3, 4, 5)): 32,
    }
    for (rows, cols, steps), n_chunks in boxes.items():
        before = array.n_chunks, array.n_bytes
        with store.sample(6) as one:
            one.read("sentinel2_l2a", slice(*rows), slice(*cols), steps)
        assert array.n_chunks - before[0] == n_chunks
        # A sample has 32 chunks, a shard 4 samples; chunks of random numbers are of one size.
        share = (array.n_bytes - before[1]) / shard_bytes
        assert share == pytest.approx(n_chunks / (4 * 32), rel=0.1, abs=0.02)


def test_digital_numbers_are_rounded_and_saturation_is_not_missing(tmp_path):
    sample = make_sample(sensors=("sentinel2_l2a",), maps=())
    x = sample.values["sentinel2_l2a"]
    x[0, :4, 0, 0] = (-3.0, 12.5, 13.6, 70000)
    got = read_all(write(tmp_path / "s.zarr", [sample]), 0)["sentinel2_l2a"]
    assert got[0, :4, 0, 0].tolist() == [0, 12, 14, 65534]


def test_maps_that_are_not_whole_numbers_need_a_word(tmp_path):
    sample = make_sample()
    sample.values["srtm"][5, 5] = 12.25
    writer = StoreWriter(tmp_path / "s.zarr", LAYOUT, job={})
    writer.add(sample)
    with pytest.raises(InputError, match=r"srtm value 12.25 in sample 0.*--float32 srtm"):
        writer.finish()
    store = write(tmp_path / "t.zarr", [sample], replace(LAYOUT, float32=("srtm",)))
    np.testing.assert_array_equal(read_all(store, 0)["srtm"], sample.values["srtm"])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda: make_sample(size_px=16), "sample 0 of 16 x 16 pixels; expected 32 x 32"),
        (lambda: make_sample(n_steps=7), "sample 0 with 7 timesteps; expected at most 6"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(tmp_path, sample, message):
    writer = StoreWriter(tmp_path / "s.zarr", LAYOUT, job={})
    with pytest.raises(InputError, match=message):
        writer.add(sample())


def test_a_modality_that_the_store_has_not_is_refused(tmp_path):
    layout = replace(LAYOUT, modalities=("sentinel2_l2a",))
    writer = StoreWriter(tmp_path / "s.zarr", layout, job={})
    with pytest.raises(InputError, match="got sentinel1 in sample 0; expected one of the modal"):
        writer.add(make_sample(sensors=("sentinel2_l2a", "sentinel1"), maps=()))


def test_nothing_at_all_is_an_error_that_says_why(tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", LAYOUT, job={})
    writer.refuse("too dark")
    writer.refuse("too dark")
    with pytest.raises(InputError, match=r"no usable sample \(2 too dark\)"):
        writer.finish()


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from tests.pretrain.sample_data import make_sample
    from tests.pretrain.test_store import LAYOUT
    from bocage.pretrain import store
    path, kill_at, place = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    calls = 0
    original = getattr(store, place)
    def counted(*args):
        global calls
        calls += 1
        if calls == kill_at:
            if place == "write_file":  # in the middle of a file
                args[0].parent.mkdir(parents=True, exist_ok=True)
                args[0].with_name("." + args[0].name + ".partial").write_bytes(args[1][:7])
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)
    setattr(store, place, counted)
    writer = store.StoreWriter(path, LAYOUT, job={"a": 1})
    for index in range(writer.n_taken, 14):
        if index % 5 == 2:
            writer.refuse("every fifth")
        else:
            writer.add(make_sample(index, n_steps=1 + index % 6))
    writer.finish()
"""


def run_killed(path, kill_at, place):
    root = Path(__file__).parents[2]
    code = textwrap.dedent(KILLED)
    command = [sys.executable, "-c", code, str(path), str(kill_at), place]
    return subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False
    ).returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    assert run_killed(path, 10_000, "_line") == 0
    return path


@pytest.mark.parametrize(
    ("place", "kill_at"),
    [
        ("write_file", 9),
        ("_write_metadata", 1),
        pytest.param("write_file", 3, marks=pytest.mark.slow),
        pytest.param("_line", 3, marks=pytest.mark.slow),
    ],
)
def test_a_killed_writer_goes_on_to_the_same_bytes(tmp_path, whole, place, kill_at):
    assert run_killed(tmp_path / "killed.zarr", kill_at, place) == -signal.SIGKILL
    with pytest.raises(StoreError, match=r"not finished.*run the command that began it again"):
        StoreSamples(tmp_path / "killed.zarr")
    assert run_killed(tmp_path / "killed.zarr", 10_000, place) == 0
    killed = {k: v for k, v in tree(tmp_path / "killed.zarr").items() if ".partial" not in k}
    assert killed == tree(whole)
    assert len(StoreSamples(tmp_path / "killed.zarr")) == 11


def test_half_a_journal_line_is_forgotten(tmp_path):
    samples = [make_sample(i) for i in range(6)]
    path = tmp_path / "s.zarr"
    writer = StoreWriter(path, LAYOUT, job={})
    for sample in samples[:4]:
        writer.add(sample)
    with pytest.raises(StoreError, match=r"s\.zarr, which another process is writing"):
        StoreWriter(path, LAYOUT, job={})
    writer.close()
    with (path / JOURNAL).open("ab") as file:
        file.write(b'{"taken":6,"samp')
    again = StoreWriter(path, LAYOUT, job={})
    assert (again.n_taken, len(again)) == (4, 4)
    for sample in samples[4:]:
        again.add(sample)
    assert again.finish() == 6
    np.testing.assert_array_equal(
        read_all(StoreSamples(path), 5)["landsat"], samples[5].values["landsat"]
    )


def test_another_job_or_a_finished_store_is_not_continued(tmp_path):
    path = tmp_path / "s.zarr"
    StoreWriter(path, LAYOUT, job={"source": "of which nothing was kept"}).close()
    writer = StoreWriter(path, LAYOUT, job={"source": "a"})
    for index in range(4):
        writer.add(make_sample(index))
    writer.close()
    with pytest.raises(StoreError, match=r"s\.zarr, an unfinished store begun with source"):
        StoreWriter(path, LAYOUT, job={"source": "b"})
    write(tmp_path / "t.zarr", [make_sample()])
    with pytest.raises(StoreError, match=r"t\.zarr, which exists already"):
        StoreWriter(tmp_path / "t.zarr", LAYOUT, job={})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="other, which exists already"):
        StoreWriter(tmp_path / "other", LAYOUT, job={"contents": "1"})


def test_a_finished_store_is_known_by_its_job(tmp_path):
    path, job = tmp_path / "s.zarr", {"contents": "1", "config": {"size_px": 32}}
    writer = StoreWriter(path, LAYOUT, job=job)
    writer.add(make_sample())
    writer.refuse("clouds")
    writer.finish()
    before = tree(path)
    again = StoreWriter(path, LAYOUT, job=job)
    assert again.is_finished and not writer.is_finished
    assert (len(again), again.n_taken, dict(again.refused)) == (1, 2, {"clouds": 1})
    assert again.per_modality() == writer.per_modality()
    assert again.finish() == 1
    again.close()
    assert tree(path) == before and not list(tmp_path.glob(".*"))
    for changed, words in (
        ({**job, "config": {"size_px": 64}}, r"size_px 32 \(now 64\); expected the same"),
        ({**job, "contents": "2"}, "other contents of its input files"),
        ({**job, "config": {"size_px": 32, "stride_px": 8}}, r"stride_px None \(now 8\)"),
    ):
        with pytest.raises(StoreError, match=words):
            StoreWriter(path, LAYOUT, job=changed)
    assert tree(path) == before


def test_foreign_and_missing_folders_are_named(tmp_path):
    with pytest.raises(StoreError, match="which is not a store of samples"):
        StoreSamples(tmp_path)
    with pytest.raises(StoreError, match="which is not a store of samples"):
        StoreSamples(tmp_path / "nothing.zarr")
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(StoreError, match="which is not a store of samples"):
        StoreSamples(tmp_path / "other.zarr")


@pytest.mark.parametrize("damage", ["rot", "short", "empty", "index", "absent"])
def test_a_damaged_shard_is_named_and_never_read_as_numbers(tmp_path, damage):
    store = write(tmp_path / "s.zarr", [make_sample(i) for i in range(4)])
    shard = tmp_path / "s.zarr/sentinel1/c/0/0/0/0/0"
    data = bytearray(shard.read_bytes())
    if damage == "rot":
        data[1000] ^= 0xFF
    elif damage == "index":  # the first chunk's entry now says what the second's says
        size = 4 * 2 * 16 * 16 + 4
        data[-size : -size + 16] = data[-size + 16 : -size + 32]
    if damage == "absent":
        shard.unlink()
    else:
        shard.write_bytes({"short": data[: len(data) // 2], "empty": b""}.get(damage, data))
    with pytest.raises(StoreError, match=r"damaged shard .*sentinel1/c/0/0/0/0/0"):
        for index in range(4):
            read_all(store, index)
