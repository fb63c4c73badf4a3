"""The STAC item: valid for pystac's own schemas, complete for the embedding extension."""

from __future__ import annotations

import json
from pathlib import Path

import pystac
import pytest
from affine import Affine

from bocage.embeddings import export_cog, write_stac_item

from .maps import smooth_map, write_map


def read(path):
    return json.loads(Path(path).read_text())


def test_the_item_has_what_the_embedding_extension_asks_for(map_store, map_cog):
    for uri, media in ((map_store, "zarr"), (map_cog, "cloud-optimized")):
        path = write_stac_item(uri)
        assert path == uri.with_name(f"{uri.name}.stac.json")
        item = read(path)
        assert (
            "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
            in (item["stac_extensions"])
        )
        properties = item["properties"]
        assert properties["emb:type"] == "pixel"
        assert properties["emb:dimensions"] == 12
        assert properties["data_type"] == "int8"
        assert properties["gsd"] == 40
        quantization = properties["emb:quantization"]
        assert quantization["method"] == "signed_power"
        assert quantization["original_dtype"] == "float32"
        assert quantization["link"].startswith("https://")
        assert not {"scale", "offset"} & set(quantization)
        links = {link["rel"]: link["href"] for link in item["links"]}
        assert links["emb:model"] == "https://huggingface.co/allenai/OlmoEarth-v1_2-Tiny"
        assert "sentinel-2" in links["emb:source-data"]
        asset = item["assets"]["embeddings"]
        assert asset["href"] == f"./{uri.name}"
        assert media in asset["type"]
        assert asset["nodata"] == -128
        assert properties["proj:code"] == "EPSG:32618"
        assert properties["proj:shape"] == [301, 395]


def test_pystac_reads_it_and_finds_its_place_and_time(map_cog):
    item = pystac.Item.from_file(str(write_stac_item(map_cog)))
    assert item.datetime is None
    assert item.common_metadata.start_datetime.year == 2024
    west, south, east, north = item.bbox
    assert west == pytest.approx(-75.0)
    assert east == pytest.approx(-74.81, abs=0.01)
    assert 40.5 < south < north < 40.7
    href = item.assets["embeddings"].get_absolute_href()
    assert Path(href).samefile(map_cog)


def test_the_core_of_the_item_passes_the_official_schema(map_cog, tmp_path):
    pytest.importorskip("jsonschema")
    item = read(write_stac_item(map_cog, tmp_path / "item.json"))
    item["stac_extensions"] = []  # their schemas are on the web only
    pystac.Item.from_dict(item).validate()


def test_dates_of_the_images_are_the_range(tmp_path):
    x = smooth_map(3, (64, 64))
    attrs = {"dates": ["2024-07-03", "2024-05-11", "2024-09-30"]}
    store = write_map(tmp_path / "a.zarr", x, attrs=attrs)
    cog = export_cog(store, tmp_path / "b.tif")
    for uri in (store, cog):
        properties = read(write_stac_item(uri))["properties"]
        assert properties["start_datetime"] == "2024-05-11T00:00:00Z"
        assert properties["end_datetime"] == "2024-09-30T23:59:59Z"
    unknown = write_map(tmp_path / "c.zarr", x, years=(0,), attrs={"dates": "unknown"})
    properties = read(write_stac_item(unknown))["properties"]
    assert properties["datetime"]
    assert "unknown" in properties["bocage:dates"]


def test_float_own_models_extra_fields_and_pictures(tmp_path):
    x = smooth_map(3, (64, 64))
    store = write_map(tmp_path / "a.zarr", x, codec="float32", model="my model/v2 (beta)")
    energy = {"emb:energy": {"device_type": "cpu", "energy_kwh": 0.1}}
    path = write_stac_item(
        store, item_id="a b", properties=energy, previews={"overview": tmp_path / "p.png"}
    )
    item = read(path)
    assert item["id"] == "a-b"
    assert "emb:quantization" not in item["properties"]
    assert item["properties"]["emb:energy"]["energy_kwh"] == 0.1
    assert item["assets"]["overview"]["href"] == "./p.png"
    assert item["links"][0]["href"] == "urn:bocage:model:my-model-v2-beta"


def test_prefixes_of_v1_3_and_a_map_across_the_antimeridian(tmp_path):
    x = smooth_map(128, (64, 64))
    transform = Affine(5000, 0, 50_000, 0, -5000, 4_000_000)
    store = write_map(
        tmp_path / "a.zarr", x, model="olmoearth-v1.3-base", crs="EPSG:32601", transform=transform
    )
    item = read(write_stac_item(store))
    assert item["properties"]["bocage:matryoshka_dims"] == [128, 64]
    assert item["geometry"]["type"] == "MultiPolygon"
    west, _, east, _ = item["bbox"]
    assert west > 170
    assert east < -170
