"""NetCDF, Zarr and xarray against xarray's own reading of the same variables."""

import sys

import numpy as np
import pytest
import rioxarray
import xarray as xr

from bocage.errors import BocageWarning, ConfigError, InputError, SourceError
from bocage.imagery import open_stack, read_window, stack_grid
from bocage.sensors import SENTINEL2_L2A
from tests.imagery.conftest import plausible

ALL = list(SENTINEL2_L2A.band_names)


def everything(stack, sensor="sentinel2_l2a"):
    rows, cols = stack_grid(stack).shape_yx
    return read_window(stack, slice(0, rows), slice(0, cols)).values[sensor]


def cube(values=None, times=2, crs="EPSG:32631"):
    """A Dataset of 12 variables as a user would have it."""
    values = plausible((times, 12, 40, 50)) if values is None else values
    coords = {
        "time": np.array(["2024-01-01", "2024-02-01", "2024-03-01"][:times], "datetime64[ns]"),
        "y": 5_000_000 - 5 - 10.0 * np.arange(values.shape[2]),
        "x": 500_000 + 5 + 10.0 * np.arange(values.shape[3]),
    }
    variables = {b: (("time", "y", "x"), values[:, i]) for i, b in enumerate(ALL)}
    dataset = xr.Dataset(variables, coords)
    return dataset.rio.write_crs(crs) if crs else dataset


def test_worldcereal_months_open_with_both_sensors(data):
    path = data / "worldcereal" / "worldcereal_preprocessed_inputs.nc"
    with pytest.warns(BocageWarning, match="lacks 3 of 12 bands"):
        stack = open_stack(path, scale={"sentinel1": "db20"}, offset={"sentinel1": -83})
    truth = xr.open_dataset(path, engine="h5netcdf")
    grid = stack_grid(stack)
    assert (grid.crs, grid.shape_yx) == ("EPSG:32631", (100, 100))
    np.testing.assert_array_equal(stack.time.values, truth.t.values)
    x = everything(stack)
    stored = truth["S2-L2A-B04"].values.astype("f4")
    stored[stored == 65535] = np.nan
    np.testing.assert_array_equal(x[:, ALL.index("B04")], stored)
    assert np.isnan(x[:, ALL.index("B8A")]).all()
    assert [int(t) for t in np.flatnonzero(np.isnan(x).all(axis=(1, 2, 3)))] == [1, 2]
    vv = 20 * np.log10(truth["S1-SIGMA0-VV"].values.astype("f4")) - 83
    np.testing.assert_allclose(everything(stack, "sentinel1")[:, 0], vv, atol=1e-4)


def test_decibels_for_the_whole_cube_leave_its_optical_bands_as_they_are(data):
    # What the message for radar amplitudes says to type; it used to turn Sentinel-2 into zeros.
    path = data / "worldcereal" / "worldcereal_preprocessed_inputs.nc"
    with pytest.warns(BocageWarning, match="lacks 3 of 12 bands"):
        one = open_stack(path, scale="db20", offset=-83)
    with pytest.warns(BocageWarning, match="lacks 3 of 12 bands"):
        per_sensor = open_stack(path, scale={"sentinel1": "db20"}, offset={"sentinel1": -83})
    for sensor in ("sentinel2_l2a", "sentinel1"):
        np.testing.assert_array_equal(everything(one, sensor), everything(per_sensor, sensor))


def test_worldcereal_radar_numbers_are_refused_with_the_fix(data):
    path = data / "worldcereal" / "worldcereal_preprocessed_inputs.nc"
    with pytest.warns(BocageWarning, match="lacks"), pytest.raises(InputError, match="db20"):
        open_stack(path)
    with pytest.warns(BocageWarning, match="lacks"):
        assert list(open_stack(path, sensor="sentinel2_l2a").data_vars) == ["sentinel2_l2a"]


def test_two_cubes_on_one_grid_share_their_dates(data):
    folder = data / "gfmap_cubes"
    paths = [folder / "cdse_sentinel2_l2a.nc", folder / "cdse_sentinel1_grd.nc"]
    with pytest.warns(BocageWarning, match="lacks 8 of 12"):
        stack = open_stack(paths, scale={"sentinel1": "db20"}, offset={"sentinel1": -83})
    optical, radar = (xr.open_dataset(p, engine="h5netcdf") for p in paths)
    expected = np.union1d(optical.t.values, radar.t.values)
    np.testing.assert_array_equal(stack.time.values, expected)
    # A sensor without a date is NaN there; a cloudy date is NaN by its scene classification.
    has_radar = np.isfinite(everything(stack, "sentinel1")).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(has_radar, np.isin(expected, radar.t.values))
    x = everything(stack)[np.isin(expected, optical.t.values)]
    scl = optical["S2-L2A-SCL"].values
    clear = ~np.isin(scl, [0, 1, 3, 8, 9, 10])
    np.testing.assert_array_equal(np.isfinite(x[:, ALL.index("B04")]), clear)


