"""From the addresses a user names to labels, embeddings and imagery."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import ConfigError, SourceError, StoreError
from bocage.learn.labels import Labels, read_labels
from bocage.learn.mask import Mask, read_mask

if TYPE_CHECKING:
    import xarray as xr

    from bocage.embeddings.lazy_raster import LazyRaster
    from bocage.types import PathLike

RASTERS = {".tif", ".tiff", ".vrt", ".jp2", ".img"}

DEFAULT_MODEL = "olmoearth-v1.2-nano"

UNNAMED = range(14, 100_000)
"""Bands of a raster that can only be embeddings, whatever it says: no sensor here has so many."""


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
    if model is None and source is not None:
        found = embeddings_at(source, dims=UNNAMED)
        if found is not None:
            stack = None if beside is None else open_imagery([beside])
            return Opened(embeddings=found.to_dataarray(), stack=stack)
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


def embeddings_at(source: PathLike, *, dims: Container[int] = ()) -> LazyRaster | None:
    """The embeddings that an address holds; None where it holds imagery or a plain raster.

    A raster is known by the model in its metadata, or by one of `dims` as its number of bands.
    SourceError if there is nothing, or nothing that opens.
    """
    from bocage.embeddings.open import open_raster
    from bocage.embeddings.zarr_layout import is_zarr

    address = str(source)
    suffix = Path(address).suffix.lower()
    if "://" not in address and not Path(address).exists():
        raise SourceError(
            got=f"{address}, which does not exist",
            expected="embeddings, a scene or a raster",
            fix="check the path",
        )
    if is_zarr(address) and suffix != ".json":  # an item of a remote catalog is no store
        return None if "://" not in address and _is_cube(address) else open_raster(address)
    if suffix not in {".tif", ".tiff", ".vrt"} or Path(address).is_dir():
        return None
    try:
        found = open_raster(address)
    except StoreError:
        return None  # not float and without a rule of quantization: bands as they are
    return found if found.attrs.get("model") or found.shape[1] in dims else None


def _is_cube(store: str) -> bool:
    """Whether a Zarr group has nothing of what a store of embeddings has."""
    from bocage.embeddings.zarr_layout import ARRAY, open_root, zone_names

    root = open_root(store)
    return ARRAY not in root and not zone_names(root)


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
