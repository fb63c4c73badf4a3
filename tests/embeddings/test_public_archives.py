"""open_embeddings on stores that other producers publish, written here after their rules."""

from __future__ import annotations

import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rasterio
import rioxarray  # noqa: F401
import zarr
from affine import Affine

from bocage.embeddings import open_embeddings
from bocage.errors import BocageWarning, InputError, StoreError

from .maps import decode

GEOEMB = {
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}
DEGREES = 0.00008983111749910169


def codes(shape, seed=0):
    q = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    q[..., 2, 3] = -128
    return q


def olmoearth(path, zones=(10, 11)):
    """Layout of the public OlmoEarth v1.3 archive (allenai/rslearn_projects, 2026-10)."""
    root = zarr.open_group(path, mode="w")
    shared = {
        "zarr_conventions": [GEOEMB],
        "geoemb:type": "pixel",
        "geoemb:dimensions": 128,
        "geoemb:model": "https://huggingface.co/allenai/OlmoEarth-v1_3-Base",
        "geoemb:source_data": ["https://sentinel.esa.int/web/sentinel/missions/sentinel-2"],
        "geoemb:data_type": "int8",
        "geoemb:gsd": 10.0,
        "geoemb:spatial_layout": "utm_zones",
        "geoemb:quantization": {
            "method": "signed_power",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "link": "https://example.org/readme",
        },
        "geoemb:matryoshka_dims": [128, 64],
    }
    root.attrs.update(shared)
    for zone in zones:
        group = root.create_group(f"utm{zone:02d}")
        group.attrs.update(
            {
                **shared,
                "proj:code": f"EPSG:326{zone:02d}",
                "spatial:dimensions": ["y", "x"],
                "spatial:transform": [10.0, 0.0, 300_000.0, 0.0, -10.0, -600.0],
                "spatial:shape": [64, 32],
                "spatial:registration": "pixel",
            }
        )
        array = group.create_array(
            "embeddings",
            shape=(2, 128, 64, 32),
            chunks=(1, 64, 16, 16),
            shards=(1, 128, 32, 32),
            dtype="int8",
            fill_value=-128,
            dimension_names=("time", "band", "y", "x"),
        )
        array[1, :, 32:, :] = codes((128, 32, 32), zone)
        time = group.create_array("time", shape=(2,), dtype="int32", dimension_names=("time",))
        time[:] = [2024, 2025]
    zarr.consolidate_metadata(root.store)
    return path


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_olmoearth_archive_by_zone_with_negative_northing(tmp_path):
    path = olmoearth(tmp_path / "embeddings.zarr")
    with pytest.raises(InputError, match="zone=10"):
        open_embeddings(path)
    with pytest.raises(InputError, match="utm10, utm11"):
        open_embeddings(path, zone=33)
    for zone in (11, "utm11", "11"):
        e = open_embeddings(path, zone=zone)
    assert e.dims == ("time", "band", "y", "x")
    assert e.dtype == np.float32
    assert e.chunks is not None
    assert list(e.time.values) == [2024, 2025]
    assert e.y[0] == -605.0
    assert e.rio.crs.to_epsg() == 32611
    assert e.odc.geobox.crs.epsg == 32611
    assert e.attrs["unit_norm"] == 0
    assert np.isnan(e[0]).all()
    np.testing.assert_allclose(e[1, :, 32:], decode(codes((128, 32, 32), 11)), atol=1e-6)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_zone_group_and_a_trained_prefix_open_directly(tmp_path):
    path = olmoearth(tmp_path / "embeddings.zarr")
    whole = open_embeddings(f"{path}/utm10")
    part = open_embeddings(path, zone=10, dims=64)
    assert part.sizes["band"] == 64
    np.testing.assert_array_equal(part, whole[:, :64])
    with pytest.warns(BocageWarning, match="trained for dims"):
        assert open_embeddings(path, zone=10, dims=32).sizes["band"] == 32
    for wrong in (0, 129):
        with pytest.raises(InputError, match="dims"):
            open_embeddings(path, zone=10, dims=wrong)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_prefix_reads_half_the_bytes(tmp_path):
    path = olmoearth(tmp_path / "embeddings.zarr", zones=(10,))
    read: list[int] = []
    from zarr.storage import LocalStore

    class Counting(LocalStore):
        async def get(self, key, prototype, byte_range=None):
            value = await super().get(key, prototype, byte_range)
            if value is not None and "/c/1/" in key:
                read.append(len(value))
            return value

    from bocage.embeddings import zarr_layout

    n_bytes = {}
    for dims in (64, 128):
        read.clear()
        root = zarr.open_group(Counting(path), mode="r")
        original, zarr_layout.open_root = zarr_layout.open_root, lambda uri, root=root: root
        try:
            open_embeddings(path, dims=dims)[1, :, 32:, :16].load()
        finally:
            zarr_layout.open_root = original
        n_bytes[dims] = sum(read)
    assert n_bytes[64] < 0.6 * n_bytes[128]


