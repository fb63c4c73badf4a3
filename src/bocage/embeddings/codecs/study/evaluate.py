"""`evaluate`: the grid of codecs, scored, compared with float32, and priced."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs.codec import Codec, check_vectors, valid_rows
from bocage.embeddings.codecs.reduced import Reduced
from bocage.embeddings.codecs.registry import make_codec
from bocage.embeddings.codecs.study.dimension import bit_imbalance, describe_vectors
from bocage.embeddings.codecs.study.report import storage_cost, write_report
from bocage.errors import ConfigError, InputError
from bocage.scoring.folds import Folds, make_folds
from bocage.scoring.location import predict_by_location
from bocage.scoring.paired import Paired, compare, holm
from bocage.scoring.scores import (
    cosine_distances,
    f1_per_class,
    knn_cosine,
    knn_distances,
    linear_probe,
    retrieval_recall,
    true_neighbors,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import CodeArray, FloatArray, PathLike

_log = logging.getLogger(__name__)

GRID = (
    *("float32", "float16", "fp8", "signed_power_gain", "per_pixel_scale"),
    *("int8", "int4", "int4_percentile", "int4_mse", "int3_mse", "int2", "int2_mse"),
    *("lloyd4", "lloyd2", "rotated_int4", "ternary"),
    *("binary", "binary_mean", "binary_median", "binary_itq"),
    *("binary_levels", "binary_levels2"),
    *("pca64-int8", "pca32-int8", "pca32-int4_mse", "pca16-int8", "pca16-int4_mse"),
    *("pca32-binary_mean", "rp32-int8", "select32-int8", "svd32-int8"),
)
"""The default grid; reducers that ask for more dimensions than there are, are left out."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a study is made."""

    codecs: tuple[str, ...] = GRID
    """Codecs by name; float32 is always among them, as the baseline."""

    n_folds: int = 5
    k: int = 5
    """Neighbors of the kNN classifier."""

    probe: bool = True
    """False to leave the linear probe out, which takes most of the time."""

    margin: float = 0.005
    """Equivalence margin, a share of accuracy: 0.005 is half a point. Declare it before looking."""

    recall_at: int = 10
    max_queries: int = 500
    block_km: float = 50.0
    """Side of the blocks of the spatial folds."""

    n_bootstrap: int = 1000
    area_km2: float = 148.94e6
    """Area that the table prices; all land by default."""

    gsd_m: float = 10.0
    """Ground size of one embedding."""

    dollars_per_gb_month: float = 0.023
    """Object storage; 0.023 is the list price of S3 Standard."""

    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1 or self.n_folds < 2 or self.k < 1:
            raise ConfigError(
                got=f"margin {self.margin}, n_folds {self.n_folds}, k {self.k}",
                expected="0 < margin < 1, at least 2 folds and 1 neighbor",
                fix="margin is a share: 0.5 points are 0.005",
            )


@dataclass(kw_only=True)
class StudyResult:
    """One row per codec and split, the facts about the vectors, and the options."""

    rows: list[dict[str, Any]]
    vectors: dict[str, Any]
    classes: list[str]
    options: StudyOptions
    model: str = ""
    notes: list[str] = field(default_factory=list)

    def write(self, folder: PathLike) -> Path:
        """Write table.csv, table.md, study.json and, with matplotlib, Pareto plots."""
        return write_report(self, Path(folder))


