"""Fit a probe and say how good it is, beside what anybody could have had without it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.learn.baselines import (
    on_cells,
    otsu,
    predict_by_threshold,
    predict_most_frequent,
    spectral_indices,
    usable_columns,
)
from bocage.learn.cells import Cells
from bocage.learn.crossval import Choice, Target, choose, cross_validate, fit_choice
from bocage.learn.fit import METHODS, check_method
from bocage.learn.judge import Judge
from bocage.learn.probe import Probe, fitted_on
from bocage.learn.raster import embeddings_grid, raster_of
from bocage.learn.report import ProbeReport, Row
from bocage.learn.sample import Samples, read_features, sample
from bocage.scoring.folds import Folds, make_folds
from bocage.scoring.location import check_leakage

if TYPE_CHECKING:
    import xarray as xr

    from bocage.learn.labels import Labels
    from bocage.learn.mask import Mask
    from bocage.types import FloatArray

Kind = Literal["random", "spatial", "leave_one_block_out", "group", "time"]

DEFAULT_METHOD: dict[str, str] = {
    "classification": "logistic",
    "multilabel": "logistic",
    "regression": "ridge",
}

HEADLINE = {"classification": "accuracy", "multilabel": "f1_macro", "regression": "r2"}
"""The score that stands first."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How a probe is fitted and examined."""

    methods: tuple[str, ...] = ()
    """Names of METHODS; the first one is kept. By default logistic regression, or ridge."""

    folds: Kind = "spatial"
    """How samples are split; see `make_folds`."""

    n_folds: int = 5
    block_m: float | None = None
    """Side of the blocks of spatial folds; by default the autocorrelation range of the labels."""

    buffer_m: float | None = None
    """Training samples this near to a test sample are left out."""

    balanced: bool = False
    """Classes weigh the same, however many samples they have."""

    compare_random: bool = True
    """Score random folds too, to show how much nearness flatters."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(
                got=f"seed {self.seed}", expected="a whole number from 0", fix="use --seed 0"
            )
        unknown = [m for m in self.methods if m not in METHODS]
        if unknown:
            raise ConfigError(
                got=f"method {unknown[0]!r}",
                expected=f"one of {', '.join(METHODS)}",
                fix="check --method",
            )


def fit_probe(
    labels: Labels | Mask,
    embeddings: xr.DataArray,
    *,
    stack: xr.Dataset | None = None,
    config: ProbeConfig | None = None,
    year: int | None = None,
    min_share: float | None = None,
    max_samples: int | None = None,
) -> tuple[Probe, ProbeReport]:
    """Fit a probe on labelled embeddings, and score it on folds it has not seen.

    Args:
        labels: From `read_labels` or `read_mask`.
        embeddings: From `open_embeddings`.
        stack: The imagery behind them: its bands and their indices are then scored beside.
        config: Method and folds.
        year: The year of the embeddings, if the labels do not say it.
        min_share: See `sample`.
        max_samples: See `sample`.
    """
    config = config or ProbeConfig()
    samples = sample(
        labels,
        embeddings,
        year=year,
        min_share=min_share,
        max_samples=max_samples,
        seed=config.seed,
    )
    bands = None if stack is None else _bands(samples, embeddings, stack)
    return examine(samples, config=config, bands=bands, about=labels.describe())


@dataclass(frozen=True, kw_only=True)
class Bands:
    """The imagery of the samples' cells."""

    x: FloatArray
    """[n, C]; NaN where there is none."""

    names: tuple[str, ...]


def examine(
    samples: Samples,
    *,
    config: ProbeConfig | None = None,
    bands: Bands | None = None,
    about: str = "",
) -> tuple[Probe, ProbeReport]:
    """The same for samples that are there already."""
    config = config or ProbeConfig()
    methods = config.methods or (DEFAULT_METHOD[samples.task],)
    for method in methods:
        check_method(method, samples.task)
    samples = _known_classes(samples)
    target = Target(y=samples.y, task=samples.task, n_classes=len(samples.classes))
    folds = make_sample_folds(samples, config)
    judge = Judge(samples=samples, target=target, folds=folds)
    rows: list[Row] = []
    choices: tuple[Choice, ...] = ()
    for method in methods:
        found = cross_validate(
            samples.x, target, folds, method, balanced=config.balanced, seed=config.seed
        )
        rows.append(judge.row(METHODS[method].title, found.scores))
        if method == methods[0]:
            first, choices = found, found.choices
    leakage = None
    if folds.places is not None:
        tested = folds.fold >= 0
        predicted = samples.y.copy()
        predicted[tested] = target.predicted(first.scores[tested])
        leakage = check_leakage(folds, samples.y, predicted, seed=config.seed)
        rows.append(judge.row("location only: the nearest labelled neighbor", judge.by_location()))
    rows += _baselines(judge, bands, config)
    if config.compare_random and config.folds != "random":
        rows += _random(samples, target, methods[0], config)
    probe = _final(samples, target, folds, methods[0], config)
    scores = {name: value.value for name, value in rows[0].scores.values.items()}
    matrix = rows[0].scores.confusion
    probe = replace(
        probe,
        scores={k: v for k, v in scores.items() if np.isfinite(v)},
        confusion=() if matrix is None else tuple(tuple(map(int, row)) for row in matrix),
    )
    report = ProbeReport(
        task=samples.task,
        target=samples.target,
        classes=samples.classes,
        about=(*about.splitlines(), samples.describe(), f"folds    {folds.describe()}"),
        rows=tuple(rows),
        headline=HEADLINE[samples.task],
        leakage=leakage.text if leakage else "",
        choices=tuple(str(c) for c in choices),
        y=samples.y,
        predicted=target.predicted(first.scores),
        probe=probe,
    )
    return probe, report


