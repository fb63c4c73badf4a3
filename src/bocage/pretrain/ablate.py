"""What each ingredient of a release is worth: the same training with one thing changed.

Every choice that the technical report compares is one name here; ``ablate`` trains them one after
the other with the same data, seeds and steps, and sets the scores beside those of the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bocage.errors import ConfigError
from bocage.pretrain.checkpoint import MODEL, latest_checkpoint, load_tensors_of
from bocage.pretrain.evaluation import EvaluationSet, embed, encoder_of, hits
from bocage.pretrain.loop import pretrain
from bocage.pretrain.recipe import FLIPS, OBJECTIVE, SAMPLING, Recipe, make_recipe
from bocage.pretrain.run_options import PretrainResult, RunOptions
from bocage.pretrain.sample import Samples
from bocage.scoring.paired import bootstrap_interval
from bocage.types import PathLike


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One change of a recipe."""

    what: str
    """In the user's words."""

    architecture: Mapping[str, Any] = field(default_factory=dict)
    """Options of model_config."""

    objective: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ObjectiveConfig."""

    masking: Mapping[str, Any] = field(default_factory=dict)
    """Fields of MaskingConfig."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of SamplingConfig."""

    flips: bool | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    """Scores of the report at size base after 600,000 steps, in percent."""


_TASKS = ("MADOS LP", "m-eurosat kNN", "PASTIS LP", "m-BEN kNN")


def _report(*scores: float) -> dict[str, float]:
    return dict(zip(_TASKS, scores, strict=True))


_V1_MASKING = {"strategy": "modality_cross_random"}

ABLATIONS: dict[str, Ablation] = {
    "full": Ablation(what="the release as it is", published=_report(73.6, 91.8, 55.9, 65.0)),
    "absolute_encodings": Ablation(
        what="added position tables instead of rotations",
        architecture={"position_encoding": "absolute"},
        published=_report(75.6, 92.6, 55.2, 63.6),
    ),
    "v1_masking": Ablation(
        what="masking of v1", masking=_V1_MASKING, published=_report(72.7, 92.2, 54.4, 62.8)
    ),
    "no_band_dropout": Ablation(
        what="no band dropout",
        objective={"band_dropout": 0.0},
        published=_report(69.3, 84.1, 54.8, 63.9),
    ),
    "linear_projection": Ablation(
        what="one linear map from pixels to tokens",
        architecture={"patch_embedding": "linear"},
        published=_report(75.5, 93.9, 54.7, 62.0),
    ),
    "v1_loss": Ablation(
        what="all negatives of maps kept, as in v1",
        objective={"same_target": None},
        published=_report(74.2, 92.9, 53.5, 63.0),
    ),
    "rope": Ablation(
        what="fixed rotations by row and column",
        architecture={"position_encoding": "rope"},
        published={"average": 61.7},
    ),
    "rope_mixed": Ablation(
        what="learned rotations by row and column",
        architecture={"position_encoding": "rope_mixed"},
        published={"average": 62.0},
    ),
    "rope_3d": Ablation(
        what="fixed rotations by time, row and column",
        architecture={"position_encoding": "rope_3d"},
        published={"average": 61.7},
    ),
    "naive_merge": Ablation(
        what="bands merged to one token, with neither band dropout nor pixel network",
        architecture={"patch_embedding": "convolution", "band_sets": "single"},
        objective={"band_dropout": 0.0},
        published={"m-eurosat kNN": 84.0},
    ),
    "v1_band_sets": Ablation(
        what="three tokens of Sentinel-2 and two of Landsat, as in v1",
        architecture={"band_sets": "v1"},
        sampling={"band_sets": "v1"},
    ),
    "no_contrastive": Ablation(what="no contrastive loss", objective={"contrastive_weight": 0.0}),
    "one_view": Ablation(
        what="one view and no contrastive loss",
        objective={"n_views": 1, "contrastive_weight": 0.0},
    ),
    "token_masking": Ablation(
        what="single tokens hidden, never whole timesteps", masking={"random_ratio": 1.0}
    ),
    "time_masking": Ablation(
        what="whole timesteps hidden wherever there are two", masking={"random_ratio": 0.0}
    ),
    "correct_count": Ablation(
        what="token budget counted with the model's own band sets",
        sampling={"counted_band_sets": "single"},
    ),
    "no_drop_path": Ablation(what="no stochastic depth", architecture={"drop_path": 0.0}),
    "flips": Ablation(what="flips and rotations", flips=True),
    "no_flips": Ablation(what="no flips and rotations", flips=False),
}
"""Everything that can be compared. Published scores: technical report of v1.2 (specification of
the seed systems); variants of the rotation are published as an average over tasks only (61.2 for
added tables, 61.9 for the release), and the naive merge against 94 for v1."""


