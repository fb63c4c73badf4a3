"""A map laid on a window of imagery: land cover, elevation, canopy height."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bocage.errors import InputError, SourceError
from bocage.pretrain.modalities import modality

if TYPE_CHECKING:
    import xarray as xr

    from bocage.types import FloatArray, PathLike


def read_map(
    path: PathLike, name: str, stack: xr.Dataset, corner_yx: tuple[int, int], size_px: int
) -> FloatArray | None:
    """Values [H, W, 1, C] of a raster at a window of a stack, NaN where it has none.

    Nearest neighbour, whatever the raster's CRS and resolution. None if the window lies outside.
    SourceError if the raster cannot be read, InputError if it has not the modality's bands.
    """
    import rasterio
    from affine import Affine
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError
    from rasterio.vrt import WarpedVRT

    from bocage.imagery import stack_grid

    row, col = corner_yx
    bands = modality(name).bands
    grid = stack_grid(stack)
    try:
        with rasterio.open(path) as source:
            if source.count != len(bands):
                raise InputError(
                    got=f"{source.count} bands in {path}",
                    expected=f"{len(bands)} for {name}: {' '.join(bands)}",
                    fix="give a raster with these bands",
                )
            with WarpedVRT(
                source,
                crs=grid.crs,
                transform=grid.transform @ Affine.translation(col, row),
                width=size_px,
                height=size_px,
                resampling=Resampling.nearest,
                # Outside the raster is missing, not class 0.
                add_alpha=source.nodata is None,
            ) as warped:
                indexes = list(range(1, len(bands) + 1))
                x: FloatArray = warped.read(indexes).astype(np.float32)
                valid = warped.dataset_mask() > 0
    except RasterioError as error:
        raise SourceError(
            got=f"map {path} that cannot be read ({error})",
            expected="a raster that GDAL opens",
            fix="check the file",
        ) from error
    x[:, ~valid] = np.nan
    if not np.isfinite(x).any():
        return None
    moved: FloatArray = np.moveaxis(x, 0, -1)[:, :, None]
    return moved
