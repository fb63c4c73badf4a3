"""Score `bocage-nano` on EuroSAT patches it never saw, beside random weights, raw bands and PCA.

    python bench/bocage_nano_score.py DATA [--model bocage-nano] [--out scores.json]

kNN (k = 5, cosine), linear probe (C chosen inside the training folds) and retrieval of the same
class (precision at 10, self excluded), on folds of whole 50 km blocks. All features are
standardized with the training folds' moments. Intervals are 95 % bootstrap intervals over blocks;
the differences are paired.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import rasterio
from rasterio.warp import transform

from bocage.scoring.folds import make_folds
from bocage.scoring.paired import bootstrap_interval
from bocage.scoring.scores import knn_cosine, linear_probe

EUROSAT = [*(f"B{n:02}" for n in range(1, 13)), "B8A"]
MODEL = ["B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"]


def read(folder):
    """Pixels [N, H, W, 12] in the models' order, classes [N], degrees [N, 2]."""
    x, y, lonlat = [], [], []
    for label, name in enumerate(sorted(p.name for p in folder.iterdir())):
        for path in sorted((folder / name).glob("*.tif")):
            with rasterio.open(path) as file:
                pixels = file.read([EUROSAT.index(band) + 1 for band in MODEL])
                bounds, crs = file.bounds, file.crs
            middle = [(bounds.left + bounds.right) / 2], [(bounds.bottom + bounds.top) / 2]
            lon, lat = transform(crs, "EPSG:4326", *middle)
            x.append(pixels.transpose(1, 2, 0).astype(np.float32))
            y.append(label)
            lonlat.append((lon[0], lat[0]))
    return np.stack(x), np.array(y), np.array(lonlat)


def model_tokens(model, x, patch_size):
    """Pooled tokens [N, h w, D]; the dates of the patches are unknown, July stands for them."""
    found = []
    for start in range(0, len(x), 20):
        part = x[start : start + 20, :, :, None]
        stamps = np.array([[[1, 6, 2020]]] * len(part))
        encoded = model.encode(
            {"sentinel2_l2a": part}, stamps, patch_size=patch_size, check_units=False
        )
        found.append(np.asarray(encoded.pooled()).reshape(len(part), -1, model.dims("pooled")))
    return np.concatenate(found)


def patch_components(x, patch_size, n_components):
    """Principal components of raw patches [N, h w, n], fitted on all patches without labels."""
    n, height, width, bands = x.shape
    p = patch_size
    patches = x.reshape(n, height // p, p, width // p, p, bands).transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(n, -1, p * p * bands)
    flat = patches.reshape(-1, p * p * bands)
    mean = flat.mean(0)
    _, _, axes = np.linalg.svd(flat[::3] - mean, full_matrices=False)
    return (patches - mean) @ axes[:n_components].T


def features(x, models):
    """Everything that is compared, by name; "mean" and "mean, std" over a patch's cells."""
    flat = x.reshape(len(x), -1, x.shape[-1])
    percentiles = np.percentile(flat, [10, 25, 50, 75, 90], axis=1)
    yield "bands: mean", flat.mean(1)
    yield "bands: mean, std", spread(flat)
    yield "bands: mean, std, percentiles", np.concatenate([spread(flat), *percentiles], 1)
    yield "PCA-64 of 4 px patches: mean, std", spread(patch_components(x, 4, 64))
    for name, model in models.items():
        tokens = model_tokens(model, x, 4)
        yield f"{name}: mean", tokens.mean(1)
        yield f"{name}: mean, std", spread(tokens)


def spread(tokens):
    return np.concatenate([tokens.mean(1), tokens.std(1)], 1)


def hits(x, y, folds):
    """Right or wrong of each sample for both classifiers, and the share of its class among ten."""
    knn, linear = np.zeros(len(y)), np.zeros(len(y))
    for fold in range(folds.n_folds):
        train, test = folds.fold != fold, folds.fold == fold
        mean, std = x[train].mean(0), x[train].std(0) + 1e-9
        known, asked = ((part - mean) / std for part in (x[train], x[test]))
        knn[test] = knn_cosine(known, y[train], asked) == y[test]
        block = folds.block[train]
        linear[test] = linear_probe(known, y[train], asked, block=block) == y[test]
    z = (x - x.mean(0)) / (x.std(0) + 1e-9)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    cosine = z @ z.T
    np.fill_diagonal(cosine, -2)
    nearest = np.argsort(-cosine, axis=1)[:, :10]
    return {"knn": knn, "linear": linear, "retrieval": (y[nearest] == y[:, None]).mean(1)}


def main():
    import bocage

    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="bocage-nano")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    x, y, lonlat = read(arguments.data / "eurosat_ms_200")
    folds = make_folds("spatial", labels=y, lonlat=lonlat, n_folds=5, block_m=50_000)
    models = {
        "random weights": bocage.load_model("olmoearth-v1.2-nano", weights=None),
        arguments.model: bocage.load_model(arguments.model),
    }
    rows, all_hits = [], {}
    print(f"{folds.describe()}\n")
    print("| features | dims | kNN | linear probe | retrieval |\n|---|--:|--:|--:|--:|")
    for name, values in features(x, models):
        found = all_hits[name] = hits(values.astype(np.float32), y, folds)
        row = {"features": name, "dims": values.shape[1]}
        for score, hit in found.items():
            low, high = bootstrap_interval(hit, block=folds.block)
            row[score] = {"value": float(hit.mean()), "low": low, "high": high}
        rows.append(row)
        cells = (f"{row[s]['value']:.3f} ({row[s]['low']:.3f}-{row[s]['high']:.3f})" for s in found)
        print(f"| {name} | {row['dims']} | {' | '.join(cells)} |", flush=True)
    print("\n| against | kNN | linear probe | retrieval |\n|---|--:|--:|--:|")
    differences = []
    for ours in (name for name in all_hits if name.startswith(arguments.model)):
        for other in (name for name in all_hits if not name.startswith(arguments.model)):
            row = {"of": ours, "against": other}
            for score in all_hits[ours]:
                gain = all_hits[ours][score] - all_hits[other][score]
                low, high = bootstrap_interval(gain, block=folds.block)
                row[score] = {"value": float(gain.mean()), "low": low, "high": high}
            differences.append(row)
            cells = (
                f"{row[s]['value']:+.3f} ({row[s]['low']:+.3f} to {row[s]['high']:+.3f})"
                for s in all_hits[ours]
            )
            print(f"| {ours} - {other} | {' | '.join(cells)} |")
    if arguments.out:
        content = {"scores": rows, "differences": differences}
        arguments.out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
