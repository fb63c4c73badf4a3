"""What the numbers of a class map mean: value, name and color of each class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bocage.errors import ConfigError
from bocage.learn.classes import LabelClass, check_classes, classes_to_json, make_classes

_LARGEST = {"uint8": 254, "uint16": 65_534}


@dataclass(frozen=True, kw_only=True)
class Legend:
    """The classes of a map, in the order of the model's scores."""

    classes: tuple[LabelClass, ...]

    @classmethod
    def of(cls, classes: Iterable[Any]) -> Legend:
        """Read classes given as objects or dictionaries with value, name and color.

        A missing color comes from the palette. InputError for doubled names or values, ConfigError
        for values that a raster cannot store.
        """
        rows = [tuple(_get(c, key) for key in ("value", "name", "color")) for c in classes]
        values = [_whole(value) for value, _, _ in rows]
        if not values or max(values) > _LARGEST["uint16"]:
            raise ConfigError(
                got=f"class values {values}",
                expected=f"at least one class, with values up to {_LARGEST['uint16']}",
                fix="renumber the classes",
            )
        own = {
            c.value: c
            for c in make_classes({v: str(r[1] or v) for v, r in zip(values, rows, strict=True)})
        }
        return cls(
            classes=check_classes(
                [
                    LabelClass(
                        value=value, name=own[value].name, color=str(row[2] or own[value].color)
                    )
                    for value, row in zip(values, rows, strict=True)
                ]
            )
        )

    @property
    def dtype(self) -> str:
        """Smallest type that holds the values and one for nodata."""
        return "uint8" if max(c.value for c in self.classes) <= _LARGEST["uint8"] else "uint16"

    @property
    def nodata(self) -> int:
        """255, or 65535 where a class has a value above 254."""
        return _LARGEST[self.dtype] + 1

    @property
    def values(self) -> tuple[int, ...]:
        """Values in the order of the scores."""
        return tuple(c.value for c in self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the scores."""
        return tuple(c.name for c in self.classes)

    def as_json(self) -> list[dict[str, Any]]:
        """For records and metadata."""
        return classes_to_json(self.classes)


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, Mapping) else getattr(entry, key, None)


def _whole(value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0 or number != float(value):
        raise ConfigError(
            got=f"class value {value!r}",
            expected="a whole number from 0",
            fix="give every class a number in the labels",
        )
    return number
