"""bocage turns satellite imagery into maps with the OlmoEarth models, cheaply.

Importing bocage loads neither torch nor GDAL nor xarray: public names are found on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bocage._version import __version__

if TYPE_CHECKING:
    from bocage.embeddings import open_embeddings
    from bocage.imagery import composite, open_stack
    from bocage.mapping import embed
    from bocage.models import list_models, load_model
    from bocage.zonal import zonal_statistics

_HOME = {
    "load_model": "bocage.models",
    "list_models": "bocage.models",
    "open_stack": "bocage.imagery",
    "composite": "bocage.imagery",
    "embed": "bocage.mapping",
    "open_embeddings": "bocage.embeddings",
    "zonal_statistics": "bocage.zonal",
}

__all__ = [
    "__version__",
    "composite",
    "embed",
    "list_models",
    "load_model",
    "open_embeddings",
    "open_stack",
    "zonal_statistics",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'bocage' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
