"""Two times to a map of change: fit what has to be fitted, then one pass over the map."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.change.clicked import fit_clicked
from bocage.change.components import fit_components
from bocage.change.config import METHODS, ChangeConfig
from bocage.change.cva import fit_change_vectors
from bocage.change.irmad import fit_pair
from bocage.change.measure import Cosine, Difference, Magnitude, Measure
from bocage.change.moments import n_pieces
from bocage.change.outputs import write_outputs
from bocage.change.pair import Pair, open_pair
from bocage.change.result import ChangeResult
from bocage.errors import ConfigError, StoreError
from bocage.learn.predict import record
from bocage.progress import progress

if TYPE_CHECKING:
    import xarray as xr

    from bocage.learn.raster import Raster
    from bocage.types import PathLike


def map_change(
    before: PathLike | xr.DataArray | xr.Dataset | Raster,
    after: PathLike | xr.DataArray | xr.Dataset | Raster | None = None,
    *,
    out: PathLike,
    years: tuple[int, int] | None = None,
    config: ChangeConfig | None = None,
    request: dict[str, Any] | None = None,
    report: Callable[[str], None] | None = None,
    show_progress: bool = False,
    **options: Any,
) -> ChangeResult:
    """Map what changed between two times.

    Args:
        before: Embeddings (a store or a GeoTIFF), a scene, or any raster of bands; see `open_pair`.
        after: The same, later; None for two years of `before`.
        out: NAME.tif: band 1 is the strength of change, NaN (or -128 in int8) where either time
            has no data. NAME.binary.tif, areas, style, picture, the fitted arrays (NAME.npz),
            run.json and a STAC item lie beside it.
        years: Which years of the embeddings.
        config: All options together, or singly as keywords; see `ChangeConfig`.
        request: What the user typed, for the record.
        report: Called with the printed plan before the work starts.
        show_progress: Draw a progress display on standard error.
        **options: Fields of `ChangeConfig`.

    Raises:
        InputError: Grids, models or bands that do not fit; no overlap; nothing but nodata.
        ConfigError: Options that do not fit each other or the inputs.
        StoreError: `out` holds another map, or cannot be written.
    """
    if config is not None and options:
        raise ConfigError(
            got=f"config= and also {', '.join(options)}",
            expected="one of the two",
            fix="put the options into ChangeConfig",
        )
    config = config or ChangeConfig(**options)
    out = Path(out)
    if out.suffix.lower() not in {".tif", ".tiff"}:
        raise ConfigError(
            got=f"--out {out}",
            expected="a name that ends in .tif",
            fix=f"use --out {out.with_suffix('.tif')}",
        )
    pair = open_pair(before, after, years=years)
    config.check_kind(pair.is_embeddings)
    identity = _identity(pair, config)
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    if _is_finished(out, fingerprint):
        return ChangeResult(path=out, files=(out,))
    if report is not None:
        report(describe_pair(pair, config))
    start = time.perf_counter()
    measure = fit_measure(pair, config, show_progress=show_progress)
    tags = {
        "BOCAGE_RUN": fingerprint,
        "METHOD": config.method,
        "BEFORE": pair.names[0],
        "AFTER": pair.names[1],
    }
    found = write_outputs(pair, measure, out, config, tags=tags, show_progress=show_progress)
    item = record.write_item(
        out,
        pair.grid,
        list(found.files),
        year=pair.years[1],
        title=f"change from {pair.names[0]} to {pair.names[1]}",
        properties={"bocage:method": config.method},
    )
    run = record.write(
        out,
        identity,
        fingerprint=fingerprint,
        request=request,
        threshold=found.threshold,
        fit=measure.facts(),
        valid_fraction=found.valid_fraction,
        areas=found.table,
    )
    found.files = (*found.files, item, run)
    found.wall_s = time.perf_counter() - start
    return found


def describe_pair(pair: Pair, config: ChangeConfig) -> str:
    """What will be compared, as a person reads it."""
    rows, cols = pair.grid.shape_yx
    years = " to ".join(str(y) if y else "unknown year" for y in pair.years)
    kind = "dims" if pair.is_embeddings else "bands"
    return "\n".join(
        [
            f"before   {pair.names[0]}",
            f"after    {pair.names[1]}",
            f"shared   {cols} x {rows} cells of {pair.grid.resolution:g}, {len(pair.features)} "
            f"{kind}, {years}",
            f"method   {config.method}: {METHODS[config.method]}",
        ]
    )


def fit_measure(pair: Pair, config: ChangeConfig, *, show_progress: bool = False) -> Measure:
    """The measure of a method, fitted on a pair where it has to be."""
    simple: dict[str, Measure] = {
        "magnitude": Magnitude(),
        "cosine": Cosine(),
        "difference": Difference(features=pair.features),
    }
    if config.method in simple:
        return simple[config.method]
    if config.labels is not None:
        return fit_clicked(pair, config.labels, column=config.label_column)
    with progress("fitting", n_pieces(pair), unit="blocks", enabled=show_progress) as advance:
        if config.method == "pca":
            return fit_components(pair, min(config.components, len(pair.features)), advance)
        if config.method == "cva":
            return fit_change_vectors(pair, advance)
        return fit_pair(pair, advance)


def _identity(pair: Pair, config: ChangeConfig) -> dict[str, Any]:
    options = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    if config.labels is not None:
        options["labels_sha256"] = hashlib.sha256(Path(config.labels).read_bytes()).hexdigest()
    return {
        "inputs": list(pair.names),
        "years": list(pair.years),
        "features": len(pair.features),
        "fingerprint_after": str(pair.attrs.get("fingerprint", "")),
        "crs": pair.grid.crs,
        "transform": [float(v) for v in tuple(pair.grid.transform)[:6]],
        "shape_yx": list(pair.grid.shape_yx),
        "options": options,
    }


def _is_finished(out: Path, fingerprint: str) -> bool:
    if not out.exists():
        return False
    found = record.read(out)
    if found is not None and found.get("fingerprint") == fingerprint:
        return True
    import rasterio

    with rasterio.open(out) as file:
        if found is None and file.tags().get("BOCAGE_RUN") == fingerprint:
            return False  # killed between the raster and its record
    raise StoreError(
        got=f"{out}, which exists and was made otherwise",
        expected="a new path, or the same inputs and options",
        fix="choose another --out, or delete the file",
    )
