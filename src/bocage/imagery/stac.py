"""STAC Items, by file, by object or by search, read through odc-stac.

Assets become bands by their keys or eo:bands names; items whose numbers need another scale or
offset are loaded apart, so that a mosaic never mixes processing baselines.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageError, ConfigError, InputError, SourceError
from bocage.imagery import bands as names
from bocage.imagery import offsets
from bocage.imagery.cubes import ArrayBand, Cube, open_cubes
from bocage.imagery.opened import Opened, OpenOptions
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    from bocage.types import BboxWSEN

log = logging.getLogger(__name__)

_CHUNK = 1024
"""Pixels per side of what odc-stac reads at once: a tile of a Sentinel-2 JPEG 2000 file."""

_NO_PIXELS = {"thumbnail", "overview", "metadata", "visual"}


def require_stac(what: str) -> None:
    """ConfigError naming the extra, if a package for STAC is missing."""
    missing = [name for name in ("pystac_client", "odc.stac") if _absent(name)]
    if missing:
        raise ConfigError(
            got=what,
            expected=f"the package(s) {', '.join(missing)} to read STAC",
            fix='pip install "bocage[stac]"',
        )


def _absent(name: str) -> bool:
    try:
        return find_spec(name) is None
    except ModuleNotFoundError:
        return True


def is_stac(source: Any) -> bool:
    """Whether a source is a STAC object, a dict of one, a list of them, or a path to one."""
    if isinstance(source, str | Path):
        return str(source).lower().endswith((".json", ".geojson"))
    if isinstance(source, Mapping):
        return source.get("type") in ("Feature", "FeatureCollection", "Catalog", "Collection")
    if type(source).__module__.split(".")[0] in ("pystac", "pystac_client"):
        return True
    return isinstance(source, Sequence) and bool(source) and all(is_stac(part) for part in source)


def item_files(folder: str | Path) -> list[str]:
    """The STAC item files of a folder that holds nothing else, in name order; else none."""
    path = Path(folder)
    if not path.is_dir():
        return []
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in (".json", ".geojson"))
    others = any(p.is_dir() or p not in found for p in path.iterdir() if p.name[0] != ".")
    if others:
        return []
    return [str(p) for p in found if _is_item(p)]


def _is_item(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (
            False  # Another JSON file; if none is an item, the folder is said to have no rasters.
        )
    return (
        isinstance(content, Mapping)
        and "stac_version" in content
        and (content.get("type") == "Feature")
    )


def read_items(
    source: Any, *, bbox: BboxWSEN | None = None, dates: tuple[Any, Any] | None = None
) -> list[Any]:
    """The pystac Items of a source; catalogs are filtered by bbox (degrees) and dates."""
    require_stac("STAC items")
    import pystac

    if isinstance(source, str | Path):
        source = _read_json(str(source))
    if isinstance(source, Mapping):
        kind = source.get("type")
        if kind == "Feature":
            return [pystac.Item.from_dict(dict(source))]
        if kind == "FeatureCollection":
            return list(pystac.ItemCollection.from_dict(dict(source)))
        source = pystac.read_dict(dict(source))
    if isinstance(source, pystac.Item):
        return [source]
    if isinstance(source, pystac.Catalog):
        return [i for i in source.get_items(recursive=True) if _matches(i, bbox, dates)]
    if hasattr(source, "items") and callable(source.items):
        return list(source.items())  # A search of pystac-client.
    return (
        [item for part in source for item in read_items(part, bbox=bbox, dates=dates)]
        if (not isinstance(source, pystac.ItemCollection))
        else list(source)
    )


def search(
    catalog: str,
    *,
    collections: Sequence[str] | None,
    bbox: BboxWSEN,
    dates: tuple[Any, Any] | None,
    max_cloud_percent: float | None = None,
) -> list[Any]:
    """Items of a STAC API, or of a static catalog, in a bounding box (degrees) and date range."""
    require_stac(f"catalog {catalog}")
    import pystac_client

    try:
        client = pystac_client.Client.open(catalog)
        if client.conforms_to("ITEM_SEARCH"):
            interval = "/".join(str(d) for d in dates) if dates else None
            found = client.search(collections=collections, bbox=bbox, datetime=interval)
            items = list(found.items())
        else:
            log.info("%s has no search; all its items are read and filtered", catalog)
            items = [i for i in client.get_items(recursive=True) if _matches(i, bbox, dates)]
            if collections:
                items = [i for i in items if i.collection_id in collections]
    except BocageError:
        raise
    except Exception as error:
        raise SourceError(
            got=f"catalog {catalog}, which does not answer as STAC ({_reason(error)})",
            expected="a STAC API or catalog",
            fix="check the address and the network",
        ) from error
    if max_cloud_percent is not None:
        items = [i for i in items if i.properties.get("eo:cloud_cover", 0) <= max_cloud_percent]
    if not items:
        raise InputError(
            got=f"no items in {catalog} for bbox {tuple(bbox)} and dates {dates}",
            expected="at least one",
            fix="widen the dates or the bounding box (degrees: west, south, east, north), or name "
            "other collections",
        )
    log.info("%d items found in %s", len(items), catalog)
    return items


def open_items(items: Sequence[Any], options: OpenOptions) -> Opened:
    """Readers over STAC Items."""
    require_stac("STAC items")
    groups: dict[Any, list[Any]] = {}
    assets_of: dict[Any, dict[str, str]] = {}
    level_1c = ""
    for item in sorted(items, key=lambda i: i.id):
        said = options.sensor or _sensor_of(item)
        if options.sensor and _sensor_of(item) not in (None, options.sensor):
            continue
        found = _assets(item, said, options)
        if names.is_level_1c(f"{item.collection_id}/{item.id}"):
            level_1c = level_1c or f"the name of item {item.id} says so"
        by_sensor: dict[str, dict[str, str]] = {}
        for named, key in found:
            by_sensor.setdefault(named.sensor, {}).setdefault(named.band, key)
        for sensor, assets in by_sensor.items():
            units = tuple(sorted(_units(item, sensor, assets, options).items()))
            group = (sensor, tuple(sorted(assets.items())), units)
            groups.setdefault(group, []).append(item)
            assets_of[group] = assets
    if not groups:
        example = items[0] if items else None
        keys = ", ".join(list(example.assets)[:12]) if example is not None else ""
        raise InputError(
            got=f"{len(items)} STAC item(s) whose assets ({keys}) name no band of "
            f"{options.sensor or ' or '.join(SENSORS)}",
            expected="assets named B02, red, vv, ...",
            fix='pass bands={"asset": "B02", ...} or sensor=',
        )
    _one_crs(items, options)
    cubes = [
        _load(key[0], group, assets_of[key], dict(key[2]), options) for key, group in groups.items()
    ]
    return open_cubes(cubes, options, level_1c=level_1c, sources=[item.id for item in items])


def _load(
    sensor: str,
    items: Sequence[Any],
    assets: Mapping[str, str],
    units: Mapping[str, tuple[float | str, float, bool]],
    options: OpenOptions,
) -> Cube:
    import odc.stac

    target: dict[str, Any] = {}
    if options.crs is not None:
        target["crs"] = options.crs
    if options.bbox is not None and options.bbox_crs.upper() == "EPSG:4326":
        target["bbox"] = options.bbox
    try:
        loaded = odc.stac.load(
            items,
            bands=list(assets.values()),
            resolution=options.resolution_m,
            resampling="nearest",
            groupby="solar_day",
            chunks={"x": _CHUNK, "y": _CHUNK},
            fail_on_error=True,
            **target,
        )
    except BocageError:
        raise
    except Exception as error:
        raise SourceError(
            got=f"STAC item {items[0].id}, which cannot be opened ({_reason(error)})",
            expected="items with readable raster assets and a projected CRS (proj:code)",
            fix="check the items, or pass crs= (--crs)",
        ) from error
    box = loaded.odc.geobox
    cube = Cube(
        name=f"STAC item {items[0].id}" + (f" and {len(items) - 1} more" if items[1:] else ""),
        sensor=sensor,
        crs=_crs_name(box.crs),
        transform=box.transform,
        shape_yx=(int(box.shape[0]), int(box.shape[1])),
        dates=list(loaded["time"].values.astype("datetime64[D]")),
    )
    for band, key in assets.items():
        values = loaded[key]
        nodata = values.attrs.get("nodata")
        scale, offset, settled = units.get(band, (1.0, 0.0, False))
        named = ArrayBand(
            values=values,
            band=band,
            nodata=None if nodata is None else float(nodata),
            scale=scale,
            offset=offset,
            is_cloud_mask=band in names.CLOUD_TOKENS,
        )
        if named.is_cloud_mask:
            cube.mask = named
        else:
            cube.bands[band] = named
            cube.offset_settled = cube.offset_settled or settled
    return cube


def _assets(
    item: Any, sensor: str | None, options: OpenOptions
) -> list[tuple[names.NamedBand, str]]:
    """Bands of an item with the keys of their assets, finest resolution first."""
    tokens: dict[str, str] = {}
    for key, asset in item.assets.items():
        if isinstance(options.bands, dict):
            token = options.bands.get(key)
        elif _NO_PIXELS & set(asset.roles or ()) or _NO_PIXELS & {key}:
            token = None
        else:
            token = names.band_token(key) or _eo_name(asset)
        if token:
            tokens[key] = str(token).upper()
    neighbours = frozenset(tokens.values())
    result = []
    for key, token in tokens.items():
        named = names.name_band(
            token, sensor=sensor, neighbours=neighbours, where=f"asset {key} of item {item.id}"
        )
        if named is not None:
            result.append((named, key))
    return sorted(result, key=lambda pair: (_gsd(item, pair[1]), pair[1]))


def _eo_name(asset: Any) -> str | None:
    """The token of an asset that describes exactly one band."""
    described = asset.extra_fields.get("eo:bands") or asset.extra_fields.get("bands") or []
    if len(described) != 1:
        return None
    first = described[0]
    for field in ("name", "common_name", "eo:common_name"):
        token = names.band_token(str(first.get(field, "")))
        if token:
            return token
    return None


def _gsd(item: Any, key: str) -> float:
    asset = item.assets[key]
    transform = asset.extra_fields.get("proj:transform")
    if transform:
        return abs(float(transform[0]))
    raster = (asset.extra_fields.get("raster:bands") or [{}])[0]
    value = raster.get("spatial_resolution") or asset.extra_fields.get("gsd") or 10.0
    return float(value)


def _sensor_of(item: Any) -> str | None:
    properties = item.properties
    said = [str(properties.get(k, "")) for k in ("constellation", "platform")]
    for text in (*said, str(item.collection_id or ""), item.id):
        found = names.product_sensor(text)
        if found:
            return found
    return None


def _units(
    item: Any, sensor: str, assets: Mapping[str, str], options: OpenOptions
) -> dict[str, tuple[float | str, float, bool]]:
    """Per band its scale, offset, and whether the offset is settled."""
    result: dict[str, tuple[float | str, float, bool]] = {}
    for band, key in assets.items():
        if band in names.CLOUD_TOKENS:
            continue
        scale: float | str = 1.0
        offset, settled = 0.0, False
        stored = _stored_scale(sensor, item.assets[key])
        if stored is not None:
            scale, offset = stored
            settled = offset != 0
        if sensor == "sentinel2_l2a":
            if item.properties.get("earthsearch:boa_offset_applied") is True:
                offset, settled = 0.0, True  # The metadata still list the offset.
            elif not settled:
                baseline = _baseline(item)
                if baseline is not None:
                    offset, settled = baseline, True
        given_scale, given_offset = options.scale_of(sensor), options.offset_of(sensor)
        if given_scale is not None:
            scale = given_scale
        if given_offset is not None:
            offset, settled = given_offset, True
        result[band] = (scale, offset, settled)
    return result


def _stored_scale(sensor: str, asset: Any) -> tuple[float, float] | None:
    """raster:bands of STAC 1.0, or raster:scale and raster:offset of STAC 1.1."""
    fields = asset.extra_fields
    raster = (fields.get("raster:bands") or [{}])[0]
    newer = (fields.get("bands") or [{}])[0]
    scale = raster.get("scale", newer.get("raster:scale", fields.get("raster:scale", 1.0)))
    offset = raster.get("offset", newer.get("raster:offset", fields.get("raster:offset", 0.0)))
    return offsets.from_scale_and_offset(sensor, float(scale), float(offset))


def _baseline(item: Any) -> float | None:
    stated = item.properties.get("s2:processing_baseline") or item.properties.get(
        "processing:version"
    )
    try:
        return -1000.0 if 4.0 <= float(stated) < 99 else 0.0
    except (TypeError, ValueError):
        product = item.properties.get("s2:product_uri") or item.id
        return offsets.from_baseline(str(product))


def _one_crs(items: Iterable[Any], options: OpenOptions) -> None:
    if options.crs is not None:
        return
    found: dict[str, str] = {}
    for item in items:
        code = item.properties.get("proj:code") or item.properties.get("proj:epsg")
        if code:
            found.setdefault(str(code).upper().removeprefix("EPSG:"), item.id)
    if len(found) > 1:
        (a, item_a), (b, item_b) = list(found.items())[:2]
        raise InputError(
            got=f"two CRS: EPSG:{a} ({item_a}) and EPSG:{b} ({item_b})",
            expected="one CRS for the whole stack",
            fix='choose one: open_stack(crs="utm") or crs="EPSG:..." (--crs utm)',
        )


def _matches(item: Any, bbox: BboxWSEN | None, dates: tuple[Any, Any] | None) -> bool:
    if bbox is not None and item.bbox is not None:
        west, south, east, north = (
            item.bbox if len(item.bbox) == 4 else np.take(item.bbox, (0, 1, 3, 4))
        )
        if west > bbox[2] or east < bbox[0] or south > bbox[3] or north < bbox[1]:
            return False
    if dates is not None and item.datetime is not None:
        from bocage.imagery.dates import parse_date

        day = np.datetime64(item.datetime.date(), "D")
        return bool(parse_date(dates[0]) <= day <= parse_date(dates[1]))
    return True


def _read_json(path: str) -> Any:
    import pystac

    try:
        if "://" in path:
            return pystac.StacIO.default().read_json(path)
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if found.get("type") != "FeatureCollection":
            return pystac.read_file(path)
    except (OSError, ValueError, AttributeError, pystac.STACError, pystac.STACTypeError) as error:
        raise SourceError(
            got=f"{path}, which cannot be read as STAC ({_reason(error)})",
            expected="the JSON of a STAC Item, ItemCollection or catalog",
            fix="check the path and its content",
        ) from error
    if not pystac.ItemCollection.is_item_collection(found):
        raise SourceError(
            got=f"{path}, shapes where imagery is expected",
            expected="imagery: a folder, rasters, or STAC items",
            fix="give the imagery here, and shapes as labels (--labels) or an area (--area)",
        )
    return found


def _crs_name(crs: Any) -> str:
    from bocage.imagery.rasters import crs_name

    return crs_name(str(crs.to_wkt()))


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
