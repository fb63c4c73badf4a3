"""Named aliases that the whole house shares; axis order is part of the name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
"""Real values: imagery in product units, or embeddings x."""

CodeArray: TypeAlias = NDArray[Any]
"""Stored codes q of a codec; never used where real vectors are meant."""

ValidArray: TypeAlias = NDArray[np.bool_]
"""True where a value may be used."""

PathLike: TypeAlias = str | Path

ShapeYX: TypeAlias = tuple[int, int]
"""Rows, columns."""

BboxWSEN: TypeAlias = tuple[float, float, float, float]
"""West, south, east, north in the units of a stated CRS."""
