"""open_embeddings: any known store or raster of embeddings as one kind of array."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bocage.errors import SourceError

if TYPE_CHECKING:
    import xarray as xr

    from bocage.embeddings.lazy_raster import LazyRaster
    from bocage.types import PathLike


def open_embeddings(
    uri: PathLike, *, dims: int | None = None, zone: int | str | None = None
) -> xr.DataArray:
    """Open embeddings lazily: our Zarr or COG, OlmoEarth, AlphaEarth or TESSERA, local or remote.

    Gives float32 (time, band, y, x), dequantized, NaN for nodata, y falling, time as calendar year
    (0 = unknown), CRS in `spatial_ref` for `.rio` and `.odc`. Vectors have no unit length unless
    `attrs["unit_norm"]` is 1. `dims=64` takes the first 64 values of a model trained for it; `zone`
    picks the UTM zone of a store with several. Maps of more than 20,000 chunks (whole zones) are
    lazy by xarray and not by dask: select an area first, then `.chunk()` or `.load()` it.

    SourceError if it cannot be read, StoreError if it is not understood; an unknown quantization is
    refused, never guessed.
    """
    return open_raster(uri, dims=dims, zone=zone).to_dataarray()


def open_raster(
    uri: PathLike, *, dims: int | None = None, zone: int | str | None = None
) -> LazyRaster:
    """The same without xarray, for rooms that read windows themselves."""
    from bocage.embeddings.zarr_layout import is_zarr, open_zarr

    address = str(uri)
    if "://" not in address and not Path(address).exists():
        raise SourceError(
            got=f"{address}, which does not exist",
            expected="a Zarr store or a GeoTIFF of embeddings",
            fix="check the path",
        )
    if is_zarr(address):
        return open_zarr(address, dims=dims, zone=zone)
    from bocage.embeddings.cog_layout import open_cog

    return open_cog(address, dims=dims)
