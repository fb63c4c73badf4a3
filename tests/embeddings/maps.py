"""Small maps that several tests of this room write and read."""

from __future__ import annotations

import numpy as np
from affine import Affine

from bocage.embeddings import EmbeddingGrid, create_store, write_shard


def smooth_map(dims: int, shape_yx: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Fields with sharp borders and slow gradients, as embeddings of a landscape have."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[: shape_yx[0], : shape_yx[1]].astype(np.float32)
    fields = (rows // 23).astype(int) * 7 + (cols // 31).astype(int)
    # A few directions carry most of the variance, so that principal components are well defined.
    latent = rng.normal(0, 1, (fields.max() + 1, 6)) * 0.5 ** np.arange(6)
    prototypes = (latent @ rng.normal(0, 0.2, (6, dims))).astype(np.float32)
    x = np.moveaxis(prototypes[fields], -1, 0)
    slope = rng.normal(0, 0.05, (dims, 2)).astype(np.float32)
    x = x + slope[:, :1, None] * rows / shape_yx[0] + slope[:, 1:, None] * cols / shape_yx[1]
    x = x + rng.normal(0, 0.02, x.shape).astype(np.float32)
    x[:, 40:57, 10:29] = np.nan
    x[:, :, -3:] = np.nan
    return np.ascontiguousarray(x, np.float32)


def write_map(path, x: np.ndarray, **changes):
    """A store of one year that holds x."""
    options = {
        "crs": "EPSG:32618",
        "transform": Affine(40, 0, 500_000, 0, -40, 4_500_000),
        "shape_yx": x.shape[1:],
        "dims": x.shape[0],
        "years": (2024,),
        "model": "olmoearth-v1.2-tiny",
        "shard_cells": 128,
        "patch_size": 4,
        "sensors": ("sentinel2_l2a",),
        "attrs": {"dates": "known", "weights_id": "random:0"},
    } | changes
    grid = EmbeddingGrid(**options)
    create_store(path, grid)
    for year in grid.years:
        for row in range(grid.shards_yx[0]):
            for col in range(grid.shards_yx[1]):
                h, w = grid.shard_shape(row, col)
                r, c = row * grid.shard_cells, col * grid.shard_cells
                write_shard(path, grid, year, row, col, x[:, r : r + h, c : c + w])
    return path


def decode(q):
    """The published rule, spelled out: sign(q) (|q| / 127.5)^2 and -128 is nodata."""
    q = np.asarray(q, np.float64)
    return np.where(q == -128, np.nan, np.sign(q) * (np.abs(q) / 127.5) ** 2)