def evaluate(
    x: FloatArray,
    labels: NDArray[Any],
    *,
    lonlat: NDArray[np.floating] | None = None,
    options: StudyOptions | None = None,
    model: str = "",
) -> StudyResult:
    """Score a grid of codecs on labelled embeddings, at random and spatial folds side by side.

    `x` float32 [N, D]; rows of NaN are left out. `labels` [N]; `lonlat` [N, 2] degrees, without
    which there are no spatial folds (and the result says so). Codecs are fitted on training folds
    only. Every score is compared with float32 on the same samples.
    """
    options = options or StudyOptions()
    x, y, classes, places = _prepare(x, labels, lonlat)
    result = StudyResult(
        rows=[],
        vectors=describe_vectors(x, seed=options.seed),
        classes=classes,
        options=options,
        model=model,
    )
    splits = [
        make_folds("random", n_folds=options.n_folds, labels=y, lonlat=places, seed=options.seed)
    ]
    if places is None:
        result.notes.append(
            "no places were given: scores of random folds may be memory of neighbors"
        )
    else:
        splits.append(
            make_folds(
                "spatial",
                n_folds=options.n_folds,
                lonlat=places,
                block_m=1000 * options.block_km,
                seed=options.seed,
            )
        )
        for folds in splits:
            by_place = float((predict_by_location(folds, y) == y).mean())
            result.notes.append(
                f"{folds.name} folds: the nearest sample on the ground, by location only, is right "
                f"for {by_place:.4f}; what features add is what they score beyond it"
            )
    names = _usable(options.codecs, x.shape[1], result)
    for folds in splits:
        task = _Task(x=x, y=y, folds=folds, options=options, n_classes=len(classes))
        runs = [_run(name, task, result.notes) for name in names]
        result.rows += _compare([run for run in runs if run is not None], folds, result)
    return result


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What every codec is scored on."""

    x: FloatArray
    y: NDArray[np.int64]
    folds: Folds
    options: StudyOptions
    n_classes: int

    def rows(self, fold: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Training and test rows of a fold."""
        return self.folds.train(fold), self.folds.test(fold)


@dataclass(kw_only=True)
class _Run:
    """Predictions of one codec over all folds."""

    name: str
    right: dict[str, NDArray[np.bool_]]
    f1: dict[str, FloatArray]
    recall: float
    code_bytes: int
    parameter_bytes: int
    disk_bytes: float
    imbalance: float | None


def _prepare(
    x: FloatArray, labels: NDArray[Any], lonlat: NDArray[np.floating] | None
) -> tuple[FloatArray, NDArray[np.int64], list[str], NDArray[np.floating] | None]:
    x = check_vectors(x)
    labels = np.asarray(labels)
    if len(labels) != len(x) or (lonlat is not None and len(lonlat) != len(x)):
        raise InputError(
            got=f"{len(x)} vectors, {len(labels)} labels"
            + (f", {len(lonlat)} places" if lonlat is not None else ""),
            expected="one label (and place) for each vector",
            fix="check that all come from the same table",
        )
    valid = valid_rows(x) & (np.abs(np.nan_to_num(x)).max(axis=1) > 0)
    names, y = np.unique(labels[valid], return_inverse=True)
    if not 2 <= len(names) <= valid.sum() // 2:
        raise InputError(
            got=f"{len(names)} classes in {int(valid.sum())} valid vectors",
            expected="at least two classes, of several vectors each",
            fix="check the label column",
        )
    places = None if lonlat is None else np.asarray(lonlat)[valid]
    return x[valid], y.astype(np.int64), [str(n) for n in names], places


def _usable(names: tuple[str, ...], dims: int, result: StudyResult) -> list[str]:
    chosen = ["float32", *(n for n in names if n != "float32")]
    fits: list[str] = []
    left: list[str] = []
    for name in dict.fromkeys(chosen):
        codec = make_codec(name)  # unknown names fail before hours of work, not after
        too_many = isinstance(codec, Reduced) and codec.reducer.d > dims
        (left if too_many else fits).append(name)
    if left:
        result.notes.append(f"left out, more dimensions than {dims}: {', '.join(left)}")
    return fits


def _run(name: str, task: _Task, notes: list[str]) -> _Run | None:
    x, y, folds = task.x, task.y, task.folds
    _log.info("%s folds: %s", folds.name, name)
    predicted: dict[str, NDArray[np.int64]] = {}
    recalls, codec = [], None
    for fold in range(folds.n_folds):
        train, test = task.rows(fold)
        try:
            codec = make_codec(name, seed=task.options.seed).fit(x[train])
        except InputError as error:
            notes.append(f"{name} left out of {folds.name} folds: {error}")
            return None
        for score, values in _predict(codec, task, fold).items():
            predicted.setdefault(score, np.empty(len(y), np.int64))[test] = values
        recalls.append(_recall(codec, x, test, task.options))
    assert codec is not None
    codes = codec.encode(x)
    return _Run(
        name=name,
        right={score: values == y for score, values in predicted.items()},
        f1={s: f1_per_class(y, values, task.n_classes) for s, values in predicted.items()},
        recall=float(np.mean(recalls)),
        code_bytes=codec.code_bytes,
        parameter_bytes=codec.parameter_bytes(),
        disk_bytes=_bytes_on_disk(codes) + codec.parameter_bytes() / len(x),
        imbalance=bit_imbalance(codes, codec.n_bits) if codec.distance == "hamming" else None,
    )


