"""A Stack and a function of a window to a raster on disk: plan, worker, markers, resume.

Reading order: config (what can be chosen), plan (what follows from it), worker (one block: read,
encode, quantize), pipeline (the three at once), markers (what is finished), embed (all of it).
"""

from bocage.mapping.config import EmbedConfig
from bocage.mapping.embed import check_request, embed
from bocage.mapping.plan import EmbedPlan, WindowModel, make_plan
from bocage.mapping.result import EmbedResult
from bocage.mapping.seams import WindowSensitivity, seam_figure, window_sensitivity
from bocage.mapping.timing import time_window, window_encoder

__all__ = [
    "EmbedConfig",
    "EmbedPlan",
    "EmbedResult",
    "WindowModel",
    "WindowSensitivity",
    "check_request",
    "embed",
    "make_plan",
    "seam_figure",
    "time_window",
    "window_encoder",
    "window_sensitivity",
]