def make_sample_folds(samples: Samples, config: ProbeConfig) -> Folds:
    """Folds of samples; the cells of one shape stay together whatever the kind."""
    from rasterio.crs import CRS

    crs = CRS.from_user_input(samples.crs)
    # Feet are no meters, and neither are those of Web Mercator away from the equator.
    in_meters = crs.is_projected and crs.linear_units_factor[1] == 1
    in_meters &= crs.to_dict().get("proj") != "merc"
    places: dict[str, Any] = {"xy_m": samples.xy} if in_meters else {"lonlat": samples.lonlat}
    return make_folds(
        config.folds,
        n_folds=config.n_folds,
        labels=samples.y,
        group=samples.group,
        time=samples.year,
        block_m=config.block_m,
        buffer_m=config.buffer_m,
        seed=config.seed,
        **places,
    )


def _known_classes(samples: Samples) -> Samples:
    """Without classes that no sample has: a model cannot learn them and a score cannot know."""
    if samples.task != "classification":
        return samples
    counts = np.bincount(samples.y, minlength=len(samples.classes))
    if (counts > 0).sum() < 2:
        name = samples.classes[int(counts.argmax())].name
        raise InputError(
            got=f"{len(samples)} samples of one class only ({name!r})",
            expected="at least two classes on the map",
            fix="check how many labels lie outside the map or on cells without data",
        )
    if counts.all():
        return samples
    present = np.flatnonzero(counts)
    gone = [c.name for c, n in zip(samples.classes, counts, strict=True) if not n]
    warnings.warn(
        f"no sample of the class {', '.join(gone)}: the probe will never answer it",
        BocageWarning,
        stacklevel=4,
    )
    return replace(
        samples,
        y=np.searchsorted(present, samples.y),
        classes=tuple(samples.classes[i] for i in present),
    )


def _bands(samples: Samples, embeddings: xr.DataArray, stack: xr.Dataset) -> Bands | None:
    grid = embeddings_grid(embeddings)
    raster = raster_of(stack)
    if raster.grid.crs != grid.crs:
        warnings.warn(
            f"the imagery is in {raster.grid.crs} and the embeddings in {grid.crs}: bands and "
            "indices are not scored beside the probe",
            BocageWarning,
            stacklevel=4,
        )
        return None
    t = grid.transform
    col = np.floor((samples.xy[:, 0] - t.c) / t.a).astype(np.int64)
    row = np.floor((samples.xy[:, 1] - t.f) / t.e).astype(np.int64)
    same = np.zeros(len(samples), np.int64)
    cells = Cells(row=row, col=col, value=same, group=same, year_index=same)
    x, _ = read_features(on_cells(raster, grid), cells, complete=False)
    return Bands(x=x, names=raster.features)


def _baselines(judge: Judge, bands: Bands | None, config: ProbeConfig) -> list[Row]:
    target, folds = judge.target, judge.folds
    rows = []
    if bands is not None:
        columns = usable_columns(bands.x)
        names = tuple(bands.names[i] for i in columns)
        x = bands.x[:, columns]
        complete = np.isfinite(x).all(axis=1)
        # Cells whose imagery has holes would break a fit; their own mean says least about them.
        x = np.where(np.isfinite(x), x, np.nanmean(x[complete], axis=0)) if names else x
        method = DEFAULT_METHOD[target.task]
        if names:
            found = cross_validate(
                x.astype(np.float32), target, folds, method, balanced=config.balanced
            )
            rows.append(judge.row(f"the {len(names)} bands themselves", found.scores))
        indices = spectral_indices(x, names)
        if indices and target.n_classes == 2 and target.task == "classification":
            for name in ("NDWI", "NDVI"):
                if name in indices:
                    threshold = otsu(indices[name])
                    scores = predict_by_threshold(indices[name], threshold, target, folds)
                    rows.append(judge.row(f"{name} by Otsu's threshold {threshold:.3f}", scores))
        elif indices:
            stacked = np.stack(list(indices.values()), axis=1)
            found = cross_validate(stacked, target, folds, method, balanced=config.balanced)
            rows.append(judge.row(f"the indices {', '.join(indices)}", found.scores))
    name = {"regression": "the mean"}.get(target.task, "the most frequent class")
    rows.append(judge.row(name, predict_most_frequent(target, folds)))
    return rows


def _random(samples: Samples, target: Target, method: str, config: ProbeConfig) -> list[Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BocageWarning)
        folds = make_sample_folds(samples, replace(config, folds="random", buffer_m=None))
    found = cross_validate(
        samples.x, target, folds, method, balanced=config.balanced, seed=config.seed
    )
    judge = Judge(samples=samples, target=target, folds=folds)
    return [judge.row("the probe on random folds (neighbors on both sides)", found.scores)]


def _final(
    samples: Samples, target: Target, folds: Folds, method: str, config: ProbeConfig
) -> Probe:
    """The probe of all samples, its setting chosen as in the folds."""
    everything = np.arange(len(samples))
    choice: Choice = choose(
        samples.x,
        target,
        everything,
        folds.block,
        method=method,
        balanced=config.balanced,
        seed=config.seed,
    )
    estimator = fit_choice(
        samples.x, target, everything, method, choice, balanced=config.balanced, seed=config.seed
    )
    return Probe(
        estimator=estimator,
        method=method,
        setting=choice.setting,
        task=samples.task,
        classes=samples.classes,
        embedding=fitted_on(samples),
        target=samples.target,
        n_samples=len(samples),
    )
