"""How visible window borders are, for window and halo sizes, on the real 19 km scene.

    python bench/seams.py [--models olmoearth-v1.2-nano ...] [--patch-sizes 8 4]

Prints for each setting the seam figure (mean step across window borders / mean step elsewhere) and
the cost: pixels read by the model per pixel kept.
"""

import argparse
import tempfile

from scene import open_scene

import bocage
from bocage.mapping import seam_figure
from bocage.mapping.demo import scene_folder
from bocage.models.bundled import BUNDLED


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["olmoearth-v1.2-nano", "olmoearth-v1-nano"])
    parser.add_argument("--patch-sizes", nargs="+", type=int, default=[8])
    parser.add_argument("--windows", nargs="+", type=int, default=[16], help="in patches")
    parser.add_argument("--halos", nargs="+", type=int, default=[0, 1, 2, 4], help="in patches")
    parser.add_argument("--crop", type=int, help="only the first pixels of the scene")
    a = parser.parse_args()
    stack = open_scene(scene_folder())
    if a.crop:
        stack = stack.isel(y=slice(a.crop), x=slice(a.crop))
    print("model                    patch window halo  seam figure  cost")
    for name in a.models:
        model = bocage.load_model(name, weights="hub" if name in BUNDLED else None)
        for p in a.patch_sizes:
            for w in a.windows:
                for h in a.halos:
                    with tempfile.TemporaryDirectory() as folder:
                        out = f"{folder}/x.zarr"
                        bocage.embed(
                            stack, model, out=out, patch_size=p, window_px=w * p, halo_px=h * p,
                            codec="float32",
                        )  # fmt: skip
                        x = bocage.open_embeddings(out).values[0]
                    core = w - 2 * h
                    print(
                        f"{name:24} {p:5} {w * p:6} {h * p:4}  {seam_figure(x, core):11.3f}"
                        f"  {(w / core) ** 2:.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
