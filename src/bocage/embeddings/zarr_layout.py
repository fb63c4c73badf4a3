"""Reading Zarr stores of embeddings: ours, OlmoEarth's, AlphaEarth's mosaic, TESSERA's.

They share the geoemb convention and differ in the rest: one group per UTM zone or one global array,
axes in another order or under other names, codes with one rule or with an array of scales. Axes are
found by name, the direction of y by the transform, the rule by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from bocage.embeddings.finished import warn_unfinished
from bocage.embeddings.lazy_raster import LazyRaster, north_up, plain_values, prefix_length
from bocage.embeddings.quantization import Quantization, own_scale, quantization_of
from bocage.errors import InputError, SourceError, StoreError

if TYPE_CHECKING:
    import zarr

    from bocage.types import FloatArray

ARRAY = "embeddings"

AXES = {
    "time": ("time", "year"),
    "band": ("band", "embedding", "feature", "channel"),
    "y": ("y", "northing", "lat", "latitude"),
    "x": ("x", "easting", "lon", "longitude"),
}
"""Names under which each axis occurs."""

_ALPHAEARTH = re.compile(r"2507\.22291|GOOGLE_SATELLITE_EMBEDDING|alphaearth|/aef", re.IGNORECASE)


def is_zarr(uri: str) -> bool:
    """Whether the address looks like a Zarr store or group, without opening it."""
    path = Path(uri)
    marks = ("zarr.json", ".zgroup", ".zattrs")
    if "://" not in uri and path.is_dir():
        return any((path / mark).exists() for mark in marks)
    return ".zarr" in uri or ("://" in uri and not re.search(r"\.(tiff?|vrt)$", uri, re.IGNORECASE))


def open_root(uri: str) -> zarr.Group:
    """The store's root group, read-only, local or remote; SourceError if it cannot be opened."""
    import zarr

    store: Any = uri
    if "://" in uri:
        try:
            from obstore.store import from_url
            from zarr.storage import ObjectStore
        except ImportError as error:
            raise SourceError(
                got=f"the address {uri} without a package that reads it",
                expected="obstore for Zarr over http(s) and s3",
                fix="pip install obstore, or download the store first",
            ) from error
        # The public archives need no account.
        if uri.startswith("s3://"):
            remote = from_url(uri, skip_signature=True)
        else:
            remote = from_url(uri, client_options={"allow_http": uri.startswith("http://")})
        store = ObjectStore(remote, read_only=True)
    try:
        return zarr.open_group(store, mode="r")
    except Exception as error:
        raise SourceError(
            got=f"{uri}, which does not open as Zarr ({_first_line(error)})",
            expected="a Zarr group with an embeddings array",
            fix="check the path; it should hold zarr.json",
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(
        ": "
    )


def choose_group(root: zarr.Group, zone: int | str | None, uri: str) -> zarr.Group:
    """The group that holds the embeddings: the root itself or one UTM zone."""
    if ARRAY in root:
        return root
    zones = zone_names(root)
    if not zones:
        raise StoreError(
            got=f"{uri} without an array {ARRAY!r} and without utmNN groups",
            expected="a store of embeddings in the geoemb layout",
            fix="give the path of the store itself, not of a folder above it",
        )
    if zone is None:
        if len(zones) > 1:
            shown = ", ".join(zones[:6]) + (", ..." if len(zones) > 6 else "")
            raise InputError(
                got=f"{uri} with {len(zones)} UTM zones ({shown})",
                expected="one zone",
                fix=f"pass zone={int(zones[0][3:])} (--zone)",
            )
        return root[zones[0]]
    digits = re.sub(r"\D", "", str(zone))
    name = f"utm{int(digits or 0):02d}"
    if name not in zones:
        raise InputError(
            got=f"zone {zone} of {uri}",
            expected=f"one of {', '.join(zones)}",
            fix="pass one of these",
        )
    return root[name]


def zone_names(root: zarr.Group) -> list[str]:
    """Names of the UTM groups, sorted."""
    return sorted(name for name in root.group_keys() if re.fullmatch(r"utm\d\d", name))


def open_zarr(uri: str, *, dims: int | None = None, zone: int | str | None = None) -> LazyRaster:
    """The embeddings of one zone of a store, as real values with falling y."""
    root = open_root(uri)
    group = choose_group(root, zone, uri)
    where = f"{uri} ({group.path})" if group.path else uri
    array = group[ARRAY]
    warn_unfinished(uri, array)
    attributes = {**root.attrs.asdict(), **group.attrs.asdict(), **array.attrs.asdict()}
    order = axis_order(array, where)
    sizes = {name: array.shape[i] for name, i in order.items()}
    quantization = _correct_alphaearth(
        quantization_of(attributes, np.dtype(array.dtype), array.fill_value, where),
        attributes,
        where,
    )
    own = attributes.get("bocage")
    quantization = own_scale(own if isinstance(own, Mapping) else {}, quantization)
    trained = tuple(int(d) for d in attributes.get("geoemb:matryoshka_dims", ()))
    n_dims = prefix_length(dims, sizes["band"], trained, where)
    crs, transform = georeference(group, attributes, (sizes["y"], sizes["x"]), where)
    grid, bottom_up = north_up(crs, transform, (sizes["y"], sizes["x"]))
    chunks = array.chunks
    return LazyRaster(
        read=_Reader(array, order, quantization, _scales(group, quantization, where), where=where),
        shape=(sizes.get("time", 1), n_dims, sizes["y"], sizes["x"]),
        grid=grid,
        years=read_years(group, sizes.get("time", 1), attributes),
        bottom_up=bottom_up,
        chunk_yx=(chunks[order["y"]], chunks[order["x"]]),
        attrs=_provenance(attributes, quantization),
    )


class _Reader:
    """Reads stored slices in the order (time, band, y, x) and decodes them; safe in threads."""

    def __init__(
        self,
        array: zarr.Array,
        order: Mapping[str, int],
        quantization: Quantization,
        scales: tuple[zarr.Array, Mapping[str, int]] | None,
        *,
        where: str,
    ) -> None:
        self.where = where
        self.array, self.order = array, order
        self.quantization, self.scales = quantization, scales

    def __call__(self, time: slice, band: slice, rows: slice, cols: slice) -> FloatArray:
        keys = {"time": time, "band": band, "y": rows, "x": cols}
        scales = None
        try:
            q = _read_ordered(self.array, self.order, keys)
            if self.scales is not None:
                scales = _read_ordered(self.scales[0], self.scales[1], keys)
        except Exception as error:
            # zarr, numcodecs and stores each raise their own; none may pass for nodata.
            raise SourceError(
                got=f"{self.where}, unreadable at rows {rows.start}-{rows.stop}, columns "
                f"{cols.start}-{cols.stop} ({_first_line(error)})",
                expected="whole shards",
                fix="bocage validate names the damaged file; delete it and make it again",
            ) from error
        return self.quantization.decode(q, scales)


def _read_ordered(
    array: zarr.Array, order: Mapping[str, int], keys: Mapping[str, slice]
) -> NDArray[Any]:
    """Stored values with axes (time, band, y, x); absent axes have length one."""
    names = sorted(order, key=lambda n: order[n])
    values = np.asarray(array[tuple(keys[n] for n in names)])
    wanted = [n for n in ("time", "band", "y", "x") if n in order]
    values = values.transpose([names.index(n) for n in wanted])
    for i, name in enumerate(("time", "band", "y", "x")):
        if name not in order:
            values = np.expand_dims(values, i)
    return values


def axis_order(
    array: zarr.Array, where: str, needed: tuple[str, ...] = ("band", "y", "x")
) -> dict[str, int]:
    """Position of each axis, by the names the store gives; StoreError if one is missing."""
    names = getattr(array.metadata, "dimension_names", None)
    names = names or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    order: dict[str, int] = {}
    for i, name in enumerate(names):
        for axis, known in AXES.items():
            if str(name).lower() in known:
                order[axis] = i
    if len(order) != array.ndim or any(axis not in order for axis in needed):
        raise StoreError(
            got=f"{where}/{array.basename} with dimensions {list(names) or 'unnamed'}",
            expected="dimensions named time, band, y, x in any order",
            fix="write dimension_names into the array's zarr.json",
        )
    return order


def georeference(
    group: zarr.Group, attributes: Mapping[str, Any], shape_yx: tuple[int, int], where: str
) -> tuple[str, Affine]:
    """CRS and transform of a group, from its attributes or from its coordinates."""
    import json

    crs = attributes.get("proj:code") or attributes.get("proj:wkt2")
    if not crs and attributes.get("proj:projjson"):
        crs = json.dumps(attributes["proj:projjson"])
    if not crs:
        raise StoreError(
            got=f"{where} without a CRS",
            expected="proj:code (or proj:wkt2, proj:projjson) in the group's attributes",
            fix="add the CRS of the map to the group's zarr.json",
        )
    stated = attributes.get("spatial:transform")
    if stated is not None and len(stated) == 6:
        return str(crs), Affine(*stated)
    axes = {}
    for axis in ("y", "x"):
        name = next((n for n in AXES[axis] if n in group), None)
        if name is None or shape_yx[axis == "x"] < 2:
            raise StoreError(
                got=f"{where} without spatial:transform and without coordinate {axis}",
                expected="one of the two",
                fix="add spatial:transform to the group's zarr.json",
            )
        axes[axis] = np.asarray(group[name][:2], np.float64)
    dx, dy = (float(axes[a][1] - axes[a][0]) for a in ("x", "y"))
    return str(crs), Affine(dx, 0, axes["x"][0] - dx / 2, 0, dy, axes["y"][0] - dy / 2)


def read_years(group: zarr.Group, n: int, attributes: Mapping[str, Any]) -> tuple[int, ...]:
    """The time axis as calendar years; 0 where the store does not say."""
    name = next((t for t in AXES["time"] if t in group), None)
    if name is None:
        stated = attributes.get("year") or attributes.get("years") or [0] * n
        return tuple(int(y) for y in np.atleast_1d(stated))
    time = group[name]
    values = np.atleast_1d(np.asarray(time[...]))
    if values.dtype.kind == "M":
        return tuple(int(str(v)[:4]) for v in values.astype("datetime64[Y]"))
    units = str(time.attrs.get("units", ""))
    if match := re.match(r"(\w+) since (\d{4}-\d\d-\d\d)", units):
        unit = {"days": "D", "hours": "h", "minutes": "m", "seconds": "s"}.get(match.group(1))
        if unit:
            start = np.datetime64(match.group(2))
            dates = start + values.astype(np.int64).astype(f"timedelta64[{unit}]")
            return tuple(int(str(v)[:4]) for v in dates)
    return tuple(int(v) for v in values)


def _scales(
    group: zarr.Group, quantization: Quantization, where: str
) -> tuple[zarr.Array, Mapping[str, int]] | None:
    name = quantization.scales_array
    if name is None:
        return None
    if name not in group:
        raise StoreError(
            got=f"{where} without its array of scales {name!r}",
            expected="one scale per pixel beside the codes",
            fix="download the whole group; codes mean nothing without scales",
        )
    return group[name], axis_order(group[name], where, needed=("y", "x"))


def _correct_alphaearth(
    quantization: Quantization, attributes: Mapping[str, Any], where: str
) -> Quantization:
    """AlphaEarth codes described as linear follow the signed square all the same."""
    import warnings

    from bocage.errors import BocageWarning

    if quantization.method == "linear" and _ALPHAEARTH.search(str(attributes.get("geoemb:model"))):
        warnings.warn(
            f"{where} calls AlphaEarth's codes linear, which would read 0.25 as 0.5; they are read "
            "as signed squares, the rule the archive was written with",
            BocageWarning,
            stacklevel=4,
        )
        return Quantization(method="signed_power", nodata=-128)
    return quantization


def _provenance(attributes: Mapping[str, Any], quantization: Quantization) -> dict[str, Any]:
    own = attributes.get("bocage")
    own = dict(own) if isinstance(own, Mapping) else {}
    model = own.pop("model", None) or attributes.get("geoemb:model", "")
    known = bool(_ALPHAEARTH.search(str(attributes.get("geoemb:model"))))
    return {
        **plain_values(own),
        "model": model,
        "codec": "float32" if quantization.method == "none" else quantization.method,
        "dates": own.get("dates", "known"),
        # Only AlphaEarth promises unit length; cosine similarity has to normalize all others.
        "unit_norm": int(known),
    }
