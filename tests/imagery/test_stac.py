"""STAC against the tiles themselves; the catalog is served on the loopback from the real scene."""

import datetime
import http.server
import json
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform_bounds

from bocage.errors import BocageWarning, ConfigError, InputError, SourceError
from bocage.imagery import open_stack, read_window, stack_grid
from bocage.sensors import SENTINEL2_L2A
from tests.imagery.conftest import plausible

pystac = pytest.importorskip("pystac")
pytest.importorskip("odc.stac")

ALL = list(SENTINEL2_L2A.band_names)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]


def everything(stack):
    rows, cols = stack_grid(stack).shape_yx
    return read_window(stack, slice(0, rows), slice(0, cols)).values["sentinel2_l2a"]


def item_of(name, bands, day="2020-06-01", *, code=True, raster=None, **properties):
    """A pystac Item over {asset key: path}."""
    with rasterio.open(next(iter(bands.values()))) as source:
        wsen = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
        epsg = source.crs.to_epsg()
    west, south, east, north = wsen
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    item = pystac.Item(
        id=name,
        geometry={"type": "Polygon", "coordinates": [ring]},
        bbox=list(wsen),
        datetime=datetime.datetime.fromisoformat(f"{day}T10:00:00+00:00"),
        properties={"platform": "sentinel-2a", **properties},
    )
    if code:
        item.stac_extensions.append(
            "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
        )
        item.properties["proj:code"] = f"EPSG:{epsg}"
    for key, path in bands.items():
        asset = pystac.Asset(href=str(path), media_type="image/tiff", roles=["data"])
        with rasterio.open(path) as source:
            asset.extra_fields["proj:transform"] = list(source.transform)[:6]
            asset.extra_fields["proj:shape"] = list(source.shape)
        if raster:
            asset.extra_fields["raster:bands"] = [raster]
        item.add_asset(key, asset)
    return item


@pytest.fixture
def tile(write_raster):
    """Twelve single-band files at native resolutions, and their values."""

    def make(name, seed=0, add=0, **options):
        paths, values = {}, {}
        for band in SENTINEL2_L2A.bands:
            res = band.ground_resolution_m
            side = round(600 / res)
            values[band.name] = plausible((1, side, side), seed + side) + np.uint16(add)
            paths[band.name] = write_raster(
                f"{name}/{band.name}.tif", values[band.name], res=res, **options
            )
        return paths, values

    return make


