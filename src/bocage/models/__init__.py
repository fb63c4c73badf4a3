"""OlmoEarth models: strict loading, exact encoding, missing data handled per sample.

Public names are found on first use, so that the list of models needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bocage.models.config import ModelConfig
    from bocage.models.encoded import Encoded
    from bocage.models.load import load_model
    from bocage.models.model import Model
    from bocage.models.releases import list_models

_HOME = {
    "Encoded": "encoded",
    "Model": "model",
    "ModelConfig": "config",
    "list_models": "releases",
    "load_model": "load",
}

__all__ = ["Encoded", "Model", "ModelConfig", "list_models", "load_model"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"bocage.models.{_HOME[name]}"), name)
    raise AttributeError(f"module 'bocage.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
