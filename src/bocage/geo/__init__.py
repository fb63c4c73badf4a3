"""Area to windows: grids, blocks and windows, the UTM lattice, Major TOM names. Pure maths."""

from bocage.geo.grid import Grid
from bocage.geo.lattice import northern_grid, utm_zone
from bocage.geo.major_tom import major_tom_name
from bocage.geo.windows import Block, Layout, Window, lay_out

__all__ = [
    "Block",
    "Grid",
    "Layout",
    "Window",
    "lay_out",
    "major_tom_name",
    "northern_grid",
    "utm_zone",
]
