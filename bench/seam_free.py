"""Seam-free inference on the real scene: seams, cost, and what a short halo between blocks costs.

    python bench/seam_free.py [--cases olmoearth-v1.2-nano:8 olmoearth-v1.2-tiny:4] [--threads 1]
    python bench/seam_free.py --blocks        # queries per block of the attention
    python bench/seam_free.py --scene FOLDER  # another scene than the demonstration's

Costs are processor seconds of one thread per kept megapixel, the model alone, interleaved, the
smallest of the repeats: other work on the machine hardly moves them. Weights are random.
"""

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch
from scene import open_scene

import bocage
from bocage.imagery import read_window, timestamps
from bocage.mapping import seam_figure
from bocage.mapping.demo import scene_folder
from bocage.models import neighborhood
from bocage.models.domain import reach_px

WINDOWS = {"windows 20, halo 4": (20, 4), "windows 16, half overlap": (16, 4)}
"""Window and halo in patches: the default, and the usual half overlap."""

BLOCK_CELLS = 64


def read_crop(stack, side_px):
    """The middle of the scene: ({sensor: [1, T, C, H, W]}, timestamps [1, T, 3])."""
    rows, cols = ((n - side_px) // 2 for n in (stack.sizes["y"], stack.sizes["x"]))
    window = read_window(stack, slice(rows, rows + side_px), slice(cols, cols + side_px))
    return {m: x[None] for m, x in window.values.items()}, timestamps(window.dates)[None]


def cut(values, rows, cols):
    return {m: x[..., rows, cols] for m, x in values.items()}


def cpu_s(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def window_batch(values, window_px, patch_size):
    """Windows of one batch, as mapping makes them (4,096 tokens)."""
    n = max(1, 4096 // (window_px // patch_size) ** 2)
    side = next(iter(values.values())).shape[-1]
    offsets = np.linspace(0, side - window_px, n).astype(int)
    return {
        m: np.concatenate([x[..., o : o + window_px, o : o + window_px] for o in offsets])
        for m, x in values.items()
    }, n


def compare_costs(name, patch_size, values, stamps, arguments):
    """Seconds per megapixel of windows and of one domain, at each precision."""
    runs = {}
    for precision in ("fp32", "bf16"):
        fast = bocage.load_model(name, weights=None, precision=precision)
        plain = bocage.load_model(name, weights=None, precision=precision)
        plain.__dict__["engine"] = None
        for kind, model in (("plain", plain), ("engine", fast)):
            for label, (patches, halo) in WINDOWS.items():
                batch, n = window_batch(values, patches * patch_size, patch_size)
                encode = model.window_encoder(patch_size=patch_size, check_units=False)
                dates = np.repeat(stamps, n, axis=0)
                kept_px = n * ((patches - 2 * halo) * patch_size) ** 2
                runs[precision, kind, label] = (
                    lambda e=encode, b=batch, d=dates: e(b, d),
                    kept_px,
                )
        n_px = next(iter(values.values())).shape[-1] ** 2
        for kind, model in (("plain", plain), ("engine", fast)):
            encode = model.domain_encoder(patch_size=patch_size, check_units=False)
            runs[precision, kind, "seam-free"] = (lambda e=encode: e(values, stamps), n_px)
    costs = {key: [] for key in runs}
    for repeat in range(arguments.repeats + 1):
        for key, (run, kept_px) in runs.items():
            seconds = cpu_s(run)
            if repeat:
                costs[key].append(seconds / kept_px * 1e6)
    for precision in ("fp32", "bf16"):
        base = min(costs[precision, "engine", "seam-free"])
        for (p, kind, label), found in costs.items():
            if p == precision:
                print(
                    f"  {precision} {kind:6} {label:26} {min(found):7.2f} s/Mpx "
                    f"(median {statistics.median(found):.2f}), {min(found) / base:.2f} x seam-free",
                    flush=True,
                )


def compare_seams(name, patch_size, stack, values, stamps):
    """Seam figures of the three ways, each at its own window borders."""
    side = next(iter(values.values())).shape[-1]
    rows, cols = ((n - side) // 2 for n in (stack.sizes["y"], stack.sizes["x"]))
    crop = stack.isel(y=slice(rows, rows + side), x=slice(cols, cols + side))
    model = bocage.load_model(name, weights=None, precision="fp32")
    free = model.domain_encoder(patch_size=patch_size)(values, stamps)[0].transpose(2, 0, 1)
    for patches, halo in ((16, 0), *WINDOWS.values()):
        core = patches - 2 * halo
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/x.zarr"
            bocage.embed(
                crop, model, out=out, patch_size=patch_size, window_px=patches * patch_size,
                halo_px=halo * patch_size, codec="float32",
            )  # fmt: skip
            x = bocage.open_embeddings(out).values[0]
        print(
            f"  seam figure at borders every {core:2} cells: windows of {patches}, halo {halo} "
            f"{seam_figure(x, core):.3f}, seam-free {seam_figure(free, core):.3f}",
            flush=True,
        )


def compare_halos(name, patch_size, values, stamps):
    """A mosaic of four blocks, each with a halo, against one domain."""
    model = bocage.load_model(name, weights=None, precision="fp32")
    encode = model.domain_encoder(patch_size=patch_size, check_units=False)
    exact = encode(values, stamps)[0]
    n = len(exact)
    reach = reach_px(model.config, patch_size) // patch_size
    block = BLOCK_CELLS
    first = n // 2 - block
    wanted = exact[first : first + 2 * block, first : first + 2 * block]
    print(f"  reach {reach} cells; blocks of {block} cells in a domain of {n}")
    print(
        f"  exact: seam figure {seam_figure(wanted.transpose(2, 0, 1), block):.4f} at the borders "
        "of blocks"
    )
    spread = wanted.std(axis=(0, 1)).mean()
    shares = (0, 1 / 8, 1 / 4, 1 / 2, 1)
    for halo in sorted({min(n, first) for n in (16, *(round(s * reach) for s in shares))}):
        found = np.empty_like(wanted)
        for i in (0, 1):
            for j in (0, 1):
                top, left = (first + k * block - halo for k in (i, j))
                px = [slice(s * patch_size, (s + block + 2 * halo) * patch_size)
                      for s in (top, left)]  # fmt: skip
                x = encode(cut(values, *px), stamps)[0]
                found[i * block : (i + 1) * block, j * block : (j + 1) * block] = x[
                    halo : halo + block, halo : halo + block
                ]
        error = np.abs(found - wanted)
        cosine = (found * wanted).sum(-1)
        cosine /= np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
        print(
            f"  halo {halo / reach:5.3f} of the reach, {halo:3} cells ({halo * patch_size} px): "
            f"max abs error {error.max():.1e}, mean {error.mean():.1e} (spread of values "
            f"{spread:.2f}), "
            f"1 - cosine mean {1 - cosine.mean():.1e} max {1 - cosine.min():.1e}, seam figure "
            f"{seam_figure(found.transpose(2, 0, 1), block):.4f}, "
            f"{(1 + 2 * halo / block) ** 2:.2f} x the cells",
            flush=True,
        )


def compare_blocks(name, patch_size, values, stamps):
    model = bocage.load_model(name, weights=None, precision="fp32", compile=False)
    encode = model.domain_encoder(patch_size=patch_size, check_units=False)
    n_px = next(iter(values.values())).shape[-1] ** 2
    sizes = (8, 16, 32, 64, 128)
    costs = {size: [] for size in sizes}
    for _ in range(3):
        for size in sizes:
            neighborhood.BLOCK_QUERIES = size
            costs[size].append(cpu_s(lambda: encode(values, stamps)) / n_px * 1e6)
    print("  " + ", ".join(f"{size} queries {min(c):.2f} s/Mpx" for size, c in costs.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cases", nargs="+", default=["olmoearth-v1.2-nano:8", "olmoearth-v1.2-tiny:4"]
    )
    parser.add_argument("--crop", type=int, nargs="+", default=[1024, 512], help="per case, px")
    parser.add_argument("--halo-crop", type=int, nargs="+", default=[1536, 1288])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=["cost", "seams", "halos"])
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--scene")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    stack = open_scene(a.scene or scene_folder())
    for case, crop, halo_crop in zip(a.cases, a.crop, a.halo_crop, strict=True):
        name, patch_size = case.split(":")
        patch_size = int(patch_size)
        print(f"{name}, patch size {patch_size}, {crop} px of the scene", flush=True)
        values, stamps = read_crop(stack, crop)
        if a.blocks:
            compare_blocks(name, patch_size, values, stamps)
            continue
        if "cost" in a.parts:
            compare_costs(name, patch_size, values, stamps, a)
        if "seams" in a.parts:
            compare_seams(name, patch_size, stack, values, stamps)
        if "halos" in a.parts:
            compare_halos(name, patch_size, *read_crop(stack, halo_crop))


if __name__ == "__main__":
    main()
