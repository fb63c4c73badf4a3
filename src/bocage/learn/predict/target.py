"""Where a map may be written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bocage.errors import ConfigError


def check_target(out: Path, inputs: Iterable[object] = ()) -> Path:
    """The path of a map; ConfigError for another ending, or a place inside a store it is made of.

    A map in a store would be part of its own inputs, which would never be the same again.
    """
    if out.suffix.lower() not in {".tif", ".tiff"}:
        raise ConfigError(
            got=f"--out {out}",
            expected="a name that ends in .tif",
            fix=f"use --out {out.with_suffix('.tif')}",
        )
    for store in inputs:
        if not isinstance(store, (str, Path)) or not (Path(store) / "zarr.json").exists():
            continue
        if out.resolve().is_relative_to(Path(store).resolve()):
            raise ConfigError(
                got=f"--out {out} inside of {store}",
                expected="a place outside of what the map is made from",
                fix=f"use --out {Path(store).parent / out.name}",
            )
    return out
