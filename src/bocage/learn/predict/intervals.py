"""How large the areas of a map really are, from places whose true class is known.

The places are a sample that the user drew inside the map (`reference`), or else the cross-validated
confusion matrix that a probe keeps. The second is a sample of the map only if the labels were drawn
at random; labels clicked where things are easy to see give intervals that are too narrow.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageWarning, InputError
from bocage.learn.predict.legend import Legend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.learn.labels import Labels
    from bocage.scoring.areas import AreaEstimate


KEPT_PLACES = (
    "cross-validated labels of the probe: true of the map if these places were drawn at random in "
    "it, else of the probe only"
)


def estimate(
    scorer: Any,
    legend: Legend,
    km2: NDArray[np.float64],
    *,
    raster: Path,
    reference: Path | None,
    column: str | None = None,
) -> tuple[AreaEstimate | None, str]:
    """Areas of the classes with margins, and where the places came from; None where unknown.

    Args:
        scorer: A probe, which may keep a `confusion` [true class, predicted class].
        legend: Classes of the map.
        km2: Mapped area of each class [K].
        raster: The class map, on which reference places are looked up.
        reference: Labelled places with the map's classes, or None.
        column: Their column; see `read_reference`.
    """
    from bocage.scoring.areas import estimate_areas

    if reference is not None:
        counts = _look_up(raster, legend, read_reference(reference, scorer, legend, column))
        return estimate_areas(counts, km2, legend.names), str(reference)
    confusion = _kept_confusion(scorer, len(legend.classes))
    if confusion is None:
        return None, ""
    try:
        # The estimator wants map classes in rows, a confusion matrix has true ones there.
        found = estimate_areas(confusion.T, km2, legend.names)
    except InputError as error:
        warnings.warn(
            f"no confidence intervals of areas from the probe's labels: {error}",
            BocageWarning,
            stacklevel=2,
        )
        return None, ""
    return found, KEPT_PLACES


def interval_columns(found: AreaEstimate) -> dict[int, tuple[float, float, float]]:
    """Estimate, low and high in km2 by position of the class."""
    return {
        k: (float(a), max(0.0, float(a - m)), float(a + m))
        for k, (a, m) in enumerate(zip(found.area, found.area_margin, strict=True))
    }


def _kept_confusion(scorer: Any, k: int) -> NDArray[np.int64] | None:
    kept = getattr(scorer, "confusion", None)
    if kept is None:
        return None
    matrix = np.asarray(kept)
    return matrix.astype(np.int64) if matrix.shape == (k, k) else None


def read_reference(reference: Path, scorer: Any, legend: Legend, column: str | None) -> Labels:
    """Places with the classes of a map; InputError for classes that it does not have.

    Without a column that of the probe's own labels is taken where the file has it, else the only
    one.
    """
    from bocage.learn.label_file import column_names
    from bocage.learn.labels import read_labels

    usual = str(getattr(scorer, "target", ""))
    if column is None and usual and usual in column_names(reference):
        column = usual
    labels = read_labels(reference, column=column, option="--reference-label")
    if labels.task != "classification":
        raise InputError(
            got=f"{reference} with {labels.target} as {labels.task}",
            expected="places with one class each",
            fix=f"give them a column of classes: {', '.join(legend.names[:6])}",
        )
    own = _positions(legend)
    unknown = [c.name for c in labels.classes if c.name not in own]
    if unknown:
        raise InputError(
            got=f"the class {', '.join(unknown)} in {reference}",
            expected=f"classes of the map: {', '.join(legend.names)}",
            fix="use the map's names or values",
        )
    return labels


def _positions(legend: Legend) -> dict[str, int]:
    """Where in the legend a class stands, by its value and by its name."""
    values = {str(c.value): i for i, c in enumerate(legend.classes)}
    return {**values, **{c.name: i for i, c in enumerate(legend.classes)}}


def _look_up(raster: Path, legend: Legend, labels: Labels) -> NDArray[np.int64]:
    """Places by map class and true class [K, K]."""
    from bocage.learn.sample import sample

    found = sample(labels, class_raster(raster))
    own = _positions(legend)
    names = [c.name for c in found.classes]
    true = np.array([own[n] for n in names])[found.y]
    mapped = np.searchsorted(np.sort(legend.values), found.x[:, 0])
    mapped = np.argsort(legend.values)[mapped]
    counts = np.zeros((len(legend.classes), len(legend.classes)), np.int64)
    np.add.at(counts, (mapped, true), 1)
    return counts


def class_raster(path: Path) -> Any:
    """A class map as a raster that labels can be laid on; nodata is NaN."""
    import rasterio
    from rasterio.windows import Window

    from bocage.geo import Grid
    from bocage.imagery.rasters import crs_name
    from bocage.learn.raster import Raster

    with rasterio.open(path) as file:
        grid = Grid(crs=crs_name(file.crs), transform=file.transform, shape_yx=file.shape)

    def read(_year: int, rows: slice, cols: slice) -> NDArray[np.float32]:
        with rasterio.open(path) as file:
            codes = file.read(1, window=Window.from_slices(rows, cols), masked=True)
        return np.ma.filled(codes.astype(np.float32), np.nan)[None]

    return Raster(read=read, grid=grid, features=("class",), years=(0,))
