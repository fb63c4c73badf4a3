"""The GeoTIFF: valid for rio-cogeo, true overviews, the scene's own CRS, whole or absent."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import rasterio
from affine import Affine
from rio_cogeo import cog_validate

from bocage.embeddings import cog, export_cog, open_embeddings
from bocage.embeddings.overviews import masked_means, overview_factors
from bocage.errors import ConfigError, InputError, StoreError

from .maps import smooth_map, write_map


def true_means(x: np.ndarray, factor: int) -> np.ndarray:
    """The slow, obvious masked mean in float64."""
    d, h, w = x.shape
    out = np.full((d, -(-h // factor), -(-w // factor)), np.nan)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            cell = x[:, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
            cell = cell.reshape(d, -1).astype(np.float64)
            keep = ~np.isnan(cell[0])
            if keep.any():
                out[:, i, j] = cell[:, keep].mean(1)
    return out


def read_level(path, factor: int):
    with rasterio.open(path) as file:
        index = [1, *file.overviews(1)].index(factor)
    options = {"OVERVIEW_LEVEL": index - 1} if index else {}
    with rasterio.open(path, **options) as file:
        return file.read()


@pytest.mark.parametrize("codec", ["signed_power", "float32"])
@pytest.mark.parametrize("block_cells", [128, 256])
def test_rio_cogeo_finds_nothing_to_complain_about(map_store, tmp_path, codec, block_cells):
    path = export_cog(map_store, tmp_path / "emb.tif", codec=codec, block_cells=block_cells)
    valid, errors, warnings = cog_validate(path, strict=True)
    assert valid, (errors, warnings)
    with rasterio.open(path) as file:
        assert file.dtypes[0] == ("int8" if codec == "signed_power" else "float32")
        assert file.count == 12
        assert file.descriptions[:2] == ("E000", "E001")
        assert file.block_shapes[0] == (block_cells, block_cells)
        assert file.interleaving.value in {"BAND", "TILE"}
        assert file.compression.value == "ZSTD"
        assert file.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == ("2" if codec != "float32" else "3")
        assert file.tags()["YEAR"] == "2024"
        if codec == "signed_power":
            assert file.nodata == -128
            assert file.tags()["QUANTIZATION"] == "signed_power"
            assert "127.5" in file.tags()["QUANTIZATION_FORMULA"]
        else:
            assert np.isnan(file.nodata)
            assert "QUANTIZATION" not in file.tags()
        assert json.loads(file.tags()["BOCAGE"])["model"] == "olmoearth-v1.2-tiny"
    assert [p.name for p in tmp_path.iterdir()] == ["emb.tif"]


def test_the_cog_holds_the_values_of_the_store(map_store, map_cog):
    a, b = open_embeddings(map_store), open_embeddings(map_cog)
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_array_equal(a.y, b.y)
    assert list(b.time.values) == [2024]
    for key in ("model", "patch_size", "codec", "dates", "unit_norm", "weights_id"):
        assert a.attrs[key] == b.attrs[key], key


def test_overviews_are_masked_means_of_real_values(map_store, map_cog):
    x = open_embeddings(map_store)[0].values
    with rasterio.open(map_cog) as file:
        factors = file.overviews(1)
    assert factors == [2, 4]
    for factor in factors:
        q = read_level(map_cog, factor)
        truth = true_means(x, factor)
        assert ((q[0] == -128) == np.isnan(truth[0])).all()
        # sqrt codes: exact up to one rounding of the code
        code = np.sign(truth) * np.sqrt(np.abs(truth)) * 127.5
        error = np.abs(q - code)[:, ~np.isnan(truth[0])]
        assert error.max() <= 0.5 + 1e-3


def test_overviews_of_float32_are_the_means_themselves(map_store, tmp_path):
    path = export_cog(map_store, tmp_path / "emb.tif", codec="float32", block_cells=128)
    x = open_embeddings(map_store)[0].values
    for factor in (2, 4):
        np.testing.assert_allclose(read_level(path, factor), true_means(x, factor), atol=1e-6)


def test_averaging_codes_instead_would_be_noticed(map_store, map_cog):
    """The bound of the test above is sharp: GDAL's own average of codes breaks it."""
    x = open_embeddings(map_store)[0].values
    q = read_level(map_cog, 1).astype(np.float64)
    codes_mean = true_means(np.where(q == -128, np.nan, q), 4)
    truth = true_means(x, 4)
    error = np.abs(codes_mean - np.sign(truth) * np.sqrt(np.abs(truth)) * 127.5)
    assert np.nanmax(error) > 2


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (16, 16), (13, 1)])
def test_masked_means_of_odd_shapes(shape):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, *shape)).astype(np.float32)
    x[:, rng.random(shape) < 0.4] = np.nan
    for factor, got in zip((2, 4, 8), masked_means(x, (2, 4, 8)), strict=True):
        np.testing.assert_allclose(got, true_means(x, factor), atol=1e-6)


def test_masked_means_when_bands_differ_in_their_gaps():
    x = np.ones((2, 2, 2), np.float32)
    x[0] = [[1, np.nan], [3, 5]]
    np.testing.assert_allclose(masked_means(x, (2,))[0][:, 0, 0], [3, 1])


def test_overview_factors_stop_when_the_map_fits_a_block():
    assert overview_factors((256, 200), 256, 512) == ()
    assert overview_factors((257, 200), 256, 512) == (2,)
    assert overview_factors((1900, 1900), 256, 512) == (2, 4, 8)
    assert max(overview_factors((10**6, 10**6), 256, 512)) == 512


