"""Small embeddings, and probes whose answer is known without them."""

import numpy as np
import pytest
from affine import Affine

from bocage.embeddings import EmbeddingGrid, create_store, write_shard

CLASSES = (
    {"value": 3, "name": "water", "color": "#1f78b4"},
    {"value": 7, "name": "forest", "color": "#33a02c"},
    {"value": 10, "name": "town & road", "color": "#e31a1c"},
)


class Softmax:
    """Scores are a softmax of x @ weights: a linear probe written in two lines."""

    task = "classification"
    classes = CLASSES

    def __init__(self, dims, seed=0, **embedding):
        k = len(self.classes)
        self.weights = np.random.default_rng(seed).normal(0, 1, (dims, k)).astype(np.float32)
        self.embedding = {"dims": dims, **embedding}

    def predict_proba(self, x):
        z = x @ self.weights
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return (e / e.sum(axis=1, keepdims=True)).astype(np.float32)


class Sigmoid(Softmax):
    task = "multilabel"

    def predict_proba(self, x):
        return (1 / (1 + np.exp(-(x @ self.weights)))).astype(np.float32)


class Slope(Softmax):
    task = "regression"
    classes = ()

    def __init__(self, dims, **embedding):
        self.weights = np.linspace(-1, 1, dims, dtype=np.float32)
        self.embedding = {"dims": dims, **embedding}

    def predict(self, x):
        return x @ self.weights


def smooth(dims, shape_yx, seed=0):
    """Gradients with sharp fields, and a hole of nodata."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[: shape_yx[0], : shape_yx[1]]
    fields = rng.normal(0, 1, (dims, shape_yx[0] // 19 + 1, shape_yx[1] // 23 + 1))
    x = fields[:, rows // 19, cols // 23] + rng.normal(0, 0.1, (dims, *shape_yx))
    x[:, 5:17, 8:31] = np.nan
    x[:, :, -2:] = np.nan
    return x.astype(np.float32)


def write_embeddings(path, x, *, years=(2024,), **changes):
    """A float32 store that holds x in every year."""
    options = {
        "crs": "EPSG:32618",
        "transform": Affine(40, 0, 500_000, 0, -40, 4_500_000),
        "codec": "float32",
        "model": "olmoearth-v1.2-tiny",
        "patch_size": 4,
        "shard_cells": 128,
        "attrs": {"weights_id": "random:0"},
    } | changes
    grid = EmbeddingGrid(shape_yx=x.shape[1:], dims=x.shape[0], years=years, **options)
    create_store(path, grid)
    side = grid.shard_cells
    for n, year in enumerate(years):
        for i, j in np.ndindex(*grid.shards_yx):
            part = x[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
            write_shard(path, grid, year, i, j, part * (1 - 2 * (n % 2)))
    return path


@pytest.fixture
def x():
    return smooth(6, (611, 547))


@pytest.fixture
def embeddings(tmp_path, x):
    return write_embeddings(tmp_path / "emb.zarr", x)
