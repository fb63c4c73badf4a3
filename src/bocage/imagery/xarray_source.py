"""xarray Datasets and DataArrays as imagery; NetCDF, Zarr and STAC cubes come here too.

Variables (or entries of a band dimension) become bands by name, so any layout works whose variables
have y, x and perhaps time: openEO and gfmap cubes, odc-stac, rioxarray, or a saved Stack. What is
found becomes cubes, which read themselves (see cubes).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine

from bocage.errors import InputError
from bocage.imagery import bands as names
from bocage.imagery import offsets
from bocage.imagery.cubes import ArrayBand, Cube, open_cubes
from bocage.imagery.dates import parse_date
from bocage.imagery.opened import Opened, OpenOptions
from bocage.imagery.stack import transform_of_centers
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger(__name__)

_Y_NAMES = ("y", "Y", "lat", "latitude", "northing")
_X_NAMES = ("x", "X", "lon", "longitude", "easting")
_TIME_NAMES = ("time", "t", "date", "datetime")
_BAND_NAMES = ("band", "bands", "variable", "channel")


def open_xarray(
    sources: Sequence[tuple[str, xr.Dataset | xr.DataArray]], options: OpenOptions
) -> Opened:
    """Readers over named Datasets or DataArrays, one per sensor found in them."""
    cubes: list[Cube] = []
    level_1c = ""
    for name, source in sources:
        found, why = find_cubes(name, source, options)
        cubes += found
        level_1c = level_1c or why
    return open_cubes(cubes, options, level_1c=level_1c)


def find_cubes(
    name: str, source: xr.Dataset | xr.DataArray, options: OpenOptions
) -> tuple[list[Cube], str]:
    """The sensors in a Dataset, and why it looks like Level-1C; InputError if no band is named."""
    dataset = _as_dataset(source, options)
    variables = _plain_variables(dataset, options)
    crs = find_crs(dataset)
    cubes: dict[str, Cube] = {}
    tokens = {key: _token_of(key, values, options) for key, (values, _) in variables.items()}
    neighbours = frozenset(t for t in tokens.values() if t)
    level_1c = ""
    for key, (values, stated) in variables.items():
        token = tokens[key]
        if token is None:
            log.info("%s: variable %s is no band the models read; left out", name, key)
            continue
        where = f"variable {key} of {name}"
        said = stated or names.product_sensor(f"{values.attrs.get('long_name', '')}/{key}")
        if options.sensor and said and said != options.sensor:
            continue
        cube_shape = _oriented(values, where)
        named = names.name_band(
            token,
            sensor=options.sensor or said,
            neighbours=neighbours,
            resolution_m=abs(cube_shape[1].a),
            where=where,
        )
        if token == "B10" and (options.sensor or said) == "sentinel2_l2a":
            level_1c = f"{name} has band B10, which L2A has not"
        if named is None:
            continue
        oriented, transform = cube_shape
        cube = cubes.get(named.sensor)
        if cube is None:
            if not crs:
                raise InputError(
                    got=f"{name} without a CRS",
                    expected="a CF grid mapping (spatial_ref) or attrs['crs']",
                    fix='set it, for example: dataset = dataset.rio.write_crs("EPSG:32631")',
                )
            cube = cubes[named.sensor] = Cube(
                name=name,
                sensor=named.sensor,
                crs=crs,
                transform=transform,
                shape_yx=(oriented.sizes["y"], oriented.sizes["x"]),
                dates=_dates_of(oriented, options, name),
            )
        _add_band(cube, oriented, transform, named, where=where, options=options)
    if options.sensor is not None:
        cubes = {s: c for s, c in cubes.items() if s == options.sensor}
    found = [cube for cube in cubes.values() if cube.bands]
    if not found:
        raise InputError(
            got=f"{name} with variables {', '.join(variables) or '(none)'}, none of which is "
            f"named as a band of {options.sensor or ' or '.join(SENSORS)}",
            expected="variables named B02, B03, ... or VV, VH",
            fix='pass bands={"variable": "B02", ...}, or bands=["B02", ...] in order',
        )
    return found, level_1c


def _add_band(
    cube: Cube,
    values: xr.DataArray,
    transform: Affine,
    named: names.NamedBand,
    *,
    where: str,
    options: OpenOptions,
) -> None:
    if (values.sizes["y"], values.sizes["x"]) != cube.shape_yx or not transform.almost_equals(
        cube.transform, 1e-6 * abs(transform.a)
    ):
        raise InputError(
            got=f"unequal grids: {where} is {values.sizes['y']} x {values.sizes['x']} pixels, "
            f"others {cube.shape_yx[0]} x {cube.shape_yx[1]}",
            expected="one grid per Dataset",
            fix="pass Datasets of different grids as a list, or resample them first",
        )
    if named.band in cube.bands:
        raise InputError(
            got=f"band {named.band} twice in {cube.name} ({where})",
            expected="every band once",
            fix="drop one of the variables, or name them with bands=",
        )
    nodata = _number(values.attrs.get("nodata", values.attrs.get("_FillValue")))
    if named.is_cloud_mask:
        cube.mask = ArrayBand(values=values, band=named.band, nodata=nodata, is_cloud_mask=True)
        return
    scale, offset, settled = _units_of(values, named.sensor, options)
    cube.offset_settled = cube.offset_settled or settled
    cube.bands[named.band] = ArrayBand(
        values=values, band=named.band, nodata=nodata, scale=scale, offset=offset
    )


def _units_of(
    values: xr.DataArray, sensor: str, options: OpenOptions
) -> tuple[float | str, float, bool]:
    """Scale, offset, and whether the offset is settled, of values as xarray gives them."""
    scale: float | str = 1.0
    offset, settled = 0.0, False
    packed = _number(values.encoding.get("scale_factor"))
    if packed is not None and packed < 0.01 and sensor == "sentinel2_l2a":
        # xarray has unpacked to reflectance 0..1 already, offset included.
        scale, settled = 10_000.0, _number(values.encoding.get("add_offset")) not in (None, 0.0)
    stored = offsets.from_scale_and_offset(
        sensor,
        _number(values.attrs.get("scale_factor")) or 1.0,
        _number(values.attrs.get("add_offset")) or 0.0,
    )
    if stored is not None:
        scale, offset = stored
        settled = offset != 0
    given_scale, given_offset = options.scale_of(sensor), options.offset_of(sensor)
    if given_scale is not None:
        scale = given_scale
    if given_offset is not None:
        offset, settled = given_offset, True
    return scale, offset, settled


def _as_dataset(source: xr.Dataset | xr.DataArray, options: OpenOptions) -> xr.Dataset:
    """A DataArray becomes a Dataset of its bands; a Dataset passes."""
    import xarray as xr

    if isinstance(source, xr.Dataset):
        dataset = source
    else:
        dataset = source.to_dataset(name=str(source.name or "values"))
    for key in [str(name) for name in dataset.data_vars]:
        values = dataset[key]
        dim = next((str(d) for d in values.dims if d in _BAND_NAMES), None)
        if dim is None:
            continue
        labels = _band_labels(values, dim, options)
        split = {label: values.isel({dim: i}, drop=True) for i, label in enumerate(labels) if label}
        dataset = dataset.drop_vars(key).assign(split)
    return dataset


def _band_labels(values: xr.DataArray, dim: str, options: OpenOptions) -> list[str]:
    count = values.sizes[dim]
    if options.bands is not None and not isinstance(options.bands, dict):
        given = [options.bands] if isinstance(options.bands, str) else list(options.bands)
        if len(given) != count:
            raise InputError(
                got=f"{len(given)} names in bands= for {count} bands",
                expected="one name per band, in order",
                fix='name every band, "" for one to skip',
            )
        labels = [str(b or "") for b in given]
    else:
        long_name = values.attrs.get("long_name")
        if isinstance(long_name, tuple | list) and len(long_name) == count:
            labels = [str(label) for label in long_name]  # rioxarray's band descriptions.
        elif dim in values.coords:
            labels = [str(label) for label in values[dim].values]
        else:
            labels = [str(i) for i in range(count)]
    doubled = {label for label in labels if label and labels.count(label) > 1}
    if doubled:
        raise InputError(
            got=f"band {sorted(doubled)[0]} twice",
            expected="every band once",
            fix='name the bands in order with bands=, "" for one to skip',
        )
    return labels


def _plain_variables(
    dataset: xr.Dataset, options: OpenOptions
) -> dict[str, tuple[xr.DataArray, str | None]]:
    """Variables [(time,) y, x] by name, with the sensor where the layout states it (a Stack)."""
    found: dict[str, tuple[xr.DataArray, str | None]] = {}
    for key, values in dataset.data_vars.items():
        band_dim = f"{key}_band"
        if key in SENSORS and band_dim in values.dims:
            for i, band in enumerate(values[band_dim].values):
                found[f"{key}:{band}"] = (values.isel({band_dim: i}, drop=True), str(key))
        elif _axis(values, _Y_NAMES) and _axis(values, _X_NAMES):
            found[str(key)] = (values, None)
    if options.bands is not None and not isinstance(options.bands, dict):
        given = [options.bands] if isinstance(options.bands, str) else list(options.bands)
        if not set(given) & set(found) and len(given) == len(found):
            return {str(g): v for g, v in zip(given, found.values(), strict=True) if g}
    return found


def _token_of(key: str, values: xr.DataArray, options: OpenOptions) -> str | None:
    if isinstance(options.bands, dict):
        return str(options.bands[key]).upper() if key in options.bands else None
    token = names.band_token(key.rsplit(":", maxsplit=1)[-1])
    return token or names.band_token(str(values.attrs.get("long_name", "")))


def _axis(values: xr.DataArray, known: Sequence[str]) -> str | None:
    return next((str(d) for d in values.dims if d in known), None)


def _oriented(values: xr.DataArray, where: str) -> tuple[xr.DataArray, Affine]:
    """Dims time, y, x with y falling and x growing, and the transform."""
    y, x, time = (_axis(values, known) for known in (_Y_NAMES, _X_NAMES, _TIME_NAMES))
    assert y is not None
    assert x is not None
    for axis in (y, x):
        if axis not in values.coords:
            raise InputError(
                got=f"{where} without coordinates along {axis}",
                expected="pixel centres as coordinates x and y",
                fix="assign them, or open the original file",
            )
    values = values.rename({a: b for a, b in ((y, "y"), (x, "x"), (time, "time")) if a and a != b})
    if time is None:
        values = values.expand_dims("time")
    extra = [str(d) for d in values.dims if d not in ("time", "y", "x")]
    if extra:
        raise InputError(
            got=f"{where} with dimension(s) {', '.join(extra)}",
            expected="time, y and x (and a dimension named band)",
            fix="select along the others first, or rename the band dimension to band",
        )
    values = values.transpose("time", "y", "x")
    if values.sizes["y"] > 1 and values["y"].values[0] < values["y"].values[-1]:
        values = values.isel(y=slice(None, None, -1))
    if values.sizes["x"] > 1 and values["x"].values[0] > values["x"].values[-1]:
        values = values.isel(x=slice(None, None, -1))
    stated = _stated_transform(values)
    return values, transform_of_centers(
        values["y"].values.astype(float), values["x"].values.astype(float), stated
    )


def _stated_transform(values: xr.DataArray) -> Affine | None:
    for coord in values.coords.values():
        text = coord.attrs.get("GeoTransform")
        if text:
            c, a, b, f, d, e = (float(v) for v in str(text).split())
            return Affine(a, b, c, d, e, f)
    return None


def _dates_of(values: xr.DataArray, options: OpenOptions, name: str) -> list[np.datetime64 | None]:
    count = values.sizes["time"]
    given = options.date
    if given is not None:
        dates = list(given) if isinstance(given, list | tuple | np.ndarray) else [given]
        if len(dates) != count:
            raise InputError(
                got=f"{len(dates)} date(s) for {count} time steps of {name}",
                expected="one date per time step",
                fix="pass date= as a list, in the order of the time steps",
            )
        return [parse_date(date) for date in dates]
    if "time" not in values.coords:
        if count > 1:
            raise InputError(
                got=f"{count} time steps without dates in {name}",
                expected="a time coordinate",
                fix="pass date= with one date per time step",
            )
        return [None]
    stamps = np.atleast_1d(values["time"].values)
    if stamps.dtype.kind != "M":
        raise InputError(
            got=f"time steps such as {stamps[0]!r} in {name}",
            expected="datetime64 values",
            fix="decode the times (xarray.decode_cf), or pass date=",
        )
    return [parse_date(stamp) for stamp in stamps]


def find_crs(dataset: xr.Dataset) -> str:
    """The CRS of a Dataset from its grid mapping or attributes; "" if it states none."""
    from rasterio.errors import CRSError

    from bocage.imagery.rasters import crs_name

    for variable in {**dataset.coords, **dataset.data_vars}.values():
        for attr in ("crs_wkt", "spatial_ref"):
            if variable.attrs.get(attr):
                return crs_name(variable.attrs[attr])
    stated: list[Mapping[Any, Any]] = [dataset.attrs]
    stated += [variable.attrs for variable in dataset.data_vars.values()]
    for attrs in stated:
        for attr in ("crs", "epsg", "proj:code", "proj:epsg"):
            value = attrs.get(attr)
            if value:
                try:
                    return crs_name(int(value) if str(value).isdigit() else value)
                except CRSError:
                    log.info("cannot understand CRS %r", value)
    return ""


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None
