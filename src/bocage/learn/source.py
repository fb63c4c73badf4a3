"""From the addresses a user names to labels, embeddings and imagery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import ConfigError
from bocage.learn.labels import Labels, read_labels
from bocage.learn.mask import Mask, read_mask

if TYPE_CHECKING:
    import xarray as xr

RASTERS = {".tif", ".tiff", ".vrt", ".jp2", ".img"}

DEFAULT_MODEL = "olmoearth-v1.2-nano"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Embeddings, and the imagery behind them if it is at hand."""

    embeddings: xr.DataArray
    stack: xr.Dataset | None


def read_any_labels(
    paths: Sequence[Path], *, year: int | None = None, **options: Any
) -> Labels | Mask:
    """Shapes with `read_labels`, or one raster with `read_mask`."""
    rasters = [p for p in paths if p.suffix.lower() in RASTERS]
    if not rasters:
        return read_labels(list(paths), **options)
    if len(paths) > 1:
        raise ConfigError(
            got=f"{len(paths)} label files, one of them a raster",
            expected="one raster, or files of shapes",
            fix="merge the rasters, for example with gdalbuildvrt",
        )
    kept = {k: options[k] for k in ("task", "classes") if options.get(k) is not None}
    return read_mask(rasters[0], year=year or 0, **kept)


def open_source(
    source: str | None,
    *,
    beside: str | None,
    store: Path,
    model: str | None,
    weights: str,
    patch_size: int,
    open_imagery: Callable[[list[str]], xr.Dataset],
    say: Callable[[str], None],
) -> Opened:
    """Open embeddings; or embed imagery into `store` first, where a second run finds it.

    A source of None is imagery that `open_imagery` finds by itself, as in a catalog.
    """
    from bocage.embeddings import open_embeddings

    if model is None and source is not None and is_embeddings(source):
        stack = None if beside is None else open_imagery([beside])
        return Opened(embeddings=open_embeddings(source), stack=stack)
    if beside is not None:
        raise ConfigError(
            got=f"the imagery {beside} beside imagery",
            expected="embeddings, when imagery is named beside",
            fix="leave out --beside: the bands of what is embedded are scored anyway",
        )
    stack = open_imagery([] if source is None else [source])
    embeddings = _embed(
        stack,
        store,
        model or DEFAULT_MODEL,
        weights=weights,
        patch_size=patch_size,
        say=say,
    )
    return Opened(embeddings=embeddings, stack=stack)


def is_embeddings(source: str) -> bool:
    """Whether an address names a store or raster of embeddings, and not imagery."""
    path = Path(source)
    if "://" in source or path.suffix == ".zarr":
        return True
    if path.suffix.lower() not in {".tif", ".tiff"} or not path.exists():
        return not path.exists()  # open_embeddings then says that it does not exist
    import rasterio

    with rasterio.open(path) as file:
        return file.count > 13 or "bocage" in file.tags() or "geoemb" in str(file.tags()).lower()


def _embed(
    stack: xr.Dataset,
    store: Path,
    name: str,
    *,
    weights: str,
    patch_size: int,
    say: Callable[[str], None],
) -> xr.DataArray:
    from bocage.embeddings import open_embeddings
    from bocage.mapping import embed
    from bocage.models import load_model

    random = weights in {"random", "none"}
    model = load_model(name, weights=None if random else weights)
    if random:
        say("RANDOM WEIGHTS: scores are a baseline, not a claim.")
    result = embed(stack, model, out=store, patch_size=patch_size, report=say, show_progress=True)
    say(str(result))
    return open_embeddings(store)
