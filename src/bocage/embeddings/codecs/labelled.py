"""Samples of embeddings, with labels and places where there are any, from the files people have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs.codec import valid_rows
from bocage.embeddings.codecs.tables import embedding_column_of, import_pyarrow, vectors_of
from bocage.errors import InputError, SourceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray, PathLike


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Vectors to judge codecs by."""

    x: FloatArray
    labels: NDArray[Any] | None = None
    lonlat: NDArray[np.float64] | None = None


def read_sample(
    source: PathLike,
    *,
    label_column: str | None = None,
    embedding_column: str = "embedding",
    n_rows: int = 50_000,
    seed: int = 0,
) -> Sample:
    """Read at most `n_rows` vectors of GeoParquet, .npz (x, labels, lonlat), or a grid.

    Places are taken from the geometry of GeoParquet, or from `lonlat`; a grid has no labels.
    """
    path = Path(source)
    if path.suffix == ".npz":
        return _of_npz(path, needs_labels=label_column is not None)
    if path.suffix in (".parquet", ".geoparquet", ".gpq"):
        return _of_table(path, label_column, embedding_column, n_rows, seed)
    if label_column is not None:
        raise InputError(
            got=f"labels asked of {path.name}",
            expected="GeoParquet with a column of labels, or .npz with x and labels",
            fix="sample the grid at labelled places first",
        )
    return Sample(x=_of_grid(path, n_rows, seed))


def _of_npz(path: Path, *, needs_labels: bool) -> Sample:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise SourceError(
            got=f"{path} ({error})", expected="an .npz file", fix="check the path"
        ) from error
    missing = {"x", *(["labels"] if needs_labels else [])} - set(arrays)
    if missing:
        raise InputError(
            got=f"{path} with arrays {', '.join(arrays)}",
            expected=f"an array {min(missing)!r}",
            fix="np.savez(path, x=vectors, labels=labels, lonlat=places)",
        )
    return Sample(x=arrays["x"], labels=arrays.get("labels"), lonlat=arrays.get("lonlat"))


def _of_table(path: Path, label_column: str | None, column: str, n_rows: int, seed: int) -> Sample:
    pyarrow = import_pyarrow()
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise SourceError(
            got=f"{path}, which is not readable Parquet ({error})",
            expected="a table of embeddings",
            fix="check the path",
        ) from error
    column = embedding_column_of(table.column_names, column)
    for name in (column, *([label_column] if label_column else [])):
        if name not in table.column_names:
            raise InputError(
                got=f"{path} with columns {', '.join(table.column_names)}",
                expected=f"column {name!r}",
                fix="name it with --embedding-column or --label-column",
            )
    if len(table) > n_rows:
        chosen = np.random.default_rng(seed).choice(len(table), n_rows, replace=False)
        table = table.take(pyarrow.array(np.sort(chosen)))
    labels = None
    if label_column is not None:
        labels = np.asarray([str(v) for v in table[label_column].to_pylist()])
    return Sample(
        x=vectors_of(table[column], where=str(path)), labels=labels, lonlat=_places(table)
    )


def _places(table: Any) -> NDArray[np.float64] | None:
    stored = (table.schema.metadata or {}).get(b"geo")
    if stored is None:
        return None
    import shapely
    from pyproj import CRS, Transformer

    geo = json.loads(stored)
    name = geo["primary_column"]
    crs = geo["columns"][name].get("crs", "OGC:CRS84")
    centers = shapely.centroid(shapely.from_wkb(table[name].to_numpy()))
    x, y = shapely.get_x(centers), shapely.get_y(centers)
    if crs is not None:
        known = CRS.from_user_input(json.dumps(crs) if isinstance(crs, dict) else crs)
        x, y = Transformer.from_crs(known, "OGC:CRS84", always_xy=True).transform(x, y)
    return np.stack([x, y], axis=1)


def _of_grid(path: Path, n_rows: int, seed: int) -> FloatArray:
    from bocage.embeddings.open import open_raster

    raster = open_raster(path)
    years, dims, n_y, n_x = raster.shape
    rng = np.random.default_rng(seed)
    parts: list[FloatArray] = []
    n_found = 0
    # Squares of 64 cells anywhere: a sample of one chunk would be one landscape.
    for _ in range(400):
        row = int(rng.integers(0, max(1, n_y - 63)))
        col = int(rng.integers(0, max(1, n_x - 63)))
        block = raster[int(rng.integers(years)), :, row : row + 64, col : col + 64]
        x = np.ascontiguousarray(block.reshape(dims, -1).T)
        x = x[valid_rows(x)]
        take = min(len(x), max(256, n_rows // 50))
        parts.append(x[rng.choice(len(x), take, replace=False)])
        n_found += take
        if n_found >= n_rows:
            break
    return np.unique(np.concatenate(parts), axis=0)
