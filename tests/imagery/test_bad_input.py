"""Everything that can be wrong with files: one sentence with the fix, and never silent nodata."""

import warnings

import numpy as np
import pytest
import rasterio

from bocage.errors import BocageWarning, ConfigError, InputError, SourceError
from bocage.imagery import open_stack, read_window
from bocage.sensors import SENTINEL2_L2A
from tests.imagery.conftest import plausible

ALL = list(SENTINEL2_L2A.band_names)


@pytest.mark.parametrize(
    "source", ["/nowhere/at/all", "/nowhere/B02.tif", "/nowhere.nc", "/no.zarr"]
)
def test_missing_files_are_named(source):
    with pytest.raises(SourceError, match="does not exist"):
        open_stack(source)


def test_no_source_at_all():
    for source in (None, [], 3):
        with pytest.raises(SourceError, match="expected a path"):
            open_stack(source)


def test_a_file_that_is_no_raster_is_named(tmp_path):
    (tmp_path / "B02.tif").write_text("hello")
    with pytest.raises(SourceError, match=r"B02\.tif, which cannot be opened"):
        open_stack(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="without raster files"):
        open_stack(tmp_path / "empty")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_truncated_jpeg_2000_is_an_error_and_never_nodata(write_raster, keep):
    path = write_raster(
        "T31TFJ_20200601T154911_B02.jp2",
        plausible((1, 1024, 1024)),
        driver="JP2OpenJPEG",
        QUALITY="100",
        REVERSIBLE="YES",
        BLOCKXSIZE="256",
        BLOCKYSIZE="256",
    )
    with pytest.warns(BocageWarning, match="lacks 11"):
        open_stack(path)
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: int(len(whole) * keep)])
    # The windows that opening samples may lie in the sound part; then the read fails.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BocageWarning)
        with pytest.raises(SourceError, match="B02"):
            read_window(open_stack(path), slice(0, 1024), slice(0, 1024))


def test_a_truncated_tiff_is_an_error_and_never_nodata(write_raster):
    path = write_raster("2024-01-01.tif", plausible((12, 600, 600)), descriptions=ALL)
    path.write_bytes(path.read_bytes()[:5_000_000])
    with pytest.raises(SourceError, match=r"2024-01-01\.tif"):
        read_window(open_stack(path), slice(0, 600), slice(0, 600))


def test_a_file_without_crs_is_refused(write_raster):
    path = write_raster("2024-01-01.tif", (12, 80, 80), descriptions=ALL, crs=None)
    with pytest.raises(InputError, match=r"without a CRS.*edit-info"):
        open_stack(path)


def test_degrees_are_refused(write_raster):
    path = write_raster(
        "2024-01-01.tif",
        (12, 80, 80),
        descriptions=ALL,
        crs="EPSG:4326",
        res=1e-4,
        west=5,
        north=45,
    )
    with pytest.raises(InputError, match=r'degrees.*crs="utm"'):
        open_stack(path)


def test_unnamed_doubled_and_miscounted_bands_are_refused(write_raster):
    unnamed = write_raster("x.tif", (12, 80, 80))
    with pytest.raises(InputError, match=r"none of which is named.*bands="):
        open_stack(unnamed)
    with pytest.raises(InputError, match="11 names in bands="):
        open_stack(unnamed, bands=ALL[:11])
    with pytest.raises(InputError, match="B03 twice"):
        open_stack(unnamed, bands=["B03", *ALL[1:]], sensor="sentinel2_l2a")
    doubled = write_raster("y.tif", (2, 80, 80), descriptions=["B02", "B2"])
    with pytest.raises(InputError, match="B02 twice"):
        open_stack(doubled, sensor="sentinel2_l2a")
    ambiguous = write_raster("z.tif", (1, 80, 80), descriptions=["red"], res=12)
    with pytest.raises(InputError, match="sensor="):
        open_stack(ambiguous)


def test_a_band_twice_in_a_folder_is_refused_also_with_dates(write_raster, tmp_path):
    for name in ("2024-01-01_B02.tif", "2024-01-01_B02_copy.tif"):
        write_raster(name, (1, 80, 80))
    with pytest.raises(InputError, match=r"B02 twice for the same place on 2024-01-01.*copy"):
        open_stack(tmp_path)


