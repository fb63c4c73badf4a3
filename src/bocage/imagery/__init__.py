"""Imagery to Stack: files, folders, NetCDF, Zarr, xarray and STAC on one grid, in product units."""

from __future__ import annotations

from bocage.imagery.dates import timestamps
from bocage.imagery.open import open_stack
from bocage.imagery.stack import stack_grid
from bocage.imagery.window import Window, read_window

__all__ = ["Window", "open_stack", "read_window", "stack_grid", "timestamps"]
