"""What is summed up under the zones: embeddings, a map of classes, or bands of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bocage.errors import SourceError
from bocage.geo import Grid

if TYPE_CHECKING:
    from bocage.types import FloatArray

Kind = Literal["embeddings", "classes", "presence", "values"]
KINDS: tuple[Kind, ...] = ("embeddings", "classes", "values")
"""Kinds that a user may state; presence (one band of 0 and 1 per class) is a class map of ours."""

AHEAD = 4
"""Tiles of a remote map that are fetched while one is summed."""

Read = Callable[[int, slice, slice], "FloatArray"]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A raster of one or several years, read one rectangle at a time."""

    read: Read
    """Position of the year, rows, columns to [C, h, w] float32; NaN where there is no data."""

    grid: Grid
    kind: Kind
    features: tuple[str, ...]
    """Name of each band: 000, 001, ... of embeddings."""

    years: tuple[int, ...]
    """0 is an unknown year."""

    name: str
    """As given by the user."""

    n_ahead: int = 0
    """Tiles to read ahead: local files are there at once, a server keeps one waiting."""

    classes: Mapping[int, str] = field(default_factory=dict)
    """Names of class values, as far as the file says."""

    attrs: Mapping[str, Any] = field(default_factory=dict)


def unreadable(path: str, error: Exception) -> SourceError:
    """What to raise when GDAL cannot open a file."""
    return SourceError(
        got=f"{path}, which GDAL cannot open ({error})",
        expected="embeddings, or a raster of classes or numbers",
        fix="check the path, and that the file is complete",
    )
