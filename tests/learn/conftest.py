"""A small map of embeddings whose classes are known, and files of labels on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine

pytest.importorskip("geopandas", reason="labels need geopandas")
pytest.importorskip("sklearn", reason="probes need scikit-learn")

from bocage.embeddings import EmbeddingGrid, create_store, open_embeddings, write_shard

CRS = "EPSG:32632"
CELL_M = 40
ROWS, COLS, DIMS = 60, 80, 8
WEST, NORTH = 449_840, 4_800_160


def truth() -> np.ndarray:
    """Class of each cell: stripes of a kilometre, 0 or 1."""
    col = np.arange(COLS) * CELL_M // 1000
    return np.broadcast_to(col % 2, (ROWS, COLS)).copy()


def vectors(year: int) -> np.ndarray:
    """[D, rows, cols]; one dimension tells the class, the first three rows have no data."""
    rng = np.random.default_rng(year)
    x = rng.normal(0, 0.1, (DIMS, ROWS, COLS)).astype(np.float32)
    x[3] += 0.4 * truth()
    x[5] += (year - 2023) * 0.3
    x[:, :3] = np.nan
    return x


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("learn") / "map.zarr"
    grid = EmbeddingGrid(
        crs=CRS,
        transform=Affine(CELL_M, 0, WEST, 0, -CELL_M, NORTH),
        shape_yx=(ROWS, COLS),
        dims=DIMS,
        years=(2023, 2024),
        codec="float32",
        model="olmoearth-v1.2-nano",
        patch_size=4,
        shard_cells=128,
        attrs={"weights_id": "random:0"},
    )
    create_store(path, grid)
    for year in grid.years:
        write_shard(path, grid, year, 0, 0, vectors(year))
    return path


@pytest.fixture
def embeddings(store):
    return open_embeddings(store)


def center(row: float, col: float) -> tuple[float, float]:
    """Coordinates of the middle of a cell."""
    return WEST + (col + 0.5) * CELL_M, NORTH - (row + 0.5) * CELL_M


def points(n: int, seed: int = 0, first_row: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Distinct cells [n], row and column."""
    rng = np.random.default_rng(seed)
    cells = rng.choice((ROWS - first_row) * COLS, n, replace=False)
    return cells // COLS + first_row, cells % COLS


def frame(n: int = 200, seed: int = 0, **columns):
    """Points at cell centers with their class as "class"."""
    import geopandas

    row, col = points(n, seed)
    x, y = center(row, col)
    names = np.array(["land", "water"])[truth()[row, col]]
    table = {"class": names, **columns}
    return geopandas.GeoDataFrame(table, geometry=geopandas.points_from_xy(x, y), crs=CRS)


@pytest.fixture
def label_file(tmp_path) -> Path:
    path = tmp_path / "points.gpkg"
    frame(year=2024).to_file(path)
    return path