def expected(values, minus=0):
    return np.stack(
        [
            v[0].repeat(60 // v.shape[1], 0).repeat(60 // v.shape[2], 1).astype("f4") - minus
            for v in (values[b] for b in ALL)
        ]
    )


def test_an_item_is_its_files_at_10_m(tile):
    paths, values = tile("a")
    stack = open_stack(item_of("S2A_T31TFJ_20200601", paths))
    assert stack_grid(stack).bbox == (500_000, 4_999_400, 500_600, 5_000_000)
    assert str(stack.time.values[0])[:10] == "2020-06-01"
    assert stack.attrs["bocage_sources"] == ["S2A_T31TFJ_20200601"]
    np.testing.assert_array_equal(everything(stack)[0], expected(values))


@pytest.mark.parametrize(
    ("properties", "raster", "add"),
    [
        ({"s2:processing_baseline": "05.09"}, None, 1000),
        ({"s2:processing_baseline": "02.14"}, None, 0),
        ({}, {"scale": 0.0001, "offset": -0.1}, 1000),
        ({"earthsearch:boa_offset_applied": True}, {"scale": 0.0001, "offset": -0.1}, 0),
    ],
)
def test_offsets_of_the_metadata_are_removed(tile, properties, raster, add):
    paths, values = tile("a", add=add)
    stack = open_stack(item_of("x", paths, raster=raster, **properties))
    np.testing.assert_allclose(everything(stack)[0], expected(values, add), atol=0.01)


def test_dates_of_two_baselines_never_mix_their_offsets(tile):
    (old, before), (new, after) = tile("old"), tile("new", seed=7, add=1000)
    items = [
        item_of("old", old, "2021-06-01", **{"s2:processing_baseline": "03.00"}),
        item_of("new", new, "2022-06-01", **{"s2:processing_baseline": "04.00"}),
    ]
    x = everything(open_stack(items))
    np.testing.assert_array_equal(x[0], expected(before))
    np.testing.assert_array_equal(x[1], expected(after, 1000))


def test_items_open_from_files_dicts_and_collections(tile, tmp_path):
    paths, values = tile("a")
    item = item_of("x", paths)
    (tmp_path / "item.json").write_text(json.dumps(item.to_dict()))
    collection = pystac.ItemCollection([item])
    (tmp_path / "items.geojson").write_text(json.dumps(collection.to_dict()))
    for source in (
        tmp_path / "item.json",
        tmp_path / "items.geojson",
        item.to_dict(),
        collection,
        [item],
    ):
        np.testing.assert_array_equal(everything(open_stack(source))[0], expected(values))


class _RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Static files with byte ranges, which GDAL needs and http.server lacks."""

    def do_GET(self):
        wanted = self.headers.get("Range", "")
        path = Path(self.translate_path(self.path))
        if not wanted.startswith("bytes=") or not path.is_file():
            super().do_GET()
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        size = path.stat().st_size
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(stop - start)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def served(scene, tmp_path):
    """A static catalog of the real scene and of one elsewhere, over HTTP on the loopback."""
    handler = partial(_RangeHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "assets").symlink_to(scene)
    bands = {b: scene / f"s2_{b}.jp2" for b in ("B02", "B04", "B08", "B11", "B01")}
    here = item_of("S2A_MSIL2A_here", bands, "2016-09-08", **{"eo:cloud_cover": 1.0})
    cloudy = item_of("S2A_MSIL2A_cloudy", bands, "2016-09-18", **{"eo:cloud_cover": 90.0})
    away = item_of("S2A_MSIL2A_away", bands, "2016-09-08")
    away.bbox = [10, 10, 11, 11]
    for item in (here, cloudy, away):
        for key, asset in item.assets.items():
            asset.href = f"{root}/assets/s2_{key}.jp2"
    catalog = pystac.Catalog("test", "The real scene, served on the loopback")
    catalog.add_items([here, cloudy, away])
    catalog.normalize_and_save(str(tmp_path), pystac.CatalogType.SELF_CONTAINED)
    yield f"{root}/catalog.json"
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_search_finds_the_real_scene_and_reads_its_pixels(served, scene):
    box = (-75.70, 37.66, -75.66, 37.70)
    with pytest.warns(BocageWarning, match="lacks 7 of 12"):
        stack = open_stack(
            catalog=served, bbox=box, dates=("2016-09-01", "2016-09-30"), max_cloud_percent=50
        )
    assert stack.attrs["bocage_sources"] == ["S2A_MSIL2A_here"]
    grid = stack_grid(stack)
    for band in ("B02", "B11", "B01"):
        with rasterio.open(scene / f"s2_{band}.jp2") as source:
            # The source pixel under each pixel centre.
            cols, rows = ~source.transform @ np.meshgrid(grid.x, grid.y)
            truth = source.read(1)[rows.astype(int), cols.astype(int)]
        ours = everything(stack)[0, ALL.index(band)]
        np.testing.assert_array_equal(ours, truth, err_msg=band)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_search_without_result_or_place_or_server_says_so(served):
    with pytest.raises(InputError, match="no items in"):
        open_stack(
            catalog=served, bbox=(-75.70, 37.66, -75.66, 37.70), dates=("2001-01-01", "2001-02-01")
        )
    with pytest.raises(ConfigError, match="bbox="):
        open_stack(catalog=served)
    with pytest.raises(SourceError, match="does not answer as STAC"):
        open_stack(catalog="http://127.0.0.1:9/", bbox=(1, 1, 2, 2))


def test_a_folder_of_item_files_opens_as_its_items(tile, tmp_path):
    paths, _ = tile("a")
    item = item_of("A", paths)
    folder = tmp_path / "items"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(item.to_dict()))
    (folder / "notes.json").write_text("[1, 2]")
    np.testing.assert_array_equal(everything(open_stack(folder)), everything(open_stack(item)))


def test_bad_items_are_refused(tile, tmp_path):
    paths, _ = tile("a")
    with pytest.raises(InputError, match=r"name no band.*bands="):
        open_stack(item_of("x", {"picture": paths["B02"]}))
    other, _ = tile("b", crs="EPSG:32632")
    with pytest.raises(InputError, match="two CRS"):
        open_stack([item_of("x", paths), item_of("y", other)])
    item = item_of("gone", paths)
    paths["B02"].unlink()
    with pytest.raises(SourceError, match="gone"):
        open_stack(item)
    (tmp_path / "bad.json").write_text("{]")
    with pytest.raises(SourceError, match=r"bad\.json"):
        open_stack(tmp_path / "bad.json")
    square = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
    shape = {"type": "Feature", "properties": {"class": "a"}, "geometry": square}
    shapes = tmp_path / "shapes.geojson"
    for content in ({"type": "FeatureCollection", "features": [shape]}, shape):
        shapes.write_text(json.dumps(content))
        with pytest.raises(SourceError, match=r"shapes\.geojson") as caught:
            open_stack(shapes)
        assert "STAC" in str(caught.value)


def test_a_missing_extra_is_named(tile, monkeypatch):
    paths, _ = tile("a")
    monkeypatch.setattr("bocage.imagery.stac._absent", lambda name: name == "odc.stac")
    with pytest.raises(ConfigError, match=r"bocage\[stac\]"):
        open_stack(item_of("x", paths))
