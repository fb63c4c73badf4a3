"""Files of points, lines and polygons as tables of shapes, and the package that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bocage.errors import ConfigError, InputError, SourceError


def read_shapes(path: str, layer: str | None = None, *, what: str, extra: str = "learn") -> Any:
    """The GeoDataFrame of a vector file, or of one of its layers; `what` says which shapes it has.

    GeoParquet, and what GDAL reads: GeoJSON, GeoPackage, Shapefile; an address too. SourceError if
    there is nothing that opens, InputError for a table without shapes.
    """
    geopandas = import_geopandas(what, extra)
    if "://" not in path and not Path(path).exists():
        raise SourceError(
            got=f"{path}, which does not exist",
            expected=f"a file of {what}",
            fix="check the path",
        )
    try:
        if path.lower().endswith((".parquet", ".geoparquet", ".gpq")):
            return geopandas.read_parquet(path)
        frame = geopandas.read_file(path, **({} if layer is None else {"layer": layer}))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        # pyogrio's errors are RuntimeErrors, pyarrow's are ValueErrors; addresses of GeoParquet
        # need a package more.
        raise SourceError(
            got=f"{path} ({str(error).splitlines()[0]})",
            expected=f"{what} as GeoParquet, GeoPackage, GeoJSON, Shapefile or the like",
            fix="check that the file is whole and, if it has layers, name one (--layer)",
        ) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(
            got=f"{Path(path).name}, a table without shapes",
            expected=what,
            fix="if it has layers, name the one with shapes (--layer)",
        )
    return frame


def import_geopandas(what: str = "labelled places", extra: str = "learn") -> Any:
    """The package geopandas, or how to install it."""
    try:
        import geopandas
    except ImportError as error:
        raise ConfigError(
            got=f"{what} without the package geopandas",
            expected=f"the extra {extra}",
            fix=f'pip install "bocage[{extra}]"',
        ) from error
    return geopandas
