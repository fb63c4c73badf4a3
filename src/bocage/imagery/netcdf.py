"""NetCDF files and Zarr groups, opened lazily for xarray_source."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bocage.errors import ConfigError, InputError, SourceError

if TYPE_CHECKING:
    import xarray as xr

NETCDF_SUFFIXES = (".nc", ".nc4", ".cdf", ".h5")


def is_netcdf(path: str) -> bool:
    """Whether a path names a NetCDF file."""
    return Path(path).suffix.lower() in NETCDF_SUFFIXES


def is_zarr(path: str) -> bool:
    """Whether a path is a Zarr group."""
    folder = Path(path)
    return path.rstrip("/").endswith(".zarr") or any(
        (folder / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")
    )


def open_netcdf(path: str) -> xr.Dataset:
    """A NetCDF file as a lazy Dataset; ConfigError without the extra, SourceError if unreadable."""
    import xarray as xr

    _require_file(path)
    with Path(path).open("rb") as file:
        classic = file.read(3) == b"CDF"
    engine, module = ("scipy", "scipy") if classic else ("h5netcdf", "h5netcdf")
    needed = (module,) if classic else (module, "h5py")
    if any(find_spec(name) is None for name in needed):
        raise ConfigError(
            got=f"{path}, a {'classic ' if classic else ''}NetCDF file",
            expected=f"the package {' and '.join(needed)} to read it",
            fix='pip install "bocage[netcdf]"' + (" scipy" if classic else ""),
        )
    try:
        return xr.open_dataset(path, engine=engine, decode_coords="all")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unreadable(path, "NetCDF", error) from error


def open_zarr(path: str) -> xr.Dataset:
    """A Zarr group as a lazy Dataset; SourceError if unreadable, InputError for embeddings."""
    import xarray as xr

    if "://" not in path:
        _require_file(path)
    try:
        dataset = xr.open_dataset(path, engine="zarr", chunks=None, decode_coords="all")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unreadable(path, "Zarr", error) from error
    if any(str(name).startswith("geoemb:") for name in dataset.attrs):
        raise InputError(
            got=f"{path}, which holds embeddings already",
            expected="the imagery that they are made from",
            fix="open it with open_embeddings, or pass it to bocage preview, search, probe, "
            "predict or change",
        )
    return dataset


def _require_file(path: str) -> None:
    if not Path(path).exists():
        raise SourceError(
            got=f"{path}, which does not exist",
            expected="a NetCDF file or Zarr group",
            fix="check the spelling of the path",
        )


def _unreadable(path: str, kind: str, error: Exception) -> SourceError:
    reason = " ".join(str(error).split())[:300]
    return SourceError(
        got=f"{path}, which cannot be opened as {kind} ({reason})",
        expected=f"a complete {kind} source",
        fix="fetch or copy it again",
    )
