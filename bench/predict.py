"""What a map costs beside the embeddings it is made from, on the real 19 km scene.

    python bench/predict.py [--patch-size 8] [--classes 10] [--repeats 3] [--crop-px 1920]

One process, interleaved: embed the scene with the smallest model (the cheapest embeddings, so the
worst case), then map it with a linear probe: scores, class COG, probability COG, areas, style,
picture, records. The map of the scene in one go is checked to be the same file.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import rasterio

import bocage
from bocage.errors import BocageWarning
from bocage.learn.classes import make_classes
from bocage.learn.estimators import Linear
from bocage.learn.predict import predict
from bocage.learn.probe import FittedOn, Probe
from bocage.mapping.demo import SCENE_DATE, scene_folder


def make_probe(store, n_classes):
    embeddings = bocage.open_embeddings(store)
    x = embeddings[0, :, ::7, ::7].values.reshape(embeddings.sizes["band"], -1)
    x = x[:, np.isfinite(x).all(axis=0)]
    rng = np.random.default_rng(0)
    attrs = embeddings.attrs
    return Probe(
        estimator=Linear(
            mean=x.mean(axis=1).astype(np.float64),
            scale=x.std(axis=1).astype(np.float64) + 1e-6,
            weight=rng.normal(0, 1, (len(x), n_classes)),
            bias=np.zeros(n_classes),
            link="softmax",
        ),
        method="logistic",
        setting={},
        task="classification",
        classes=make_classes([f"class {i}" for i in range(n_classes)]),
        embedding=FittedOn(
            dims=len(x),
            model=attrs["model"],
            patch_size=int(attrs["patch_size"]),
            weights_id=attrs["weights_id"],
            codec=attrs["codec"],
        ),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="olmoearth-v1.2-nano")
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--crop-px", type=int, default=0)
    parser.add_argument("--skip-check", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", BocageWarning)
    stack = bocage.open_stack(scene_folder(), date=SCENE_DATE, level="L1C")
    if arguments.crop_px:
        stack = stack.isel(y=slice(arguments.crop_px), x=slice(arguments.crop_px))
    model = bocage.load_model(arguments.model, weights=None)
    embedding_s, mapping_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.repeats):
            store, out = Path(folder) / f"{i}.zarr", Path(folder) / f"{i}.tif"
            start = time.perf_counter()
            bocage.embed(stack, model, out=store, patch_size=arguments.patch_size)
            embedding_s.append(time.perf_counter() - start)
            probe = make_probe(store, arguments.classes)
            start = time.perf_counter()
            result = predict(store, probe, out=out)
            mapping_s.append(time.perf_counter() - start)
            parts = ", ".join(f"{k} {v:.2f} s" for k, v in result.seconds.items())
            print(f"embedding {embedding_s[-1]:.2f} s, map {mapping_s[-1]:.2f} s ({parts})")
        if not arguments.skip_check:
            one = Path(folder) / "one.tif"
            predict(stack, probe, out=one, model=model)
            with rasterio.open(one) as a, rasterio.open(out) as b:
                same = np.array_equal(a.read(), b.read())
            print(f"map of the scene in one go: {'the same' if same else 'ANOTHER'}")
    shares = [m / e for m, e in zip(mapping_s, embedding_s, strict=True)]
    rows, cols = stack.sizes["y"], stack.sizes["x"]
    print(
        f"{arguments.model}, patch size {arguments.patch_size}, {cols} x {rows} px, "
        f"{arguments.classes} classes: the map adds {statistics.median(shares):.1%} to embedding "
        f"({min(shares):.1%} to {max(shares):.1%})"
    )


if __name__ == "__main__":
    main()
