"""Two times to a map of change: fit what has to be fitted, then one pass over the map."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.change.clicked import fit_clicked
from bocage.change.components import Components, fit_components
from bocage.change.config import METHODS, ChangeConfig
from bocage.change.cva import ChangeVectors, fit_change_vectors
from bocage.change.irmad import Mad, fit_pair
from bocage.change.measure import Cosine, Difference, Magnitude, Measure
from bocage.change.moments import n_pieces, side_cells
from bocage.change.outputs import save_arrays, write_outputs
from bocage.change.pair import Pair, open_pair
from bocage.change.result import ChangeResult
from bocage.embeddings.open import open_raster
from bocage.errors import ConfigError, InputError
from bocage.learn.predict import record
from bocage.learn.predict.blocks import BlockJob, write_blocks
from bocage.learn.predict.lock import alone
from bocage.learn.predict.target import check_target, in_the_way, is_ours
from bocage.memory import share_one_arena
from bocage.progress import format_duration, progress

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
    """Map what changed between two times; run again after a crash to go on.

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
    out = check_target(Path(out), [before, after])
    share_one_arena()
    pair = open_pair(before, after, years=years)
    config.check_kind(pair.is_embeddings)
    identity = _identity(pair, config)
    with alone(out):
        return _map_alone(pair, identity, out, config, request, report, show_progress)


def _map_alone(  # noqa: PLR0917 - what one run consists of
    pair: Pair,
    identity: dict[str, Any],
    out: Path,
    config: ChangeConfig,
    request: dict[str, Any] | None,
    report: Callable[[str], None] | None,
    show_progress: bool,
) -> ChangeResult:
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    store, fit = (out.with_name(f"{out.stem}.{what}") for what in ("strengths.zarr", "fit.npz"))
    if _is_finished(out, fingerprint):
        _remove(store, fit)
        return ChangeResult(path=out, files=(out,))
    if report is not None:
        report(describe_pair(pair, config))
    start = time.perf_counter()
    measure = _kept_fit(fit, fingerprint, config.method)
    if measure is None:
        measure = fit_measure(pair, config, show_progress=show_progress)
        save_arrays(fit, {**measure.arrays(), "fingerprint": np.array(fingerprint)})
    job = strength_job(pair, measure, store, identity)
    n_kept = write_blocks(job, show_progress=show_progress)
    if n_kept and report is not None:
        report(f"resume   {n_kept} block(s) were measured before")
    tags = {
        "BOCAGE_RUN": fingerprint,
        "METHOD": config.method,
        "BEFORE": pair.names[0],
        "AFTER": pair.names[1],
    }
    try:
        found = write_outputs(
            open_raster(store), measure, out, config, tags=tags, show_progress=show_progress
        )
    except InputError:
        _remove(store, fit)  # nothing to go on with
        raise
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
    _remove(store, fit)
    found.files = (*found.files, item, run)
    found.wall_s = time.perf_counter() - start
    return found


def strength_job(pair: Pair, measure: Measure, store: Path, identity: dict[str, Any]) -> BlockJob:
    """Every cell of a pair, measured block by block."""
    return BlockJob(
        title="measuring",
        read=lambda _year, rows, cols: pair.read(rows, cols),
        make=lambda values: measure.apply(*values),
        grid=pair.grid,
        years=(pair.years[1],),
        n_bands=len(measure.bands),
        piece_cells=side_cells(pair),
        store=store,
        identity=identity,
    )


def _kept_fit(path: Path, fingerprint: str, method: str) -> Measure | None:
    """What a killed run fitted; a logistic model is fitted again, for the report of its scores."""
    if method not in _FITTED or not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if str(arrays.pop("fingerprint")) != fingerprint:
        return None
    return _FITTED[method].of(arrays)


_FITTED: dict[str, type[Components | ChangeVectors | Mad]] = {
    "pca": Components,
    "cva": ChangeVectors,
    "irmad": Mad,
}


def _remove(store: Path, fit: Path) -> None:
    """What only an unfinished run needs."""
    if store.exists():
        shutil.rmtree(store)
    fit.unlink(missing_ok=True)


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
            f"time     about {format_duration(_reading_s(pair, config))} of reading here, and as "
            "much again at most",
        ]
    )


def _reading_s(pair: Pair, config: ChangeConfig) -> float:
    """Seconds to read both times as often as the method has to, from one rectangle."""
    side = side_cells(pair)
    rows, cols = (slice(n // 2, min(n // 2 + side, n)) for n in pair.grid.shape_yx)
    start = time.perf_counter()
    pair.read(rows, cols)
    seconds = time.perf_counter() - start
    n_cells = (rows.stop - rows.start) * (cols.stop - cols.start)
    n_passes = 2 if config.method in _FITTED else 1
    return seconds * n_passes * pair.grid.shape_yx[0] * pair.grid.shape_yx[1] / n_cells


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
        "contents": list(pair.contents),
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
    if found is None and is_ours(out, fingerprint):
        return False  # killed between the raster and its record
    raise in_the_way(out)
