"""Two times on one grid: what they share, and what is refused."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from bocage import open_embeddings
from bocage.change import open_pair
from bocage.errors import BocageWarning, InputError, SourceError

from .conftest import write_bands, write_store


def everything(pair):
    rows, cols = pair.grid.shape_yx
    return pair.read(slice(0, rows), slice(0, cols))


def test_cells_missing_at_one_time_are_missing_at_both(stores, years):
    pair = open_pair(*stores)
    before, after = everything(pair)
    missing = np.isnan(years[0][0]) | np.isnan(years[1][0])
    for found, want in ((before, years[0]), (after, years[1])):
        np.testing.assert_array_equal(np.isnan(found[0]), missing)
        np.testing.assert_array_equal(found[:, ~missing], want[:, ~missing])
    assert pair.years == (2024, 2025) and pair.is_embeddings


def test_two_years_of_one_store_are_a_pair(tmp_path, years):
    store = write_store(tmp_path / "both.zarr", years, (2024, 2025))
    np.testing.assert_array_equal(everything(open_pair(store))[1], everything(
        open_pair(store, years=(2024, 2025)))[1])  # fmt: skip
    backwards = everything(open_pair(store, years=(2025, 2024)))
    np.testing.assert_array_equal(backwards[0], everything(open_pair(store))[1])
    opened = open_pair(open_embeddings(store).isel(time=[0]), open_embeddings(store).isel(time=[1]))
    np.testing.assert_array_equal(everything(opened)[0], everything(open_pair(store))[0])


def test_two_precisions_are_compared_with_a_warning(tmp_path, years):
    stores = [
        write_store(tmp_path / f"{precision}.zarr", [x], (year,), attrs={"precision": precision})
        for precision, x, year in zip(("bf16", "fp32"), years, (2024, 2025), strict=True)
    ]
    with pytest.warns(BocageWarning, match=r"bf16.zarr was embedded in bf16 and .*fp32.zarr in fp"):
        open_pair(*stores)
    open_pair(stores[0], write_store(tmp_path / "old.zarr", [years[1]], (2025,)))  # says nothing


@pytest.mark.parametrize("shift", [(0, 0), (7, -4), (-30, 55)])
def test_maps_that_overlap_in_part_are_compared_where_both_are(tmp_path, years, shift):
    t = Affine(40, 0, 700_000, 0, -40, 3_200_000)
    down, right = shift
    stores = [
        write_store(tmp_path / "a.zarr", [years[0]], (2024,)),
        write_store(
            tmp_path / "b.zarr", [years[1]], (2025,), transform=t @ Affine.translation(right, down)
        ),
    ]
    pair = open_pair(*stores)
    h, w = years[0].shape[1:]
    a = years[0][:, max(down, 0) : h + min(down, 0), max(right, 0) : w + min(right, 0)]
    b = years[1][:, max(-down, 0) : h - max(down, 0), max(-right, 0) : w - max(right, 0)]
    before, after = everything(pair)
    missing = np.isnan(a[0]) | np.isnan(b[0])
    np.testing.assert_array_equal(before, np.where(missing, np.nan, a))
    np.testing.assert_array_equal(after, np.where(missing, np.nan, b))
    assert pair.grid.transform @ (0, 0) == t @ (max(right, 0), max(down, 0))


def test_bands_are_matched_by_name(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (3, 20, 30)).astype(np.float32)
    a = write_bands(tmp_path / "a.tif", x, names=["B02", "B03", "B04"])
    b = write_bands(tmp_path / "b.tif", x[[2, 1, 0]], names=["B04", "B03", "B08"])
    pair = open_pair(a, b)
    assert pair.features == ("B03", "B04") and not pair.is_embeddings
    before, after = everything(pair)
    np.testing.assert_array_equal(before, after)


def test_bands_without_a_common_name_are_matched_in_order_with_a_warning(taizhou):
    with pytest.warns(BocageWarning, match="compared in their order"):
        pair = open_pair(taizhou / "2000TM", taizhou / "2003TM")
    assert len(pair.features) == 6 and pair.grid.shape_yx == (400, 400)


def test_nodata_of_rasters_is_not_a_value(tmp_path):
    x = np.full((2, 20, 30), 500, np.uint16)
    x[:, 4:6, 3:9] = 0
    a = write_bands(tmp_path / "a.tif", x, nodata=0)
    before, _ = everything(open_pair(a, write_bands(tmp_path / "b.tif", x + 7)))
    assert np.isnan(before[0]).sum() == 12


def test_what_cannot_be_compared_is_refused_in_one_sentence(tmp_path, stores, years):
    t = Affine(40, 0, 700_000, 0, -40, 3_200_000)

    def other(name, **changes):
        return write_store(tmp_path / f"{name}.zarr", [years[1]], (2025,), **changes)

    cases = {
        "patch size 4 .* and 8": other("patch", patch_size=8),
        "model olmoearth-v1.2-nano": other("model", model="olmoearth-v1.2-tiny"),
        "weights random:0": other("weights", attrs={"weights_id": "sha"}),
        "cells of 40 in EPSG:32643": other("fine", transform=Affine(10, 0, 7e5, 0, -10, 3.2e6)),
        "EPSG:32644": other("zone", crs="EPSG:32644"),
        "0.50 cells off": other("half", transform=t @ Affine.translation(0.5, 0)),
        "maps that overlap": other("far", transform=t @ Affine.translation(900, 0)),
    }
    for match, store in cases.items():
        with pytest.raises(InputError, match=match):
            open_pair(stores[0], store)
    short = write_store(tmp_path / "short.zarr", [years[1][:4]], (2025,))
    with pytest.raises(InputError, match=r"12 dims .* and 4"):
        open_pair(stores[0], short)
    bands = write_bands(tmp_path / "bands.tif", years[1][:3])
    with pytest.raises(InputError, match="two maps of embeddings, or two images"):
        open_pair(stores[0], bands)
    with pytest.raises(InputError, match="two times"):
        open_pair(stores[0])
    with pytest.raises(InputError, match="year 2020"):
        open_pair(*stores, years=(2020, 2025))
    with pytest.raises(SourceError, match="does not exist"):
        open_pair(stores[0], tmp_path / "none.zarr")
    both = write_store(tmp_path / "both.zarr", years, (2023, 2024))
    with pytest.raises(InputError, match="--years 2023,2024"):
        open_pair(both, stores[1])


def test_maps_of_classes_are_not_subtracted(tmp_path):
    codes = np.random.default_rng(0).integers(1, 4, (1, 20, 30)).astype(np.uint8)
    path = write_bands(tmp_path / "classes.tif", codes)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {1: (255, 0, 0, 255), 2: (0, 255, 0, 255)})
    with pytest.raises(InputError, match=r"classes\.tif, a map of classes"):
        open_pair(path, path)
