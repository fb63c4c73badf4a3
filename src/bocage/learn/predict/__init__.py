"""Maps from what was learned: a probe or a fine-tuned network over embeddings or scenes.

Reading order: config (what can be chosen), predictor (what scores a cell), scores (every cell,
block by block), outputs (the files of a map) with layer, legend, area, polygons, style, picture,
and prediction (all of it).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bocage.learn.predict.config import PredictConfig
    from bocage.learn.predict.prediction import describe, is_embeddings, predict
    from bocage.learn.predict.result import PredictResult

_HOME = {
    "PredictConfig": "config",
    "PredictResult": "result",
    "describe": "prediction",
    "is_embeddings": "prediction",
    "predict": "prediction",
}

__all__ = ["PredictConfig", "PredictResult", "describe", "is_embeddings", "predict"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"bocage.learn.predict.{_HOME[name]}"), name)
    raise AttributeError(f"module 'bocage.learn.predict' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
