"""OlmoEarth models: strict loading, exact encoding, missing data handled per sample."""

from bocage.models.config import ModelConfig
from bocage.models.encoded import Encoded
from bocage.models.load import load_model
from bocage.models.model import Model
from bocage.models.releases import list_models

__all__ = ["Encoded", "Model", "ModelConfig", "list_models", "load_model"]
