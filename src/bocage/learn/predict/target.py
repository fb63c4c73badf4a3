"""Where a map may be written, and whether what lies there is that map."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bocage.errors import ConfigError, StoreError


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


def is_ours(target: Path, fingerprint: str) -> bool:
    """Whether this run, or one like it, wrote the raster."""
    import rasterio

    try:
        with rasterio.open(target) as file:
            return bool(file.tags().get("BOCAGE_RUN") == fingerprint)
    except rasterio.errors.RasterioIOError:
        return False


def in_the_way(target: Path) -> StoreError:
    """The refusal to write over another map."""
    return StoreError(
        got=f"{target}, which exists and was made otherwise",
        expected="a new path, or the same inputs unchanged since, and options",
        fix="choose another --out, or delete the file",
    )
