"""A suite: data sets and models in one file, and every score that comes of them.

name = "small"
data = "../data"                    # folder of data sets, beside this file or absolute

[[models]]
name = "olmoearth-v1.2-nano"
weights = "random"

[[tasks]]
name = "eurosat_ms_200"
folds = "spatial"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import ConfigError, SourceError
from bocage.learn.datasets.official import OFFICIAL
from bocage.learn.datasets.ready import READY

if TYPE_CHECKING:
    from bocage.types import PathLike

PROTOCOLS = {
    "linear": ("logistic", "ridge"),
    "adamw": ("adamw", "ridge"),
    "knn": ("knn", "knn"),
    "knn5": ("knn5", "knn5"),
}
"""Methods for classes and for numbers."""

NORMALIZATIONS = ("pretraining", "dataset")
FOLDS = ("official", "random", "spatial", "group", "leave_one_block_out", "time")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model of a suite."""

    name: str
    """As `bocage models` lists them, or a folder."""

    weights: str = "hub"
    """"hub", a file or folder, or "random"."""

    title: str = ""
    """In the table; by default the name, and the weights if they are random."""

    @property
    def label(self) -> str:
        """How the table calls it."""
        random = " (random)" if self.weights == "random" else ""
        return self.title or f"{Path(self.name).name}{random}"


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A task of a suite."""

    name: str
    """A known data set (READY, OFFICIAL), or any name with a reader."""

    reader: str | None = None
    path: str | None = None
    """By default below the suite's folder of data."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the reader."""

    title: str = ""
    patch_size: int = 4
    output: str = "auto"
    protocol: str = "linear"
    normalization: tuple[str, ...] = NORMALIZATIONS
    """Of the inputs: the models' own constants, or the data set's; chosen on inner folds."""

    pooling: tuple[str, ...] = ("mean", "max")
    """Cells to one vector per image; chosen on inner folds."""

    finetune: Mapping[str, Any] | None = None
    """Also fine-tune each model on the same folds; fields of FinetuneConfig, may be empty."""

    metric: str = "accuracy"
    folds: str = "spatial"
    n_folds: int = 5
    block_m: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("protocol", tuple(PROTOCOLS)), ("folds", FOLDS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    got=f"{name} {getattr(self, name)!r} of task {self.name}",
                    expected=f"one of {', '.join(allowed)}",
                    fix="correct the suite",
                )
        wrong = [n for n in self.normalization if n not in NORMALIZATIONS]
        if wrong or not self.normalization or not self.pooling:
            raise ConfigError(
                got=f"normalization {', '.join(self.normalization) or '(none)'} and pooling "
                f"{', '.join(self.pooling) or '(none)'} of task {self.name}",
                expected=f"at least one each, normalization of {', '.join(NORMALIZATIONS)}",
                fix="correct the suite",
            )
        reserved = {"patch_size", "seed"} & set(self.finetune or {})
        if reserved or not isinstance(self.finetune or {}, Mapping):
            raise ConfigError(
                got=f"finetune = {self.finetune} of task {self.name}",
                expected='a table such as { epochs = 20, recipe = "plain" }; patch_size and seed '
                "are the task's",
                fix="correct the suite",
            )

    @property
    def label(self) -> str:
        """How the table calls it."""
        return self.title or f"{self.name}, {self.folds}"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Models and tasks."""

    name: str
    data: Path
    models: tuple[ModelConfig, ...]
    tasks: tuple[TaskConfig, ...]


def read_suite(path: PathLike) -> Suite:
    """Read a suite from TOML or JSON; ConfigError names what is wrong in it."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SourceError(
            got=f"{path} ({error})", expected="a suite in TOML or JSON", fix="check the file"
        ) from error
    unknown = content.keys() - {"name", "data", "models", "tasks"}
    if unknown or not content.get("models") or not content.get("tasks"):
        raise ConfigError(
            got=f"{path.name} with {', '.join(content) or 'nothing'}",
            expected="name, data, and at least one of models and of tasks",
            fix="see docs/learn.md for an example",
        )
    return Suite(
        name=str(content.get("name", path.stem)),
        data=path.parent / content.get("data", "."),
        models=tuple(_make(ModelConfig, m, path) for m in content["models"]),
        tasks=tuple(_make(TaskConfig, _with_defaults(t), path) for t in content["tasks"]),
    )


def _with_defaults(task: Any) -> Any:
    if not isinstance(task, dict):
        return task
    name = str(task.get("name", ""))
    if name in READY:
        return {**READY[name].defaults, **task}
    if name in OFFICIAL:
        known = OFFICIAL[name]
        own = {
            "protocol": "knn" if known.protocol == "knn" else "linear",
            "metric": known.metric,
            "normalization": [known.normalization],
            "folds": "official",
        }
        return {**own, **task}
    return task


def _make(kind: type[Any], content: Any, path: Path) -> Any:
    known = {f.name: f for f in fields(kind)}
    what = "models" if kind is ModelConfig else "tasks"
    if not isinstance(content, dict):
        raise ConfigError(
            got=f"{what} in {path.name} that are no tables",
            expected=f"[[{what}]] with a name",
            fix="see docs/learn.md for an example",
        )
    unknown = content.keys() - known.keys()
    missing = {n for n, f in known.items() if f.default is MISSING and n == "name"} - content.keys()
    if unknown or missing:
        raise ConfigError(
            got=f"{path.name}: {what} with {', '.join(sorted(unknown)) or 'no name'}",
            expected=f"options among {', '.join(known)}",
            fix="check the spelling",
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    return kind(**values)
