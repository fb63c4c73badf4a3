"""How visible windows are in a map, for window and halo sizes and seam-free, on the 19 km scene.

    python bench/seams.py [--models olmoearth-v1.2-nano bocage-nano ...] [--patch-sizes 8]
        [--cases 20:4 20:0 free:16 ...] [--crop 960] [--block-px 512]

A case is the side of a window and its halo in patches, or "free" and the side of a token's own
window. Prints for each the seam figure (mean step across window borders / mean step elsewhere),
the window sensitivity (difference to the map whose windows lie half a core further, against the
variation of the map: mean, and worst hundredth of the cells), and the pixels that the model reads
per pixel kept. Cells near the edges of the scene are left out of the sensitivity. A seam-free map
of this scene at patch size 8 is one domain; --block-px makes it several, and moves those.
"""

import argparse
import tempfile

from scene import open_scene

import bocage
from bocage.mapping import EmbedConfig, make_plan, seam_figure, window_sensitivity
from bocage.mapping.demo import scene_folder
from bocage.models.bundled import BUNDLED

MARGIN_CELLS = 32
"""Cells along the edges that are not compared: twice the window of a token."""

DEFAULT_CORE_CELLS = 12
"""Where steps are looked for in a map of a single domain, which has no borders of its own."""


def embed_values(stack, model, config):
    with tempfile.TemporaryDirectory() as folder:
        bocage.embed(stack, model, out=f"{folder}/x.zarr", config=config)
        return bocage.open_embeddings(f"{folder}/x.zarr").values[0]


def configure(case, patch_size, block_px):
    """The configuration of a case such as "20:4" or "free:16"."""
    first, second = case.split(":")
    common = {"patch_size": patch_size, "codec": "float32"}
    if first == "free":
        window_px = int(second) * patch_size
        return EmbedConfig(**common, seam_free=True, window_px=window_px, block_px=block_px)
    window_px, halo_px = int(first) * patch_size, int(second) * patch_size
    return EmbedConfig(**common, window_px=window_px, halo_px=halo_px)


def compare(stack, model, config):
    """Seam figure, sensitivity and cost of a configuration."""
    p = config.patch_size
    plan = make_plan(stack, model, config)
    core_px = plan.layout.core_px
    shift = min(core_px // p // 2, MARGIN_CELLS)
    x = embed_values(stack, model, config)
    moved = stack.isel(y=slice(shift * p, None), x=slice(shift * p, None))
    shifted = embed_values(moved, model, config)
    rows, cols = (min(n, m + shift) for n, m in zip(x.shape[1:], shifted.shape[1:], strict=True))
    first = shift + MARGIN_CELLS
    inner = x[:, first : rows - MARGIN_CELLS, first : cols - MARGIN_CELLS]
    other = shifted[:, MARGIN_CELLS : rows - first, MARGIN_CELLS : cols - first]
    # A domain is as large as the scene at most.
    n_px = stack.sizes["y"] * stack.sizes["x"]
    side = min(plan.layout.window_px, max(stack.sizes["y"], stack.sizes["x"]))
    border = DEFAULT_CORE_CELLS if plan.n_windows == 1 else core_px // p
    cost = plan.n_windows * side**2 / n_px
    return seam_figure(x, border), window_sensitivity(inner, other), cost


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["olmoearth-v1.2-nano", "bocage-nano"])
    parser.add_argument("--patch-sizes", nargs="+", type=int, default=[8])
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["20:0", "20:4", "20:6", "20:8", "16:4", "12:3", "24:5", "32:8", "free:16"],
    )
    parser.add_argument("--crop", type=int, help="only the first pixels of the scene")
    parser.add_argument("--block-px", type=int, help="side of the blocks of seam-free maps")
    parser.add_argument("--precision", default="fp32")
    a = parser.parse_args()
    stack = open_scene(scene_folder())
    if a.crop:
        stack = stack.isel(y=slice(a.crop), x=slice(a.crop))
    print("model                    patch case      seam figure  sensitivity  worst 1 %  cost")
    for name in a.models:
        weights = "hub" if name in BUNDLED else None
        model = bocage.load_model(name, weights=weights, precision=a.precision)
        for p in a.patch_sizes:
            for case in a.cases:
                seam, found, cost = compare(stack, model, configure(case, p, a.block_px))
                print(
                    f"{name:24} {p:5} {case:9} {seam:11.3f}  {found.mean:11.3f}  {found.p99:9.3f}"
                    f"  {cost:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