def alphaearth_cog(path, q, *, bottom_up=True):
    transform = (
        Affine(10, 0, 600_000, 0, 10, 4_000_000)
        if bottom_up
        else Affine(10, 0, 600_000, 0, -10, 4_000_000 + 10 * q.shape[1])
    )
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="int8",
        count=64,
        height=q.shape[1],
        width=q.shape[2],
        crs="EPSG:32631",
        transform=transform,
        nodata=-128,
        tiled=True,
        blockxsize=16,
        blockysize=16,
    ) as file:
        file.write(q[:, ::-1] if bottom_up else q)
        file.descriptions = [f"A{i:02d}" for i in range(64)]
    return path


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_alphaearth_geotiffs_are_turned_north_up(tmp_path):
    folder = tmp_path / "annual" / "2023" / "31N"
    folder.mkdir(parents=True)
    q = codes((64, 40, 24))
    e = open_embeddings(alphaearth_cog(folder / "x.tiff", q))
    np.testing.assert_allclose(e[0], decode(q), atol=1e-6)
    assert np.all(np.diff(e.y) == -10)
    assert e.y[0] == 4_000_395.0
    assert list(e.time.values) == [2023]
    assert e.attrs["unit_norm"] == 1
    plain = open_embeddings(alphaearth_cog(tmp_path / "y.tiff", q, bottom_up=False))
    np.testing.assert_array_equal(plain[0], e[0])
    np.testing.assert_array_equal(plain.y, e.y)
    np.testing.assert_array_equal(e[0, :, 5:9, 20].values, e.values[0, :, 5:9, 20])


def alphaearth_mosaic(path, quantization):
    """tge-labs/aef-mosaic: one array in EPSG:4326 at the root."""
    q = codes((2, 64, 20, 30))
    root = zarr.open_group(path, mode="w")
    root.attrs.update(
        {
            "zarr_conventions": [GEOEMB],
            "geoemb:type": "pixel",
            "geoemb:dimensions": 64,
            "geoemb:model": "https://developers.google.com/earth-engine/datasets/catalog/"
            "GOOGLE_SATELLITE_EMBEDDING_V1_ANNUAL",
            "geoemb:source_data": "https://source.coop/tge-labs/aef/v1/annual/",
            "geoemb:data_type": "int8",
            "geoemb:quantization": quantization,
            "proj:code": "EPSG:4326",
            "spatial:dimensions": ["y", "x"],
            "spatial:transform": [DEGREES, 0, -180, 0, -DEGREES, 83.68570533713473],
            "spatial:shape": [20, 30],
        }
    )
    array = root.create_array(
        "embeddings",
        shape=q.shape,
        chunks=(1, 64, 8, 8),
        shards=(1, 64, 16, 16),
        dtype="int8",
        fill_value=-128,
        dimension_names=("time", "band", "y", "x"),
    )
    array[:] = q
    time = root.create_array("time", shape=(2,), dtype="int32", dimension_names=("time",))
    time[:] = [2017, 2018]
    return q


def test_alphaearth_mosaic_in_degrees(tmp_path):
    q = alphaearth_mosaic(
        tmp_path / "aef.zarr",
        {
            "method": "signed_square",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "formula": "(x / 127.5) ** 2 * sign(x)",
            "valid_range": [-127, 127],
            "nodata": -128,
        },
    )
    e = open_embeddings(tmp_path / "aef.zarr")
    np.testing.assert_allclose(e, decode(q), atol=1e-6)
    assert e.attrs["unit_norm"] == 1
    assert e.y.attrs["units"] == "degrees_north"
    assert e.rio.crs.to_epsg() == 4326
    assert list(e.time.values) == [2017, 2018]


def test_alphaearth_codes_described_as_linear_are_read_by_the_true_rule(tmp_path):
    linear = {"method": "linear", "original_dtype": "float32", "scale": {"type": "scalar"}}
    linear["scale"]["scale"] = 0.0078125
    q = alphaearth_mosaic(tmp_path / "aef.zarr", linear)
    with pytest.warns(BocageWarning, match=r"0\.25 as 0\.5"):
        e = open_embeddings(tmp_path / "aef.zarr")
    np.testing.assert_allclose(e, decode(q), atol=1e-6)


