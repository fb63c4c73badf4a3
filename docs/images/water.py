"""Draws docs/images/water.png: the water map of docs/learn.md, made anew from the demo scene.

python docs/images/water.py FOLDER      # where `bocage probe` of docs/learn.md has written
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import geopandas
import numpy as np
from matplotlib.figure import Figure

from bocage.embeddings import open_embeddings
from bocage.errors import BocageWarning
from bocage.imagery import open_stack
from bocage.learn.baselines import on_cells, otsu, spectral_indices
from bocage.learn.probe import load_probe
from bocage.learn.raster import embeddings_grid, raster_of
from bocage.mapping.demo import SCENE_DATE, scene_folder

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    """Three panels: the scene with the points, the probe, the index."""
    embeddings = open_embeddings(folder / "embeddings.zarr")
    probe = load_probe(folder)
    grid = embeddings_grid(embeddings)
    d, (rows, cols) = embeddings.sizes["band"], grid.shape_yx
    x = embeddings.values[0].reshape(d, -1).T
    water = [c.name for c in probe.classes].index("water")
    probability = probe.predict_proba(x)[:, water].reshape(rows, cols)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BocageWarning)
        raster = raster_of(open_stack(scene_folder(), date=SCENE_DATE, level="L1C"))
    bands = on_cells(raster, grid).read(0, slice(0, rows), slice(0, cols))
    flat = bands.reshape(len(bands), -1).T
    index = spectral_indices(flat, raster.features)["NDWI"].reshape(rows, cols)
    threshold = otsu(index)
    column = {name.split(":")[1]: i for i, name in enumerate(raster.features)}
    rgb = np.stack([bands[column[b]] for b in ("B04", "B03", "B02")], axis=-1)
    low, high = np.nanpercentile(rgb, (2, 98), axis=(0, 1))
    rgb = np.nan_to_num(np.clip((rgb - low) / (high - low), 0, 1))

    points = geopandas.read_file(HERE.parent / "examples" / "water-points.geojson")
    points = points.to_crs(grid.crs)
    west, south, east, north = grid.bbox
    extent = (west, east, south, north)
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    panels = [
        ("true color and the points", rgb, None),
        ("probability of water, random weights", probability, "viridis"),
        (f"NDWI above Otsu's threshold {threshold:.2f}", index > threshold, "Blues"),
    ]
    for i, (title, picture, colors) in enumerate(panels):
        axes = figure.add_subplot(1, 3, i + 1)
        axes.imshow(picture, extent=extent, cmap=colors, vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
        if i == 0:
            for name, color in (("water", "#00c8ff"), ("land", "#ff5a36")):
                some = points[points["class"] == name].geometry
                axes.plot(some.x, some.y, ".", color=color, ms=5, mec="black", mew=0.4, label=name)
            axes.legend(fontsize=7, loc="upper right")
    figure.savefig(HERE / "water.png", dpi=75)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
