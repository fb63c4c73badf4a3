"""Draw docs/images/demo.png: the demonstration scene beside the map that `make demo` made of it.

make demo && .venv/bin/python docs/images/demo.py
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

import bocage
from bocage.errors import BocageWarning
from bocage.mapping.demo import SCENE_DATE, scene_folder

SIDE_PX = 400
GAP_PX = 12


def read_png(path):
    with rasterio.open(path) as source:
        # Without the last row and column, which are half outside the scene.
        whole = Window(0, 0, source.width - 2, source.height - 2)
        return source.read(indexes=(1, 2, 3), window=whole, out_shape=(3, SIDE_PX, SIDE_PX))


def true_color():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BocageWarning)
        stack = bocage.open_stack(scene_folder(), date=SCENE_DATE, level="L1C")
    step = stack.sizes["x"] // SIDE_PX
    rgb = stack["sentinel2_l2a"].isel(time=0, y=slice(0, None, step), x=slice(0, None, step))
    x = rgb.sel(sentinel2_l2a_band=["B04", "B03", "B02"]).values[:, :SIDE_PX, :SIDE_PX]
    low, high = np.nanpercentile(x, (2, 98), axis=(1, 2), keepdims=True)
    return np.clip((x - low) / (high - low) * 255, 0, 255).astype(np.uint8)


def main():
    demo = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output") / "scene.png"
    gap = np.full((3, SIDE_PX, GAP_PX), 255, np.uint8)
    picture = np.concatenate([true_color(), gap, read_png(demo)], axis=2)
    profile = {"driver": "PNG", "count": 3, "dtype": "uint8", "zlevel": 9}
    out = Path(__file__).with_name("demo.png")
    with rasterio.open(
        out, "w", **profile, height=picture.shape[1], width=picture.shape[2]
    ) as sink:
        sink.write(picture)
    Path(f"{out}.aux.xml").unlink(missing_ok=True)
    print(out)


if __name__ == "__main__":
    main()