def tessera(path, order, names, *, nodata="+inf"):
    """TESSERA: int8 codes and one float32 scale per pixel; no data is in the scales."""
    rng = np.random.default_rng(5)
    q = rng.integers(-127, 128, (1, 16, 12, 10)).astype(np.int8)
    s = rng.uniform(0.001, 0.1, (1, 12, 10)).astype(np.float32)
    s[0, 0, 0] = np.nan
    s[0, 1, 1] = np.inf
    root = zarr.open_group(path, mode="w")
    root.attrs.update(
        {
            "zarr_conventions": [GEOEMB],
            "geoemb:type": "pixel",
            "geoemb:dimensions": 16,
            "geoemb:model": "https://geotessera.org/model/1.0",
            "geoemb:spatial_layout": "utm_zones",
            "geoemb:quantization": {
                "method": "per_pixel_scale",
                "original_dtype": "float32",
                "quantized_dtype": "int8",
                "scale": {"type": "array", "array_name": "scales", "nodata": nodata},
            },
        }
    )
    group = root.create_group("utm30")
    group.attrs["proj:code"] = "EPSG:32630"
    axes = dict(zip(("time", "band", "y", "x"), names, strict=True))
    stored = q.transpose(order)
    array = group.create_array(
        "embeddings",
        shape=stored.shape,
        chunks=tuple(min(8, n) for n in stored.shape),
        dtype="int8",
        dimension_names=[names[i] for i in order],
    )
    array[:] = stored
    scales = group.create_array(
        "scales",
        shape=s.shape,
        dtype="float32",
        dimension_names=(axes["time"], axes["y"], axes["x"]),
    )
    scales[:] = s
    for axis, values in (
        ("x", 167_135.0 + 10 * np.arange(10)),
        ("y", 6_765_165.0 - 10 * np.arange(12)),
        ("time", np.array([2021])),
    ):
        coordinate = group.create_array(
            axes[axis], shape=values.shape, dtype=values.dtype, dimension_names=(axes[axis],)
        )
        coordinate[:] = values
    truth = q * np.where(np.isfinite(s), s, np.nan)[:, None]
    return truth.astype(np.float32)


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ((0, 1, 2, 3), ("time", "band", "y", "x")),
        ((0, 2, 3, 1), ("time", "band", "northing", "easting")),
    ],
)
def test_tessera_scales_and_axis_orders(tmp_path, order, names):
    truth = tessera(tmp_path / "t.zarr", order, names)
    e = open_embeddings(tmp_path / "t.zarr")
    np.testing.assert_allclose(e, truth, rtol=1e-6)
    assert np.isnan(e[0, :, 0, 0]).all()
    assert np.isnan(e[0, :, 1, 1]).all()
    assert e.y[0] == 6_765_165.0
    assert e.rio.transform() == Affine(10, 0, 167_130, 0, -10, 6_765_170)
    assert list(e.time.values) == [2021]


def test_an_unknown_rule_is_refused_never_guessed(tmp_path):
    for method in ("product_quantization", "binary", "signed_cube"):
        alphaearth_mosaic(
            tmp_path / f"{method}.zarr", {"method": method, "original_dtype": "float32"}
        )
        with pytest.raises(StoreError, match=method):
            open_embeddings(tmp_path / f"{method}.zarr")
    alphaearth_mosaic(
        tmp_path / "p.zarr", {"method": "signed_power", "power": 0.33, "original_dtype": "float32"}
    )
    with pytest.raises(StoreError, match="power"):
        open_embeddings(tmp_path / "p.zarr")
    path = tmp_path / "x.tif"
    with rasterio.open(
        path, "w", driver="GTiff", dtype="int8", count=3, height=9, width=9, crs="EPSG:32631",
        transform=Affine(10, 0, 0, 0, -10, 90),
    ) as file:  # fmt: skip
        file.write(codes((3, 9, 9)))
    with pytest.raises(StoreError, match="quantization"):
        open_embeddings(path)


def test_a_store_without_scales_without_names_or_without_crs_is_refused(tmp_path):
    tessera(tmp_path / "t.zarr", (0, 1, 2, 3), ("time", "band", "y", "x"))
    group = zarr.open_group(tmp_path / "t.zarr/utm30", mode="r+")
    del group["scales"]
    with pytest.raises(StoreError, match="scales"):
        open_embeddings(tmp_path / "t.zarr")
    tessera(tmp_path / "u.zarr", (0, 1, 2, 3), ("time", "band", "rows", "x"))
    with pytest.raises(StoreError, match="rows"):
        open_embeddings(tmp_path / "u.zarr")
    tessera(tmp_path / "v.zarr", (0, 1, 2, 3), ("time", "band", "y", "x"))
    group = zarr.open_group(tmp_path / "v.zarr/utm30", mode="r+")
    group.attrs.clear()
    with pytest.raises(StoreError, match="CRS"):
        open_embeddings(tmp_path / "v.zarr")