def ablated_recipe(name: str, release: str = "v1.2", size: str = "nano", **options: Any) -> Recipe:
    """The recipe of a release with one named change; ``options`` go to ``make_recipe``."""
    if name not in ABLATIONS:
        raise ConfigError(
            got=f"ablation {name!r}",
            expected=f"one of {', '.join(ABLATIONS)}",
            fix="correct the name",
        )
    change = ABLATIONS[name]
    if release in OBJECTIVE:  # make_recipe refuses others
        base = options.get("objective") or OBJECTIVE[release]
        masking = replace(base.masking, **change.masking)
        options["objective"] = replace(base, masking=masking, **change.objective)
        options["sampling"] = replace(
            options.get("sampling") or SAMPLING[release], **change.sampling
        )
        if change.flips is not None:
            options["flips"] = change.flips
        elif options.get("flips") is None:
            options["flips"] = FLIPS[release]
    architecture = {**(options.pop("architecture", None) or {}), **change.architecture}
    return make_recipe(release, size, architecture=architecture, **options)


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One line of the table."""

    name: str
    what: str
    result: PretrainResult
    right: dict[str, NDArray[np.bool_]]
    """Which crops each probe got right, as set/probe."""

    published: Mapping[str, float]


def ablate(
    names: tuple[str, ...],
    data: PathLike | Samples,
    out: PathLike,
    *,
    release: str = "v1.2",
    size: str = "nano",
    options: RunOptions | None = None,
    **recipe: Any,
) -> list[AblationRow]:
    """Train each named choice in its own folder below ``out`` and score its last checkpoint.

    Finished ones are not trained again; ``recipe`` goes to ``make_recipe``.
    """
    options = options or RunOptions()
    sets = options.evaluation_sets
    recipes = {name: ablated_recipe(name, release, size, **recipe) for name in names}
    rows = []
    for name, one in recipes.items():
        run = Path(out) / name
        result = pretrain(one, data, run, options=replace(options, evaluation_sets=()))
        right: dict[str, NDArray[np.bool_]] = {}
        path = latest_checkpoint(run)
        if result.writes and path is not None:
            encoder = encoder_of(one.model, load_tensors_of(path / MODEL))
            for dataset in sets:
                x = embed(encoder, dataset, patch_size=options.evaluation_patch_size)
                right |= {f"{dataset.name}/{p}": ok for p, ok in hits(x, dataset).items()}
        rows.append(
            AblationRow(
                name=name,
                what=ABLATIONS[name].what,
                result=result,
                right=right,
                published=ABLATIONS[name].published,
            )
        )
    return rows


def ablation_table(rows: list[AblationRow], sets: tuple[EvaluationSet, ...]) -> str:
    """A Markdown table; differences are to the first row, with 95 % bootstrap intervals."""
    scores = list(rows[0].right)
    head = ["choice", "steps", "loss", *scores, "report"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    blocks = {dataset.name: dataset.folds.block for dataset in sets}
    for row in rows:
        cells = [f"{row.name} ({row.what})", str(row.result.step), f"{row.result.loss:.3f}"]
        cells += [
            _cell(row.right[key], rows[0].right[key], blocks[key.rpartition("/")[0]])
            for key in scores
        ]
        report = ", ".join(f"{task} {value:g}" for task, value in row.published.items())
        lines.append(f"| {' | '.join([*cells, report])} |")
    return "\n".join(lines)


def _cell(right: NDArray[np.bool_], base: NDArray[np.bool_], block: NDArray[np.int64]) -> str:
    text = f"{100 * right.mean():.1f}"
    if right is base:
        return text
    difference = right.astype(np.float64) - base
    low, high = bootstrap_interval(difference, block=block)
    return f"{text} ({100 * difference.mean():+.1f}, {100 * low:+.1f} to {100 * high:+.1f})"