@pytest.mark.parametrize(
    ("crs", "north"), [("EPSG:32718", 10_000_400), ("EPSG:32718", 9_000_000), ("EPSG:32618", 400)]
)
def test_a_map_at_the_equator_keeps_its_own_crs(tmp_path, crs, north):
    x = smooth_map(4, (90, 80))
    transform = Affine(10, 0, 500_000, 0, -10, north)
    store = write_map(tmp_path / "e.zarr", x, crs=crs, transform=transform)
    path = export_cog(store, tmp_path / "e.tif")
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == int(crs[5:])
        assert file.transform == transform
    assert cog_validate(path, strict=True)[0]


def test_any_crs_by_way_of_a_single_store(tmp_path):
    x = smooth_map(4, (90, 80))
    transform = Affine(100, 0, 4_000_000, 0, -100, 3_000_000)
    store = write_map(tmp_path / "e.zarr", x, crs="EPSG:3035", transform=transform, layout="single")
    with rasterio.open(export_cog(store, tmp_path / "e.tif")) as file:
        assert file.crs.to_epsg() == 3035
        assert file.transform == transform


def test_a_dataarray_goes_in_as_well(map_store, tmp_path):
    array = open_embeddings(map_store).isel(y=slice(20, 120), x=slice(7, 99), band=slice(0, 5))
    path = export_cog(array, tmp_path / "part.tif")
    back = open_embeddings(path)
    np.testing.assert_array_equal(back.values, array.values)
    np.testing.assert_array_equal(back.x, array.x)
    np.testing.assert_array_equal(back.y, array.y)
    with pytest.raises(InputError, match="spatial_ref"):
        export_cog(array.drop_vars("spatial_ref"), tmp_path / "other.tif")


def test_one_year_of_several_must_be_chosen(tmp_path):
    store = write_map(tmp_path / "e.zarr", smooth_map(3, (64, 64)), years=(2023, 2024))
    with pytest.raises(InputError, match="year=2024"):
        export_cog(store, tmp_path / "e.tif")
    with pytest.raises(InputError, match="2020"):
        export_cog(store, tmp_path / "e.tif", year=2020)
    assert open_embeddings(export_cog(store, tmp_path / "e.tif", year=2023)).time == 2023


def test_wrong_options_and_existing_files_are_refused(map_store, tmp_path):
    with pytest.raises(ConfigError, match="codec"):
        export_cog(map_store, tmp_path / "e.tif", codec="int4")
    with pytest.raises(ConfigError, match="block_cells"):
        export_cog(map_store, tmp_path / "e.tif", block_cells=100)
    (tmp_path / "e.tif").write_text("precious")
    with pytest.raises(StoreError, match="exists"):
        export_cog(map_store, tmp_path / "e.tif")
    assert (tmp_path / "e.tif").read_text() == "precious"
    export_cog(map_store, tmp_path / "e.tif", overwrite=True)
    assert cog_validate(tmp_path / "e.tif")[0]


def test_a_full_disk_leaves_nothing_that_looks_finished(map_store, tmp_path):
    """The kernel really refuses to let files grow beyond a limit, at several stages."""
    for limit_kb in (100, 400, 700):
        program = textwrap.dedent(
            f"""
            import resource
            from bocage.embeddings import export_cog
            from bocage.errors import StoreError
            resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_kb * 1024}, {limit_kb * 1024}))
            try:
                export_cog({str(map_store)!r}, {str(tmp_path / "e.tif")!r})
            except StoreError as error:
                print("STOPPED", error)
            """
        )
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert "STOPPED" in result.stdout, (limit_kb, result.stdout, result.stderr[-500:])
        assert list(tmp_path.iterdir()) == []


def test_a_write_that_gdal_hides_is_found_by_reading_back(map_store, tmp_path, monkeypatch):
    real = cog._copy_to_cog

    def spoil(source, target, **options):
        real(source, target, **options)
        data = bytearray(target.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 400] = bytes(400)
        target.write_bytes(data)

    monkeypatch.setattr(cog, "_copy_to_cog", spoil)
    with pytest.raises(StoreError):
        export_cog(map_store, tmp_path / "e.tif")
    assert list(tmp_path.iterdir()) == []


def test_memory_is_bounded_by_the_tile_and_not_by_the_map(tmp_path):
    """Peak memory of a map four times the size grows by less than a fifth of its values."""
    script = textwrap.dedent(
        """
        import sys
        import numpy as np
        from bocage.memory import peak_resident_mb
        from affine import Affine
        from bocage.embeddings import cog
        from bocage.embeddings.lazy_raster import LazyRaster
        from bocage.geo import Grid
        cog._TILE_BYTES = 8 * 2**20
        cog.CACHE_BYTES = 16 * 2**20
        side = int(sys.argv[1])
        def read(time, band, rows, cols):
            shape = (1, band.stop - band.start, rows.stop - rows.start, cols.stop - cols.start)
            return np.full(shape, 0.25, np.float32)
        transform = Affine(10, 0, 5e5, 0, -10, 4e6)
        grid = Grid(crs="EPSG:32618", transform=transform, shape_yx=(side, side))
        raster = LazyRaster(read=read, shape=(1, 32, side, side), grid=grid, years=(2024,))
        cog._select = lambda *a, **k: raster
        cog.export_cog("x", sys.argv[2])
        print(int(peak_resident_mb() * 1e6))
        """
    )
    peaks = []
    for side in (700, 1400):
        run = subprocess.run(
            [sys.executable, "-c", script, str(side), str(tmp_path / f"{side}.tif")],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(run.stdout))
    values = 1400 * 1400 * 32 * 4
    assert peaks[1] - peaks[0] < 0.2 * values, peaks
