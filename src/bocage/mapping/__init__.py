"""A Stack and a function of a window to a raster on disk: plan, worker, markers, resume.

Reading order: config (what can be chosen), plan (what follows from it), worker (one block: read,
encode, quantize), pipeline (the three at once), markers (what is finished), embed (all of it).
"""

from bocage.mapping.config import EmbedConfig
from bocage.mapping.embed import EmbedResult, check_request, embed, time_window, window_encoder
from bocage.mapping.plan import EmbedPlan, WindowModel, make_plan
from bocage.mapping.seams import seam_figure

__all__ = [
    "EmbedConfig",
    "EmbedPlan",
    "EmbedResult",
    "WindowModel",
    "check_request",
    "embed",
    "make_plan",
    "seam_figure",
    "time_window",
    "window_encoder",
]