def test_a_cube_in_another_crs_warps_to_utm(data):
    path = data / "gfmap_cubes" / "openEO_5.nc"
    with pytest.warns(BocageWarning, match="lacks 9 of 12"):
        own, utm = open_stack(path), open_stack(path, crs="utm")
    assert stack_grid(own).crs == "EPSG:3035"
    assert stack_grid(utm).crs == "EPSG:32633"
    truth = (
        xr.open_dataset(path, engine="h5netcdf")["S2-L2A-B04"]
        .isel(t=8)
        .rio.write_crs("EPSG:3035")
        .rio.reproject(
            "EPSG:32633",
            transform=stack_grid(utm).transform,
            shape=stack_grid(utm).shape_yx,
            nodata=0,
        )
    ).values.astype("f4")
    truth[truth == 65535] = 0
    ours = np.nan_to_num(everything(utm)[8, ALL.index("B04")], nan=0)
    assert (ours == truth).mean() > 0.999  # GDAL approximates the transform to an eighth of a pixel


def test_a_dataset_opens_whatever_its_axes_are_called_and_point_to():
    plain = cube()
    truth = np.stack([plain[b].values for b in ALL], axis=1)
    turned = plain.isel(y=slice(None, None, -1)).rename(time="t").transpose("x", "t", "y")
    for dataset in (plain, turned, plain.chunk(x=20)):
        stack = open_stack(dataset)
        np.testing.assert_array_equal(everything(stack), truth)
        assert stack_grid(stack).bbox == (500_000, 4_999_600, 500_500, 5_000_000)


def test_a_data_array_opens_by_its_band_labels_or_given_names():
    truth = plausible((2, 12, 40, 50))
    array = cube(truth).drop_vars("spatial_ref").to_dataarray("band").rio.write_crs("EPSG:32631")
    np.testing.assert_array_equal(everything(open_stack(array)), truth)
    unnamed = array.assign_coords(band=np.arange(12))
    with pytest.raises(InputError, match="bands="):
        open_stack(unnamed)
    np.testing.assert_array_equal(everything(open_stack(unnamed, bands=ALL)), truth)
    with pytest.raises(InputError, match="B03 twice"):
        open_stack(unnamed, bands=["B03", *ALL[1:]])


def test_variables_are_named_by_a_dict():
    truth = plausible((2, 12, 40, 50))
    odd = cube(truth).rename({b: f"layer {i}" for i, b in enumerate(ALL)})
    stack = open_stack(odd, bands={f"layer {i}": b for i, b in enumerate(ALL)})
    np.testing.assert_array_equal(everything(stack), truth)


def test_a_rioxarray_of_a_described_tiff_opens(write_raster):
    truth = plausible((12, 40, 50))
    path = write_raster("a.tif", truth, descriptions=ALL)
    stack = open_stack(rioxarray.open_rasterio(path), date="2024-05-01")
    np.testing.assert_array_equal(everything(stack)[0], truth)


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_files_and_saved_stacks_open_again(tmp_path, kind):
    truth = plausible((2, 12, 40, 50))
    stack = open_stack(cube(truth))
    for name, dataset in (("user", cube(truth)), ("stack", stack)):
        path = tmp_path / f"{name}.{kind}"
        if kind == "nc":
            dataset.to_netcdf(path, engine="h5netcdf")
        else:
            dataset.to_zarr(path)
        again = open_stack(path)
        np.testing.assert_array_equal(everything(again), truth)
        assert stack_grid(again) == stack_grid(stack)
        np.testing.assert_array_equal(again.time.values, stack.time.values)


def test_packed_reflectance_becomes_product_units(tmp_path):
    truth = plausible((2, 12, 40, 50))
    packing = {"dtype": "uint16", "scale_factor": 0.0001, "add_offset": -0.1, "_FillValue": 0}
    cube(truth / 10000.0).to_netcdf(
        tmp_path / "a.nc", engine="h5netcdf", encoding=dict.fromkeys(ALL, packing)
    )
    np.testing.assert_allclose(everything(open_stack(tmp_path / "a.nc")), truth, atol=0.6)


def test_bad_cubes_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="without a CRS"):
        open_stack(cube(crs=None))
    uneven = cube().assign_coords(x=np.arange(50.0) ** 2)
    with pytest.raises(InputError, match="unevenly spaced"):
        open_stack(uneven)
    with pytest.raises(InputError, match="without dates"):
        open_stack(cube().drop_vars("time"))
    assert (
        open_stack(cube().drop_vars("time"), date=["2024-01-01", "2024-01-02"]).sizes["time"] == 2
    )
    with pytest.raises(InputError, match="scale=10000"):
        open_stack(cube(plausible((2, 12, 40, 50)) / 10000.0))
    (tmp_path / "a.nc").write_bytes(b"\x89HDF not really")
    with pytest.raises(SourceError, match=r"a\.nc"):
        open_stack(tmp_path / "a.nc")


def test_a_read_that_fails_in_dask_names_its_source():
    def fail(block):
        raise OSError("disk on fire")

    broken = cube().chunk(x=25)
    broken["B04"] = broken.B04.copy(
        data=broken.B04.data.map_blocks(fail, dtype="u2", meta=np.empty((0, 0, 0), "u2"))
    )
    with pytest.raises(SourceError, match="disk on fire"):
        open_stack(broken)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    cube().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    real = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr(
        "bocage.imagery.netcdf.find_spec", lambda n: None if n == "h5netcdf" else real(n)
    )
    with pytest.raises(ConfigError, match=r"bocage\[netcdf\]"):
        open_stack(tmp_path / "a.nc")