def test_a_named_file_beside_unnamed_ones_opens(write_raster, tmp_path):
    write_raster("2024-01-01/a.tif", (12, 80, 80), descriptions=ALL)
    write_raster("2024-01-01/preview.tif", (3, 10, 10))
    assert len(open_stack(tmp_path).attrs["bocage_sources"]) == 1


def test_all_nodata_is_refused_but_a_corner_of_data_opens(write_raster):
    values = np.zeros((12, 400, 400), np.uint16)
    path = write_raster("2024-01-01.tif", values, descriptions=ALL, nodata=0)
    with pytest.raises(InputError, match="all of it nodata"):
        open_stack(path)
    values[:, :10, :10] = 500
    path = write_raster("2024-01-02.tif", values, descriptions=ALL, nodata=0)
    assert np.isfinite(open_stack(path).sentinel2_l2a.values).sum() == 12 * 100


def test_wrong_units_in_a_file_are_refused(write_raster):
    reflectance = (plausible((12, 80, 80)) / 10000).astype("f4")
    path = write_raster("2024-01-01.tif", reflectance, descriptions=ALL)
    with pytest.raises(InputError, match=r"2024-01-01.*reflectance 0\.\.1.*scale=10000"):
        open_stack(path)


def test_level_1c_warns_unless_acknowledged(write_raster):
    path = write_raster("2024-01-01.tif", (13, 80, 80), descriptions=[*ALL, "B10"])
    with pytest.warns(BocageWarning, match=r"Level-1C.*embeddings shift"):
        open_stack(path)
    open_stack(path, level="L1C")


@pytest.mark.parametrize(
    "option",
    [
        {"resolution_m": 0},
        {"level": "L3"},
        {"scale": "decibel"},
        {"scale": 0},
        {"offset": "x"},
        {"offset": {"sentinel_2": -1000}},
        {"bands": 5},
        {"bbox": (1, 2, 3)},
        {"dates": "2023"},
        {"catalog": "http://localhost:1"},
    ],
)
def test_impossible_options_are_refused(write_raster, option):
    path = write_raster("2024-01-01.tif", (12, 80, 80), descriptions=ALL)
    with pytest.raises(ConfigError, match="expected"):
        open_stack(path, **option)


def test_unknown_crs_sensor_and_bbox_are_refused(write_raster):
    path = write_raster("2024-01-01.tif", (12, 80, 80), descriptions=ALL)
    for option in ({"crs": "EPSG:1"}, {"sensor": "modis"}, {"bbox": (3, 45, 2, 46)}):
        with pytest.raises(InputError, match="expected"):
            open_stack(path, **option)


def test_a_scene_larger_than_memory_opens_and_reads_only_its_window(tmp_path, write_raster):
    """A sparse raster of 100,000 x 100,000 pixels and 12 bands would be 480 GB as float32."""
    path = tmp_path / "2024-01-01.tif"
    side = 100_000
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=12,
        dtype="uint16",
        nodata=0,
        crs="EPSG:32631",
        transform=rasterio.transform.from_origin(5e5, 5e6, 10, 10),
        tiled=True,
        blockxsize=512,
        blockysize=512,
        sparse_ok=True,
        bigtiff="YES",
        interleave="band",
    ) as target:
        here = rasterio.windows.Window(side // 2, side // 2, 512, 512)
        target.write(plausible((12, 512, 512)), window=here)
        for index, band in enumerate(ALL, start=1):
            target.set_band_description(index, band)
    stack = open_stack(path)
    assert stack.sentinel2_l2a.nbytes > 400e9
    x = read_window(stack, slice(50_000, 50_100), slice(49_990, 50_090)).values["sentinel2_l2a"]
    assert np.isfinite(x).any(axis=(0, 1, 2)).nonzero()[0].min() == 10
    part = stack.sentinel2_l2a.isel(y=slice(50_000, 50_010), x=slice(50_000, 50_010))
    np.testing.assert_array_equal(part.values, x[:, :, :10, 10:20])
