"""What compressing reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CompressResult:
    """What was written."""

    path: Path
    codec: str
    n_vectors: int
    """Vectors with data that were encoded by this run."""

    n_bytes: int
    float_bytes: int
    """Bytes of the same cells as float32."""

    n_skipped: int = 0
    """Blocks of a grid, or parts of a table, that an earlier run had finished."""
