"""Change of Taizhou (Landsat 7, 2000 and 2003) against its labelled pixels, method by method.

    python bench/change.py [--data ../shared/data]

AUC is over all labelled pixels. F1 and kappa of the unsupervised methods are at Otsu's threshold of
the whole map, which has not seen a label. The supervised rows are logistic models of the
difference, scored on blocks of ground that they have not seen, and the same on random folds; beside
them a nearest neighbor that knows only where the labels are. "Random weights" is the difference of
embeddings of an untrained network: what the network's shape gives without any training.
"""

import argparse
import os
import warnings
from pathlib import Path

import numpy as np
import rasterio
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from bocage.change import ChangeConfig, fit_measure, open_pair
from bocage.errors import BocageWarning
from bocage.learn.baselines import otsu
from bocage.learn.crossval import Target, cross_validate
from bocage.scoring.folds import make_folds
from bocage.scoring.location import predict_by_location

# Bands 1 to 5 and 7 of Landsat 7 are, nearly, B2 to B7 of Landsat 8, which the model knows.
AS_LANDSAT8 = ("B2", "B3", "B4", "B5", "B6", "B7")
DATES = {"2000TM": "2000-03-17", "2003TM": "2003-02-06"}


def read(path):
    with warnings.catch_warnings(), rasterio.open(path) as file:
        warnings.simplefilter("ignore")
        return file.read(), file.transform


def scores(yes, strength, threshold):
    guess = strength >= threshold
    auc = roc_auc_score(yes, strength)
    return auc, f1_score(yes, guess), cohen_kappa_score(yes, guess)


def embed_random(folder, name, patch_size):
    """Embeddings of an untrained nano for every pixel [D, h, w], one window at a time."""
    import bocage
    from bocage.sensors import SENSORS

    x, _ = read(folder / name)
    bands = SENSORS["landsat"].band_names
    values = np.full((1, len(bands), *x.shape[1:]), np.nan, np.float32)
    for i, band in enumerate(AS_LANDSAT8):
        values[0, bands.index(band)] = x[i]
    # DN of eight bits onto the spread that the model expects: each band to its mean and spread.
    for i, band in enumerate(SENSORS["landsat"].bands):
        layer = values[0, i]
        if np.isfinite(layer).any():
            standard = (layer - layer.mean()) / layer.std()
            values[0, i] = np.clip(band.mean + band.std * standard, 1, 65_535)
    model = bocage.load_model("olmoearth-v1.2-nano", weights=None)
    encode = model.window_encoder(patch_size=patch_size)
    year, month, day = (int(part) for part in DATES[name].split("-"))
    stamps = np.array([[[day, month - 1, year]]])
    side = 20 * patch_size
    rows, cols = x.shape[1:]
    out = np.empty((model.dims(), rows // patch_size, cols // patch_size), np.float32)
    for r in range(0, rows, side):
        for c in range(0, cols, side):
            window = values[None, :, :, r : r + side, c : c + side]
            cells = encode({"landsat": window}, stamps)[0]
            i, j = r // patch_size, c // patch_size
            out[:, i : i + cells.shape[0], j : j + cells.shape[1]] = np.moveaxis(cells, -1, 0)
    return out.repeat(patch_size, axis=1).repeat(patch_size, axis=2)


def supervised(x, yes, xy, kind, **options):
    """Scores of a logistic model of features x on folds, and of location alone."""
    target = Target(y=yes.astype(np.int64), task="classification", n_classes=2)
    folds = make_folds(kind, n_folds=5, labels=target.y, xy_m=xy, **options)
    found = cross_validate(x, target, folds, "logistic", balanced=True).scores[:, 1]
    by_place = predict_by_location(folds, target.y)
    place = (
        roc_auc_score(yes, by_place),
        f1_score(yes, by_place),
        cohen_kappa_score(yes, by_place),
    )
    return scores(yes, found, 0.5), place, folds.describe()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("BOCAGE_DATA", Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--patch-size", type=int, default=2)
    parser.add_argument("--block-m", type=float, default=1500.0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", BocageWarning)
    folder = Path(arguments.data) / "landsat_change_taizhou" / "Taizhou"
    changed, unchanged = (read(folder / f"{n}.bmp")[0][0] > 0 for n in ("change", "unchanged"))
    labelled = changed | unchanged
    yes = changed[labelled]
    rows = []
    pair = open_pair(folder / "2000TM", folder / "2003TM")
    everything = slice(0, 400), slice(0, 400)
    for method in ("magnitude", "cosine", "cva", "irmad"):
        measure = fit_measure(pair, ChangeConfig(method=method))
        strength = measure.apply(*pair.read(*everything))[0]
        cut = otsu(np.sqrt(strength)) ** 2 if method == "irmad" else otsu(strength)
        rows.append((f"{method} of the bands", "none", scores(yes, strength[labelled], cut)))
    before, after = pair.read(*everything)
    _, transform = read(folder / "2000TM")
    at = np.argwhere(labelled)
    xy = np.stack(
        [
            transform.c + (at[:, 1] + 0.5) * transform.a,
            transform.f + (at[:, 0] + 0.5) * transform.e,
        ],
        axis=1,
    )
    features = {"band difference": (after - before)[:, labelled].T}
    embedded = [embed_random(folder, n, arguments.patch_size) for n in DATES]
    strength = np.linalg.norm(embedded[1] - embedded[0], axis=0)
    rows.append(
        ("magnitude, random weights", "none", scores(yes, strength[labelled], otsu(strength)))
    )
    features["embedding difference, random weights"] = (embedded[1] - embedded[0])[:, labelled].T
    for kind, options in (("spatial", {"block_m": arguments.block_m}), ("random", {})):
        for name, columns in features.items():
            x = np.ascontiguousarray(columns, np.float32)
            found, place, about = supervised(x, yes, xy, kind, **options)
            rows.append((f"logistic, {name}", f"{kind} folds", found))
        rows.append(("location only (1-NN)", f"{kind} folds", place))
        print(about)
    print(f"{int(yes.sum())} changed, {int((~yes).sum())} unchanged pixels\n")
    print("| method | labels seen through | AUC | F1 | kappa |\n|---|---|--:|--:|--:|")
    for name, seen, (auc, f1, kappa) in rows:
        print(f"| {name} | {seen} | {auc:.3f} | {f1:.3f} | {kappa:.3f} |")


if __name__ == "__main__":
    main()
