"""Search: embeddings to small spatial shards, and what looks like what in them.

    index("emb.zarr", "emb.index")
    hits = search("emb.index", (36.82, -1.29), area=(36, -2, 38, 0), options=SearchOptions(k=20))
    hits.write("hits.geojson")

Names are found on first use, so that importing this package loads neither pyarrow nor faiss.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bocage.search.build import IndexOptions, IndexResult, index
    from bocage.search.opened import OpenedIndex, open_index
    from bocage.search.query import SearchOptions, search
    from bocage.search.results import Hits
    from bocage.search.sources import ArraySource
    from bocage.search.views import view

_HOME = {
    "ArraySource": "sources",
    "Hits": "results",
    "IndexOptions": "build",
    "IndexResult": "build",
    "OpenedIndex": "opened",
    "SearchOptions": "query",
    "index": "build",
    "open_index": "opened",
    "search": "query",
    "view": "views",
}

__all__ = [
    "ArraySource",
    "Hits",
    "IndexOptions",
    "IndexResult",
    "OpenedIndex",
    "SearchOptions",
    "index",
    "open_index",
    "search",
    "view",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"bocage.search.{_HOME[name]}"), name)
    raise AttributeError(f"module 'bocage.search' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
