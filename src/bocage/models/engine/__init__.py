"""The fast encoder: same answers as ``bocage.models.encoder``, in a fraction of the time."""

from bocage.models.engine.batch import choose_batch
from bocage.models.engine.build import (
    PRECISIONS,
    check_compile,
    choose_precision,
    fast_encoder,
)
from bocage.models.engine.fast import FastEncoder

__all__ = [
    "PRECISIONS",
    "FastEncoder",
    "check_compile",
    "choose_batch",
    "choose_precision",
    "fast_encoder",
]
