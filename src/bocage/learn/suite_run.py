"""Run a suite: embed every data set with every model, and score it beside its baselines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bocage.errors import BocageWarning, ConfigError, InputError, SourceError
from bocage.learn.baselines import predict_most_frequent
from bocage.learn.crossval import Target, cross_validate
from bocage.learn.datasets.dataset import Dataset
from bocage.learn.datasets.ready import read_dataset
from bocage.learn.judge import Judge
from bocage.learn.pooling import pool
from bocage.learn.sample import Samples
from bocage.learn.suite import PROTOCOLS, ModelConfig, Suite, TaskConfig
from bocage.learn.suite_baselines import baselines
from bocage.scoring.folds import Folds, make_folds
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.learn.finetune import FinetuneConfig
    from bocage.mapping.plan import WindowModel
    from bocage.scoring.accumulator import Scores
    from bocage.types import FloatArray

    Macs = Callable[[WindowModel, tuple[str, ...], int, int, int], int]

Cache: TypeAlias = dict[tuple[Any, ...], dict[str, "FloatArray"]]
"""Features by everything they depend on."""

BATCH_TOKENS = 16_384
"""Cells x dates x sensors encoded at once."""

TUNED = ", fine-tuned"
"""Added to the name of a model whose encoder learned too."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task: every model and baseline on the same folds."""

    task: TaskConfig
    about: str
    """Samples and folds."""

    scores: dict[str, Scores]
    """By model or baseline; models first."""

    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    """Multiply-adds of one image, where the caller counts them."""


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """Everything that ran, and why the rest did not."""

    name: str
    models: tuple[str, ...]
    tasks: tuple[TaskResult, ...]
    refused: dict[str, str]
    """Tasks without data: one sentence each."""


