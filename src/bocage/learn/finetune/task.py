"""What a network is trained to say: classes or numbers, of a whole crop or of every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bocage.errors import ConfigError, InputError
from bocage.learn.classes import LabelClass, check_classes, classes_from_json, classes_to_json

TASKS = ("classification", "multilabel", "segmentation", "regression")

IGNORE = -1
"""Index of a pixel or crop without a label; it counts in no loss and in no score."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Kind of answer, and what its numbers mean."""

    kind: str
    """One of TASKS."""

    classes: tuple[LabelClass, ...] = ()
    """In the order of the outputs; empty for regression."""

    label_px: int | None = None
    """Side of a label in pixels of the crop: 1 for a label per pixel; None for one per crop."""

    def __post_init__(self) -> None:
        if self.kind not in TASKS:
            raise ConfigError(
                got=f"task {self.kind!r}",
                expected=f"one of {', '.join(TASKS)}",
                fix="correct --task",
            )
        check_classes(self.classes)
        fewest = {"regression": 0, "multilabel": 1}.get(self.kind, 2)
        if len(self.classes) < fewest:
            names = ", ".join(c.name for c in self.classes) or "none"
            raise InputError(
                got=f"{len(self.classes)} class(es) for {self.kind} ({names})",
                expected=f"at least {fewest} classes",
                fix="add labels of another class, for example of the background",
            )
        if (self.kind in {"classification", "multilabel"}) != (self.label_px is None) and (
            self.kind != "regression"
        ):
            raise ConfigError(
                got=f"{self.kind} with labels of {self.label_px} px",
                expected="labels per pixel for segmentation, per crop for classification",
                fix="correct --task",
            )

    @property
    def dense(self) -> bool:
        """True if there is a label for every cell of the crop."""
        return self.label_px is not None

    @property
    def n_outputs(self) -> int:
        """Numbers per answer."""
        return len(self.classes) or 1

    def to_json(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {
            "task": self.kind,
            "classes": classes_to_json(self.classes),
            "label_px": self.label_px,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Task:
        """The opposite of ``to_json``."""
        return cls(
            kind=raw["task"], classes=classes_from_json(raw["classes"]), label_px=raw["label_px"]
        )
