"""Embeddings on disk: Zarr stores and COGs, written and read; previews, checks, STAC items.

Public names are found on first use, so that importing this package loads neither GDAL, xarray nor
zarr.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bocage.embeddings.cog import export_cog
    from bocage.embeddings.description import Info, info
    from bocage.embeddings.grid import EmbeddingGrid
    from bocage.embeddings.open import open_embeddings
    from bocage.embeddings.picture import Preview, preview
    from bocage.embeddings.stac import write_stac_item
    from bocage.embeddings.store import (
        create_store,
        put_shard,
        shard_bytes,
        shard_path,
        write_shard,
    )
    from bocage.embeddings.validation import Finding, validate

_HOME = {
    "EmbeddingGrid": "grid",
    "create_store": "store",
    "export_cog": "cog",
    "Finding": "validation",
    "Info": "description",
    "info": "description",
    "Preview": "picture",
    "preview": "picture",
    "validate": "validation",
    "write_stac_item": "stac",
    "open_embeddings": "open",
    "put_shard": "store",
    "shard_bytes": "store",
    "shard_path": "store",
    "write_shard": "store",
}

__all__ = [
    "EmbeddingGrid",
    "Finding",
    "Info",
    "Preview",
    "create_store",
    "export_cog",
    "info",
    "open_embeddings",
    "preview",
    "put_shard",
    "shard_bytes",
    "shard_path",
    "validate",
    "write_shard",
    "write_stac_item",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"bocage.embeddings.{_HOME[name]}"), name)
    raise AttributeError(f"module 'bocage.embeddings' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