def run_suite(
    suite: Suite,
    *,
    macs: Macs | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> SuiteResult:
    """Score every model of a suite on every task whose data are there.

    `macs` counts the multiply-adds of (model, sensors, size_px, n_times, patch_size); without it
    the table has no costs.
    """
    from bocage.models import load_model

    for task in suite.tasks:
        _tuning(task)  # mistakes before the work
    models: list[tuple[ModelConfig, Any]] = []
    for config in suite.models:
        weights = None if config.weights == "random" else config.weights
        models.append((config, load_model(config.name, weights=weights)))
    results, refused = [], {}
    cache: Cache = {}
    for task in suite.tasks:
        try:
            dataset = read_dataset(
                task.name,
                reader=task.reader,
                path=None if task.path is None else suite.data / task.path,
                root=suite.data,
                options=task.options,
            )
            results.append(run_task(task, dataset, models, macs=macs, cache=cache, say=say))
        except (SourceError, InputError) as error:
            # The other tasks are worth their scores; the table says why this one has none.
            refused[task.label] = str(error)
            say(f"left out {task.label}: {error}")
    if not results:
        raise SourceError(
            got=f"suite {suite.name}, none of whose {len(suite.tasks)} tasks could be scored; the "
            f"first: {next(iter(refused.values()))}",
            expected="data of at least one task",
            fix="check data = ... in the suite",
        )
    names = tuple(config.label for config, _ in models)
    return SuiteResult(name=suite.name, models=names, tasks=tuple(results), refused=refused)


def run_task(
    task: TaskConfig,
    dataset: Dataset,
    models: list[tuple[ModelConfig, Any]],
    *,
    macs: Macs | None = None,
    cache: Cache | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> TaskResult:
    """Score models and baselines on one data set, all on the same samples and folds.

    `cache` keeps features between tasks that differ in folds or protocol only.
    """
    cache = {} if cache is None else cache
    features = {}
    for config, model in models:
        inputs = (task.name, task.reader, task.path, repr(task.options), config.label)
        key = (*inputs, task.patch_size, task.output, task.normalization, task.pooling)
        if key not in cache:
            say(f"embed    {task.label} with {config.label}")
            cache[key] = embed_dataset(task, dataset, model)
        features[config.label] = cache[key]
    usable = np.logical_and.reduce(
        [np.isfinite(x).all(axis=1) for variants in features.values() for x in variants.values()]
    )
    labels, where = _labels(task, dataset)
    keep = usable & where.labelled
    samples = Samples(
        x=np.zeros((int(keep.sum()), 1), np.float32),
        y=labels[keep],
        xy=where.xy[keep],
        crs="EPSG:3857" if where.metres else "EPSG:4326",
        task=dataset.task,
        classes=dataset.classes,
        group=where.group[keep],
        year=np.zeros(int(keep.sum()), np.int32),
    )
    target = Target(y=samples.y, task=dataset.task, n_classes=len(dataset.classes))
    folds = _folds(task, samples, where, keep)
    judge = Judge(samples=samples, target=target, folds=folds)
    if task.metric not in judge.score(predict_most_frequent(target, folds)).values:
        known = judge.score(predict_most_frequent(target, folds)).values
        raise ConfigError(
            got=f"metric {task.metric!r} of task {task.name}",
            expected=f"one of {', '.join(known)}",
            fix="correct the suite",
        )
    method = PROTOCOLS[task.protocol][1 if dataset.task == "regression" else 0]
    scores, choices = {}, {}
    for name, variants in features.items():
        kept = {key: x[keep] for key, x in variants.items()}
        probe = cross_validate(kept, target, folds, method, seed=task.seed)
        scores[name] = judge.score(probe.scores)
        say(_told(task, name, scores[name]))
        choices[name] = tuple(str(c) for c in probe.choices)
    if task.finetune is not None:
        for config, model in models:
            say(f"tune     {task.label}: {config.label}")
            found = tune(task, dataset, folds, keep, model, say=say)
            scores[config.label + TUNED] = judge.score(found)
            say(_told(task, config.label + TUNED, scores[config.label + TUNED]))
    linear = PROTOCOLS["linear"][1 if dataset.task == "regression" else 0]
    for name, x in baselines(dataset, task.patch_size).items():
        raw = cross_validate(x[keep], target, folds, linear, seed=task.seed)
        scores[f"{name}, linear"] = judge.score(raw.scores)
        say(_told(task, f"{name}, linear", scores[f"{name}, linear"]))
    if folds.places is not None:
        scores["location only"] = judge.score(judge.by_location())
    scores["most frequent"] = judge.score(predict_most_frequent(target, folds))
    counted = {}
    if macs is not None:
        for config, model in models:
            counted[config.label] = macs(
                model,
                tuple(dataset.images),
                dataset.size_px,
                dataset.n_times,
                task.patch_size,
            )
            if task.finetune is not None:
                counted[config.label + TUNED] = counted[config.label]
    unit = "cells" if dataset.per_pixel else "images"
    about = f"{len(samples)} {unit} of {len(dataset.classes) or 'no'} classes; {folds.describe()}"
    if dataset.note:
        about += f"; {dataset.note}"
    say(f"scored   {task.label}: {about}")
    return TaskResult(task=task, about=about, scores=scores, choices=choices, macs=counted)


def _told(task: TaskConfig, name: str, scores: Scores) -> str:
    """A score as soon as it is known: a suite may take hours, and may be stopped."""
    found = scores[task.metric]
    return (
        f"score    {task.label}: {name} {task.metric} {found.value:.3f} "
        f"({found.low:.3f} to {found.high:.3f})"
    )


def tune(
    task: TaskConfig,
    dataset: Dataset,
    folds: Folds,
    keep: NDArray[np.bool_],
    model: Any,
    *,
    say: Callable[[str], None] = lambda _text: None,
) -> NDArray[np.float64]:
    """Scores [n, C] of the kept samples by networks fine-tuned on the other folds."""
    from bocage.learn.finetune.crossval import cross_finetune

    config = _tuning(task)
    assert config is not None
    return cross_finetune(
        dataset,
        folds,
        np.flatnonzero(keep),
        model,
        config=config,
        cell_labels=_all_cell_labels(task, dataset) if dataset.per_pixel else None,
        say=say,
    )


def _tuning(task: TaskConfig) -> FinetuneConfig | None:
    """The options of fine-tuning, checked; None without."""
    if task.finetune is None:
        return None
    from bocage.learn.finetune import FinetuneConfig

    unknown = task.finetune.keys() - FinetuneConfig.__dataclass_fields__.keys()
    if unknown:
        raise ConfigError(
            got=f"finetune with {', '.join(sorted(unknown))} of task {task.name}",
            expected=f"options among {', '.join(FinetuneConfig.__dataclass_fields__)}",
            fix="check the spelling",
        )
    return FinetuneConfig(patch_size=task.patch_size, seed=task.seed, **task.finetune)


def embed_dataset(task: TaskConfig, dataset: Dataset, model: Any) -> dict[str, FloatArray]:
    """Features [samples, D] of each normalization and pooling; a sample is an image or a cell."""
    encoder = model.window_encoder(
        patch_size=task.patch_size, output=task.output, check_units=False
    )
    variants: dict[str, FloatArray] = {}
    for normalization in task.normalization:
        rules = {}
        if normalization == "dataset":
            rules = {name: dataset_rule(name, x) for name, x in dataset.images.items()}
        cells = _encode(encoder, dataset.images, dataset.timestamps, task.patch_size, rules)
        if dataset.per_pixel:
            variants[f"{normalization} statistics"] = cells.reshape(-1, cells.shape[-1])
            continue
        flat = cells.reshape(len(cells), -1, cells.shape[-1])
        for pooling in task.pooling:
            source = cells if "center" in pooling.split("+") else flat
            variants[f"{normalization} statistics, {pooling}"] = pool(source, pooling)
            if flat.shape[1] == 1:
                break  # every pooling of one cell is that cell
    return variants


Rule: TypeAlias = tuple["FloatArray", "FloatArray"]
"""Factor and offset per band, [T, C, H, W] by broadcasting."""


def dataset_rule(sensor: str, x: FloatArray) -> Rule:
    """What turns images [n, T, C, H, W] into ones of which the model sees their own statistics.

    The models see (x - (m - 2 s)) / (4 s) with m and s of pretraining; after x * factor + offset
    m and s of each band are the data set's own. Taken over all images, without their labels.
    """
    bands = SENSORS[sensor].bands
    n, total, squares = (np.zeros(len(bands)) for _ in range(3))
    own_mean, own_std = (np.array([getattr(b, k) for b in bands]) for k in ("mean", "std"))
    for image in x:  # one at a time: the images may fill the memory
        part = np.moveaxis(image, 1, 0).reshape(len(bands), -1) - own_mean[:, None]
        valid = np.isfinite(part)
        part = np.where(valid, part, 0)
        n += valid.sum(axis=1)
        total += part.sum(axis=1)
        squares += (part**2).sum(axis=1)
    mean = total / np.maximum(n, 1)
    std = np.sqrt(np.maximum(squares / np.maximum(n, 1) - mean**2, 0))
    factor = own_std / np.where(std > 0, std, 1)
    offset = own_mean - (mean + own_mean) * factor
    shape = (len(bands), 1, 1)
    return factor.astype(np.float32).reshape(shape), offset.astype(np.float32).reshape(shape)


def _encode(
    encoder: Any,
    images: Mapping[str, FloatArray],
    timestamps: NDArray[np.int64],
    patch_size: int,
    rules: Mapping[str, Rule],
) -> FloatArray:
    """Cells [n, h, w, D]; images are padded with missing pixels to whole patches."""
    n, n_times, _, height, width = next(iter(images.values())).shape
    h, w = -(-height // patch_size), -(-width // patch_size)
    pad = ((0, 0), (0, 0), (0, 0), (0, h * patch_size - height), (0, w * patch_size - width))
    size = max(1, BATCH_TOKENS // (h * w * n_times * len(images)))
    found = []
    for start in range(0, n, size):
        at = slice(start, start + size)
        part = {
            name: np.pad(x[at], pad, constant_values=np.nan) if any(map(any, pad)) else x[at]
            for name, x in images.items()
        }
        part = {
            name: x * rules[name][0] + rules[name][1] if name in rules else x
            for name, x in part.items()
        }
        found.append(encoder(part, timestamps[at]))
    return np.concatenate(found)


@dataclass(frozen=True, kw_only=True)
class _Where:
    """Of each sample: place, group, official split, and whether it has a label."""

    xy: NDArray[np.float64]
    metres: bool
    group: NDArray[np.int64]
    split: NDArray[np.str_] | None
    labelled: NDArray[np.bool_]


def _labels(task: TaskConfig, dataset: Dataset) -> tuple[NDArray[Any], _Where]:
    n = len(dataset.y)
    group = np.arange(n) if dataset.group is None else dataset.group
    if not dataset.per_pixel:
        y = dataset.y
        valid = np.ones(n, bool)
        if dataset.task != "multilabel":
            valid = np.isfinite(y) if y.dtype.kind == "f" else y >= 0
        xy = np.full((n, 2), np.nan) if dataset.lonlat is None else dataset.lonlat
        return y, _Where(xy=xy, metres=False, group=group, split=dataset.split, labelled=valid)
    p = task.patch_size
    y = _all_cell_labels(task, dataset)
    _, h, w = y.shape
    corner = np.zeros((n, 2)) if dataset.corner_xy_m is None else dataset.corner_xy_m
    step = p * dataset.pixel_m
    x = corner[:, 0, None, None] + (np.arange(w) + 0.5) * step
    north = corner[:, 1, None, None] - (np.arange(h)[:, None] + 0.5) * step
    xy = np.stack(np.broadcast_arrays(x, north), axis=-1).reshape(-1, 2)
    flat = y.reshape(-1)
    valid = np.isfinite(flat) if flat.dtype.kind == "f" else flat >= 0
    split = None if dataset.split is None else np.repeat(dataset.split, h * w)
    return flat, _Where(
        xy=xy, metres=True, group=np.repeat(group, h * w), split=split, labelled=valid
    )


def _all_cell_labels(task: TaskConfig, dataset: Dataset) -> NDArray[Any]:
    """[n, h, w]."""
    n_classes = len(dataset.classes)
    return np.stack([_cell_labels(image, task.patch_size, n_classes) for image in dataset.y])


def _cell_labels(image: NDArray[Any], p: int, n_classes: int) -> NDArray[Any]:
    """The most frequent class of each cell, or the mean number; nothing where none is known."""
    h, w = -(-image.shape[0] // p), -(-image.shape[1] // p)
    numbers = image.dtype.kind == "f"
    empty: float = np.nan if numbers else -1
    pad = ((0, h * p - image.shape[0]), (0, w * p - image.shape[1]))
    padded = np.pad(image, pad, constant_values=empty).reshape(h, p, w, p)
    cells = padded.swapaxes(1, 2).reshape(h, w, p * p)
    if numbers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.asarray(np.nanmean(cells, axis=2), np.float32)
    counts = np.stack([(cells == k).sum(axis=2) for k in range(n_classes)], axis=2)
    return np.where(counts.max(axis=2) > 0, counts.argmax(axis=2), -1)


def _folds(task: TaskConfig, samples: Samples, where: _Where, keep: NDArray[np.bool_]) -> Folds:
    if task.folds == "official":
        if where.split is None:
            raise InputError(
                got=f"task {task.name} without an official split",
                expected="random, spatial or group folds",
                fix='set folds = "spatial"',
            )
        test = where.split[keep] == "test"
        return Folds(
            name="official", fold=np.where(test, 0, -1), block=np.arange(len(test), dtype=np.int64)
        )
    places: dict[str, Any] = {}
    if np.isfinite(samples.xy).all():
        places = {"xy_m" if where.metres else "lonlat": samples.xy}
    with warnings.catch_warnings():
        # A class that only one block has is part of the task's difficulty; the table shows it.
        warnings.simplefilter("ignore", BocageWarning)
        return make_folds(
            task.folds,  # type: ignore[arg-type]  # checked by TaskConfig
            n_folds=task.n_folds,
            labels=samples.y,
            group=samples.group,
            block_m=task.block_m,
            seed=task.seed,
            **places,
        )
