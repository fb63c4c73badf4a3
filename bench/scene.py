"""The whole path on the real 19 km scene against the model alone, and its memory.

    python bench/scene.py [--model olmoearth-v1.2-nano] [--patch-size 8] [--repeats 5]

"Model alone" is the same windows in the same batches, already in memory, in the same process,
interleaved with the whole path. Memory is the peak resident size of a process that embeds the scene
once, and of one that embeds a scene of four times the area (the same files, 2 x 2).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import bocage
from bocage.errors import BocageWarning
from bocage.mapping import EmbedConfig, make_plan, window_encoder
from bocage.mapping.demo import SCENE_DATE, scene_folder
from bocage.mapping.worker import encode_strip, read_strips
from bocage.memory import peak_resident_mb


def open_scene(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BocageWarning)
        return bocage.open_stack(folder, date=SCENE_DATE, level="L1C")


def embed_once(folder, out, arguments):
    model = bocage.load_model(arguments.model, weights=None, precision=arguments.precision)
    return bocage.embed(open_scene(folder), model, out=out, patch_size=arguments.patch_size)


class NoSums:
    def add(self, window, x):
        """Leave the vectors alone: summing is part of the whole path, not of the model."""


def model_alone_s(model, stack, config):
    plan = make_plan(stack, model, config)
    encoder = window_encoder(model, plan)
    strips = [
        strip
        for block in plan.layout.blocks()
        for strip in read_strips(stack, plan, block, plan.years[0])
    ]
    start = time.perf_counter()
    for strip in strips:
        for _ in encode_strip(strip, plan, encoder, NoSums()):
            pass
    return time.perf_counter() - start


def four_times(folder, target):
    import rasterio

    for path in sorted(Path(folder).glob("s2_B*")):
        with rasterio.open(path) as source:
            profile = {**source.profile, "driver": "GTiff"}
            profile |= {"width": 2 * source.width, "height": 2 * source.height}
            profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512}
            with rasterio.open(target / f"{path.stem}.tif", "w", **profile) as sink:
                sink.write(np.tile(source.read(), (1, 2, 2)))


def child_peak_mb(folder, arguments):
    with tempfile.TemporaryDirectory() as scratch:
        code = [sys.executable, __file__, "--child", str(folder), "--out", f"{scratch}/x.zarr"]
        code += [
            "--precision",
            arguments.precision,
            "--model",
            arguments.model,
            "--patch-size",
            str(arguments.patch_size),
        ]
        result = subprocess.run(code, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])["peak_mb"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="olmoearth-v1.2-nano")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        embed_once(arguments.child, arguments.out, arguments)
        print(json.dumps({"peak_mb": peak_resident_mb()}))
        return
    stack = open_scene(scene_folder())
    n_px = stack.sizes["y"] * stack.sizes["x"]
    model = bocage.load_model(arguments.model, weights=None, precision=arguments.precision)
    config = EmbedConfig(patch_size=arguments.patch_size)
    ratios = []
    for k in range(arguments.repeats + 1):
        alone = model_alone_s(model, stack, config)
        with tempfile.TemporaryDirectory() as scratch:
            start = time.perf_counter()
            result = bocage.embed(
                open_scene(scene_folder()), model, out=f"{scratch}/x.zarr", config=config
            )
            whole = time.perf_counter() - start
        if k == 0:
            continue  # warm-up
        ratios.append(alone / whole)
        c = result.clock
        print(
            f"whole {whole:.2f} s ({n_px / whole / 1e6:.2f} Mpx/s: read {c.read_s:.2f}, encode "
            f"{c.encode_s:.2f}, write {c.write_s:.2f}); model alone {alone:.2f} s "
            f"({n_px / alone / 1e6:.2f} Mpx/s); share {alone / whole:.0%}",
            flush=True,
        )
    print(f"median share {statistics.median(ratios):.1%} (min {min(ratios):.1%})")
    one = statistics.median(child_peak_mb(scene_folder(), arguments) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        four_times(scene_folder(), Path(folder))
        four = statistics.median(child_peak_mb(folder, arguments) for _ in range(3))
    print(f"peak memory: scene {one:.0f} MB, four times the area {four:.0f} MB ({four / one:.2f}x)")


if __name__ == "__main__":
    main()
