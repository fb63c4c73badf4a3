"""Checks of Zarr stores against geoemb, spatial, proj and the layout of the public archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine

from bocage.embeddings.conventions import CONVENTIONS, GEOEMB, UNKNOWN_MODEL, UNKNOWN_SOURCE
from bocage.embeddings.finished import blocks_done
from bocage.embeddings.quantization import quantization_of
from bocage.embeddings.validation import Finding, error, warning
from bocage.embeddings.zarr_layout import ARRAY, AXES, axis_order, open_root, zone_names
from bocage.errors import BocageError

if TYPE_CHECKING:
    import zarr

REQUIRED = (
    "geoemb:type",
    "geoemb:dimensions",
    "geoemb:model",
    "geoemb:source_data",
    "geoemb:data_type",
)
QUANTIZATION_KEYS = {"method", "original_dtype", "quantized_dtype", "scale", "link"}

_MAX_CHUNK_BYTES = 10**9
_SAMPLE_SHARDS = 12


def check_store(uri: str) -> Iterator[Finding]:
    """All findings of a store; groups are checked one by one."""
    root = open_root(uri)
    attributes = root.attrs.asdict()
    yield from _check_geoemb(attributes, "root")
    zones = zone_names(root)
    if not zones and ARRAY not in root:
        yield error("root", f"neither an array {ARRAY!r} nor groups utmNN", "use the geoemb layout")
        return
    if zones and attributes.get("geoemb:spatial_layout") != "utm_zones":
        yield error(
            "root",
            "groups utmNN without spatial_layout",
            "set geoemb:spatial_layout to utm_zones",
        )
    for name in zones or [""]:
        group = root[name] if name else root
        yield from _check_group(group, {**attributes, **group.attrs.asdict()}, name)
    if "://" not in uri:
        yield from _check_files(Path(uri), root, zones)


def _check_geoemb(attributes: Mapping[str, Any], where: str) -> Iterator[Finding]:
    registered = attributes.get("zarr_conventions")
    entries = [e for e in registered if isinstance(e, Mapping)] if registered else []
    if not any(e.get("uuid") == GEOEMB["uuid"] for e in entries):
        yield error(
            where,
            "the geoemb convention is not registered",
            f"add its entry (uuid {GEOEMB['uuid']}) to zarr_conventions",
        )
    for entry in entries:
        known = next((c for c in CONVENTIONS if c["uuid"] == entry.get("uuid")), None)
        # Other revisions of spatial and proj are about; geoemb's schema fixes every text.
        for key in known if known is GEOEMB else ():
            if key in entry and entry[key] != GEOEMB[key]:
                yield error(
                    where, f"{key} of geoemb is {entry[key]!r}", f"it has to be {GEOEMB[key]!r}"
                )
    for key in REQUIRED:
        if not attributes.get(key):
            yield error(where, f"{key} is missing", f"add {key} to the attributes")
    source = attributes.get("geoemb:source_data")
    if isinstance(source, str):
        yield warning(where, "geoemb:source_data is one text", "make it a list of URLs")
    if source == [UNKNOWN_SOURCE] or attributes.get("geoemb:model") == UNKNOWN_MODEL:
        yield warning(where, "model or source data are unknown", "name them in the attributes")
    stated = attributes.get("geoemb:quantization")
    if isinstance(stated, Mapping):
        extra = sorted(set(stated) - QUANTIZATION_KEYS)
        if extra:
            yield warning(
                where,
                f"geoemb:quantization has keys its schema forbids: {', '.join(extra)}",
                "move them to attributes of your own",
            )
        missing = {"method", "original_dtype"} - set(stated)
        if missing:
            yield error(
                where, f"geoemb:quantization lacks {', '.join(sorted(missing))}", "add them"
            )


def _check_group(group: zarr.Group, attributes: Mapping[str, Any], name: str) -> Iterator[Finding]:
    where = name or "root"
    if name:
        yield from _check_geoemb(group.attrs.asdict(), where)
    if ARRAY not in group:
        yield error(where, f"no array {ARRAY!r}", "write it, or remove the group")
        return
    array = group[ARRAY]
    yield from _check_array(array, attributes, f"{where}/{ARRAY}")
    try:
        order = axis_order(array, where)
    except BocageError as problem:
        yield error(f"{where}/{ARRAY}", problem.got, problem.fix)
        return
    shape_yx = (array.shape[order["y"]], array.shape[order["x"]])
    yield from _check_georeference(attributes, shape_yx, where, name)
    yield from _check_coordinates(group, attributes, shape_yx, where)


def _check_array(array: zarr.Array, attributes: Mapping[str, Any], where: str) -> Iterator[Finding]:
    dtype = str(array.dtype)
    if dtype != attributes.get("geoemb:data_type"):
        yield error(
            where,
            f"type {dtype}, while geoemb:data_type says {attributes.get('geoemb:data_type')!r}",
            "make them agree",
        )
    try:
        rule = quantization_of(attributes, np.dtype(array.dtype), array.fill_value, where)
    except BocageError as problem:
        yield error(where, problem.got, problem.fix)
    else:
        if rule.method == "signed_power" and array.fill_value != -128:
            yield error(
                where,
                f"fill value {array.fill_value}: parts never written read as real zeros",
                "create the array with fill_value=-128",
            )
        if rule.method == "none" and not np.isnan(array.fill_value):
            yield warning(
                where, f"fill value {array.fill_value} in float32", "create it with fill_value=NaN"
            )
    names = getattr(array.metadata, "dimension_names", None) or ()
    if "band" in names:
        stored = array.shape[list(names).index("band")]
        stated = attributes.get("geoemb:dimensions")
        if stored != stated:
            yield error(
                where,
                f"{stored} bands, while geoemb:dimensions says {stated}",
                "make them agree",
            )
    inner_bytes = int(np.prod(array.chunks)) * np.dtype(array.dtype).itemsize
    if inner_bytes > _MAX_CHUNK_BYTES:
        yield warning(where, f"chunks of {inner_bytes / 1e9:.1f} GB", "use chunks below 1 GB")
    if array.shards is None and int(np.prod(array.nchunks)) > 100_000:
        yield warning(where, f"{array.nchunks} chunks as files", "use the sharding codec")


def _check_georeference(
    attributes: Mapping[str, Any], shape_yx: tuple[int, int], where: str, name: str
) -> Iterator[Finding]:
    code = attributes.get("proj:code")
    if not (code or attributes.get("proj:wkt2") or attributes.get("proj:projjson")):
        yield error(where, "no CRS", "add proj:code")
    if name and code != f"EPSG:326{name[3:]}":
        yield error(
            where, f"proj:code {code}", f"group {name} has to be in EPSG:326{name[3:]} (northern)"
        )
    transform = attributes.get("spatial:transform")
    if transform is None or len(transform) != 6:
        yield error(where, "spatial:transform is missing", "add the six numbers a, b, c, d, e, f")
        return
    if not attributes.get("spatial:dimensions"):
        yield error(where, "spatial:dimensions is missing", 'add ["y", "x"]')
    stated = attributes.get("spatial:shape")
    if stated is not None and tuple(stated) != shape_yx:
        yield error(where, f"spatial:shape {stated}", f"the array has {list(shape_yx)}")
    bbox = attributes.get("spatial:bbox")
    if bbox is not None:
        t = Affine(*transform)
        x0, y0 = t.c, t.f
        x1, y1 = t.c + t.a * shape_yx[1], t.f + t.e * shape_yx[0]
        true = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        if len(bbox) != 4 or not np.allclose(bbox, true, rtol=0, atol=abs(t.a) / 100):
            yield error(where, f"spatial:bbox {bbox}", f"the transform says {true}")


def _check_coordinates(
    group: zarr.Group, attributes: Mapping[str, Any], shape_yx: tuple[int, int], where: str
) -> Iterator[Finding]:
    transform = attributes.get("spatial:transform")
    if transform is None or len(transform) != 6:
        return
    t = Affine(*transform)
    for axis, length, first, step in (
        ("y", shape_yx[0], t.f, t.e),
        ("x", shape_yx[1], t.c, t.a),
    ):
        name = next((n for n in AXES[axis] if n in group), None)
        if name is None:
            continue
        values = np.asarray(group[name][:], np.float64)
        true = first + (np.arange(length) + 0.5) * step
        if values.shape != true.shape or not np.allclose(
            values, true, rtol=0, atol=abs(step) / 100
        ):
            yield error(
                f"{where}/{name}",
                "coordinates are not the pixel centres of spatial:transform",
                "write (index + 0.5) * step + origin",
            )
    time = next((n for n in AXES["time"] if n in group), None)
    if time is None:
        yield warning(where, "no time coordinate", "add time as integer years")
    elif np.dtype(group[time].dtype).kind not in "iM":
        yield warning(f"{where}/{time}", f"type {group[time].dtype}", "use int32 years or dates")


def _check_files(store: Path, root: zarr.Group, zones: list[str]) -> Iterator[Finding]:
    """Leftovers, missing blocks and unreadable shards of a local store."""
    partial = list(store.rglob("*.partial"))
    if partial:
        yield warning(
            str(partial[0].relative_to(store)),
            f"{len(partial)} unfinished file(s) of a killed run",
            "run again, or delete them",
        )
    for name in zones or [""]:
        group = root[name] if name else root
        if ARRAY not in group:
            continue
        array = group[ARRAY]
        where = f"{name}/{ARRAY}" if name else ARRAY
        yield from _check_finished(store, array, where)
        yield from _check_shards(store, array, where)


def _check_finished(store: Path, array: zarr.Array, where: str) -> Iterator[Finding]:
    found = blocks_done(store, array)
    if found is not None and found[0] < found[1]:
        yield error(
            where,
            f"unfinished: {found[0]} of {found[1]} blocks are done",
            "repeat the command that made it; it goes on where it stopped",
        )


def _check_shards(store: Path, array: zarr.Array, where: str) -> Iterator[Finding]:
    """Decode a piece of some shards: a damaged one is an error, never nodata."""
    folder = store / where / "c"
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.isdigit())
    step = max(1, len(files) // _SAMPLE_SHARDS)
    shape = array.shards or array.chunks
    for file in files[::step]:
        index = [int(part) for part in file.relative_to(folder).parts]
        if len(index) != array.ndim:
            continue
        starts = [i * n for i, n in zip(index, shape, strict=True)]
        stops = [
            min(start + n, total)
            for start, n, total in zip(starts, array.chunks, array.shape, strict=True)
        ]
        try:
            array[tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))]
        except Exception as problem:
            yield error(
                str(file.relative_to(store)),
                f"does not decode ({type(problem).__name__}: {str(problem)[:80]})",
                "delete the file and its marker, and run again",
            )
