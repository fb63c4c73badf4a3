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

    from bocage.scoring.areas import AreaEstimate


KEPT_PLACES = (
    "cross-validated labels of the probe: true of the map if these places were drawn at random in "
    "it, else of the probe only"
)


def estimate(
    scorer: Any, legend: Legend, km2: NDArray[np.float64], *, raster: Path, reference: Path | None
) -> tuple[AreaEstimate | None, str]:
    """Areas of the classes with margins, and where the places came from; None where unknown.

    Args:
        scorer: A probe, which may keep a `confusion` [true class, predicted class].
        legend: Classes of the map.
        km2: Mapped area of each class [K].
        raster: The class map, on which reference places are looked up.
        reference: Labelled places with the map's classes, or None.
    """
    from bocage.scoring.areas import estimate_areas

    if reference is not None:
        counts = _look_up(raster, legend, reference)
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


def _look_up(raster: Path, legend: Legend, reference: Path) -> NDArray[np.int64]:
    """Places by map class and true class [K, K]."""
    from bocage.learn.labels import read_labels
    from bocage.learn.sample import sample

    labels = read_labels(reference)
    if labels.task != "classification":
        raise InputError(
            got=f"{reference} with {labels.target} as {labels.task}",
            expected="places with one class each",
            fix=f"give them a column of classes: {', '.join(legend.names[:6])}",
        )
    found = sample(labels, class_raster(raster))
    names = [c.name for c in found.classes]
    values = {str(c.value): i for i, c in enumerate(legend.classes)}
    own = {**values, **{c.name: i for i, c in enumerate(legend.classes)}}
    unknown = [n for n in names if n not in own]
    if unknown:
        raise InputError(
            got=f"the class {', '.join(unknown)} in {reference}",
            expected=f"classes of the map: {', '.join(legend.names)}",
            fix="use the map's names or values",
        )
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
