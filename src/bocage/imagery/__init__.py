"""Imagery to Stack: files, folders, NetCDF, Zarr, xarray and STAC on one grid, in product units.

A kind of source (``folder``, ``netcdf``, ``xarray_source``, ``stac``) finds bands, dates and
grid and hands over Readers (``opened.Opened``); ``open`` checks them and makes the
Stack (``stack``).
"""

from __future__ import annotations

from bocage.imagery.composite import composite
from bocage.imagery.dates import timestamps
from bocage.imagery.open import open_stack
from bocage.imagery.stack import stack_grid
from bocage.imagery.window import Window, read_window

__all__ = ["Window", "composite", "open_stack", "read_window", "stack_grid", "timestamps"]
