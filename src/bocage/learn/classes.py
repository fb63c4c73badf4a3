"""The classes of a map: the value in the raster, the name for people, the color on the screen."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import InputError, SourceError

if TYPE_CHECKING:
    from bocage.types import PathLike

_PALETTE = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#ee7733",
    "#009988", "#cc3311", "#33bbee", "#ddaa33", "#882255", "#117733", "#999933", "#332288",
)  # fmt: skip
# Paul Tol's bright and muted schemes, which color-blind readers can tell apart.

_KNOWN = {"water": "#3b76c4", "land": "#c9b37e", "forest": "#1f7a3a", "urban": "#b3372c"}


@dataclass(frozen=True, kw_only=True)
class LabelClass:
    """One class."""

    value: int
    """What a raster of classes holds, 0 to 255."""

    name: str

    color: str
    """#rrggbb."""

    def __post_init__(self) -> None:
        digits = self.color.removeprefix("#")
        if len(digits) != 6 or len(self.color) != 7 or not set(digits.lower()) <= set(_HEX):
            raise InputError(
                got=f"color {self.color!r} of class {self.name!r}",
                expected="a color such as #3b76c4",
                fix="write six hexadecimal digits after #",
            )

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, 0 to 255."""
        return int(self.color[1:3], 16), int(self.color[3:5], 16), int(self.color[5:7], 16)


_HEX = "0123456789abcdef"


def make_classes(names: Mapping[int, str] | Sequence[str]) -> tuple[LabelClass, ...]:
    """Classes with colors of our choice, in the order of their values; a list counts from 0."""
    pairs = sorted(names.items()) if isinstance(names, Mapping) else list(enumerate(names))
    return tuple(
        LabelClass(
            value=int(value),
            name=str(name),
            color=_KNOWN.get(str(name).lower(), _PALETTE[i % len(_PALETTE)]),
        )
        for i, (value, name) in enumerate(pairs)
    )


def read_classes(path: PathLike) -> tuple[LabelClass, ...]:
    """Read a class table: JSON (a list of value, name, color) or CSV with these columns."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before the first word
        rows: list[dict[str, Any]]
        if path.suffix == ".json":
            rows = json.loads(text)
        else:
            first = text.split("\n", 1)[0]
            sign = ";" if first.count(";") > first.count(",") else ","
            rows = list(csv.DictReader(text.splitlines(), delimiter=sign))
        classes = [(int(row["value"]), str(row["name"]), row.get("color")) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            got=f"{path} ({type(error).__name__}: {error})",
            expected="a class table with value, name and, if you like, color",
            fix='write JSON such as [{"value": 1, "name": "water", "color": "#3b76c4"}], or CSV',
        ) from error
    own = {c.value: c for c in make_classes({value: name for value, name, _ in classes})}
    return check_classes(
        tuple(
            LabelClass(value=value, name=name, color=str(color) if color else own[value].color)
            for value, name, color in sorted(classes)
        )
    )


def check_classes(classes: Sequence[LabelClass]) -> tuple[LabelClass, ...]:
    """The classes, if values and names are told apart."""
    for what in ("value", "name"):
        seen = [getattr(c, what) for c in classes]
        twice = sorted({str(v) for v in seen if seen.count(v) > 1})
        if twice:
            raise InputError(
                got=f"classes that share the {what} {', '.join(twice)}",
                expected=f"a {what} of its own for each class",
                fix="correct the class table",
            )
    return tuple(classes)


def classes_to_json(classes: Sequence[LabelClass]) -> list[dict[str, Any]]:
    """As JSON keeps them."""
    return [{"value": c.value, "name": c.name, "color": c.color} for c in classes]


def classes_from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[LabelClass, ...]:
    """The opposite of `classes_to_json`."""
    return tuple(LabelClass(value=r["value"], name=r["name"], color=r["color"]) for r in rows)
