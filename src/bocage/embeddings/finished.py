"""Whether a run that writes a store is through: its markers against the blocks there are.

An unfinished store opens like a finished one, with nodata where work is to come; whoever reads it
must hear so, or takes a hole for missing imagery.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bocage.errors import BocageWarning

if TYPE_CHECKING:
    import zarr

_MARKER = re.compile(r"-?\d+_\d+_\d+")


def blocks_done(store: Path, array: zarr.Array) -> tuple[int, int] | None:
    """Finished blocks and all blocks of a store; None for stores without the markers of a run."""
    markers = store / "bocage"
    if not (markers / "identity.json").exists() or array.shards is None or array.ndim != 4:
        return None
    done = {p.stem for p in markers.glob("*.json") if _MARKER.fullmatch(p.stem)}
    counts = [-(-n // s) for n, s in zip(array.shape, array.shards, strict=True)]
    return len(done), counts[0] * counts[2] * counts[3]


def warn_unfinished(uri: str, array: zarr.Array) -> None:
    """Warn once when a local store is still being written, or its run was stopped."""
    if "://" in uri:
        return
    found = blocks_done(Path(uri), array)
    if found is not None and found[0] < found[1]:
        warnings.warn(
            f"{uri} is unfinished: {found[0]} of {found[1]} blocks are done, and the rest reads as "
            "nodata; repeat the command that made it, it goes on where it stopped",
            BocageWarning,
            stacklevel=5,
        )