def _predict(codec: Codec, task: _Task, fold: int) -> dict[str, NDArray[np.int64]]:
    x, y, options = task.x, task.y, task.options
    train, test = task.rows(fold)
    predicted = {}
    codes = codec.encode(x)
    if codec.distance is not None:
        distance = codec.distances(x[test], codes[train])
        name = "knn_hamming" if codec.distance == "hamming" else "knn"
        predicted[name] = knn_distances(distance, y[train], options.k)
    if codec.name.startswith(("rabitq2", "rabitq4")):
        return predicted  # distances only (product.py)
    decoded = codec.decode(codes)
    if "knn" not in predicted:
        predicted["knn"] = knn_cosine(decoded[train], y[train], decoded[test], options.k)
    if options.probe:
        block = task.folds.block[train] if task.folds.name == "spatial" else None
        predicted["linear"] = linear_probe(
            decoded[train], y[train], decoded[test], block=block, seed=options.seed
        )
    return predicted


def _recall(codec: Codec, x: FloatArray, test: NDArray[np.intp], options: StudyOptions) -> float:
    rng = np.random.default_rng(options.seed)
    n = max(1, options.max_queries // options.n_folds)
    queries = np.sort(rng.choice(test, min(n, len(test)), replace=False))
    k = min(options.recall_at, len(x) - 1)
    truth = true_neighbors(x, queries, k)
    codes = codec.encode(x)
    if codec.distance is not None:
        distance = codec.distances(x[queries], codes)
    else:
        decoded = codec.decode(codes)
        distance = cosine_distances(decoded[queries], decoded)
    return retrieval_recall(distance, queries, truth)


def _bytes_on_disk(codes: CodeArray) -> float:
    """Bytes per vector of a Parquet file of the codes with zstd: what a table really takes."""
    from bocage.embeddings.codecs.tables import write_codes

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.parquet"
        write_codes(path, codes)
        return path.stat().st_size / len(codes)


def _compare(runs: list[_Run], folds: Folds, result: StudyResult) -> list[dict[str, Any]]:
    options = result.options
    base = runs[0]
    rows: list[dict[str, Any]] = []
    for run in runs:
        row: dict[str, Any] = {
            "codec": run.name,
            "split": folds.name,
            "code_bytes": run.code_bytes,
            "parameter_bytes": run.parameter_bytes,
            "disk_bytes": round(run.disk_bytes, 2),
            f"recall@{options.recall_at}": round(run.recall, 4),
            "bit_imbalance": run.imbalance,
            **storage_cost(run.code_bytes, run.parameter_bytes, options),
        }
        for score, right in run.right.items():
            against = base.right.get(score, base.right["knn"])
            paired = compare(
                against,
                right,
                margin=options.margin,
                block=folds.block,
                n_bootstrap=options.n_bootstrap,
                seed=options.seed,
            )
            row |= _columns(score, float(right.mean()), paired)
            lost = run.f1[score] - base.f1.get(score, base.f1["knn"])
            row[f"{score}_f1"] = {
                c: round(float(v), 4) for c, v in zip(result.classes, run.f1[score], strict=True)
            }
            row[f"{score}_worst_class"] = result.classes[int(lost.argmin())]
            row[f"{score}_worst_class_f1_change"] = round(float(lost.min()), 4)
        rows.append(row)
    for score in ("knn", "knn_hamming", "linear"):
        mine = [row for row in rows[1:] if f"{score}_p_equivalence" in row]
        corrected = holm(np.array([row[f"{score}_p_equivalence"] for row in mine]))
        for row, p in zip(mine, corrected, strict=True):
            row[f"{score}_p_equivalence_holm"] = float(p)
            row[f"{score}_equivalent"] = bool(p < 0.05)
    return rows


def _columns(score: str, accuracy: float, paired: Paired) -> dict[str, Any]:
    return {
        score: round(accuracy, 4),
        f"{score}_difference": round(paired.difference, 4),
        f"{score}_low": round(paired.low, 4),
        f"{score}_high": round(paired.high, 4),
        f"{score}_gained": paired.n_gained,
        f"{score}_lost": paired.n_lost,
        f"{score}_p_mcnemar": paired.p_mcnemar,
        f"{score}_p_equivalence": paired.p_equivalence,
    }
