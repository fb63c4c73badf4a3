"""Previews: the components of scikit-learn, transparent nodata, bounded size."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate
from sklearn.decomposition import PCA

from bocage.embeddings import open_embeddings, preview
from bocage.errors import InputError, StoreError

from .maps import smooth_map, write_map


def read_png(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return file.read()


def test_colors_are_the_components_of_scikit_learn(map_store, tmp_path):
    result = preview(map_store, tmp_path / "p.png")
    picture = read_png(tmp_path / "p.png")
    x = open_embeddings(map_store)[0].values
    valid = ~np.isnan(x[0])
    pca = PCA(3).fit(x[:, valid].T)
    np.testing.assert_allclose(result.variance_explained, pca.explained_variance_ratio_, rtol=0.02)
    scores = pca.transform(x[:, valid].T)
    low, high = np.percentile(scores, [2, 98], axis=0)
    expected = np.clip((scores - low) / (high - low), 0, 1) * 255
    for band in range(3):
        got = picture[band][valid].astype(float)
        distance = min(np.abs(got - e).mean() for e in (expected[:, band], 255 - expected[:, band]))
        assert distance < 4, (band, distance)
    assert ((picture[3] == 255) == valid).all()
    assert "for looking" in str(result)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.png"]


def test_a_large_map_becomes_a_small_picture_of_means(map_store, tmp_path):
    preview(map_store, tmp_path / "full.png")
    preview(map_store, tmp_path / "small.png", max_px=100)
    full, small = read_png(tmp_path / "full.png"), read_png(tmp_path / "small.png")
    assert small.shape == (4, 76, 99)
    inside = full[:3, 80:84, 80:84].astype(float)
    assert np.abs(inside.mean(axis=(1, 2)) - small[:3, 20, 20]).max() < 12
    # Two of four columns of the last cells are nodata, so the cell is seen; the hole is not.
    assert small[3, 12, 4] == 0
    assert small[3, 30, 30] == 255


def test_the_rgb_geotiff_is_a_cog_with_alpha(map_store, tmp_path):
    preview(map_store, tmp_path / "p.png", cog=tmp_path / "p.tif")
    assert cog_validate(tmp_path / "p.tif", strict=True)[0]
    with rasterio.open(tmp_path / "p.tif") as file:
        assert [c.name for c in file.colorinterp] == ["red", "green", "blue", "alpha"]
        assert file.crs.to_epsg() == 32618
        assert file.overviews(1)
        np.testing.assert_array_equal(file.read(), read_png(tmp_path / "p.png"))


def test_two_runs_draw_the_same_picture(map_store, map_cog, tmp_path):
    preview(map_store, tmp_path / "a.png")
    preview(map_store, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    preview(map_cog, tmp_path / "c.png")
    difference = read_png(tmp_path / "a.png").astype(int) - read_png(tmp_path / "c.png")
    assert np.abs(difference[:3]).mean() < 6


@pytest.mark.parametrize("dims", [1, 2])
def test_fewer_than_three_dims_can_be_drawn(tmp_path, dims):
    store = write_map(tmp_path / "e.zarr", smooth_map(dims, (80, 70)))
    result = preview(store, tmp_path / "p.png")
    assert sum(result.variance_explained) == pytest.approx(1, abs=1e-3)


def test_a_map_of_one_value_and_a_map_of_nothing(tmp_path):
    flat = np.full((4, 80, 70), 0.25, np.float32)
    preview(write_map(tmp_path / "flat.zarr", flat), tmp_path / "p.png")
    empty = np.full((4, 80, 70), np.nan, np.float32)
    with pytest.raises(StoreError, match="nodata"):
        preview(write_map(tmp_path / "empty.zarr", empty), tmp_path / "q.png")
    assert not (tmp_path / "q.png").exists()


def test_the_last_year_is_drawn_and_unknown_years_are_refused(tmp_path):
    store = write_map(tmp_path / "e.zarr", smooth_map(3, (64, 64)), years=(2023, 2024))
    assert "(2024 of 2023, 2024)" in str(preview(store, tmp_path / "p.png"))
    with pytest.raises(InputError, match="1999"):
        preview(store, tmp_path / "p.png", year=1999)


def test_a_small_map_is_drawn_large_enough_to_see(tmp_path):
    store = write_map(tmp_path / "e.zarr", smooth_map(3, (64, 80)))
    preview(store, tmp_path / "p.png", cog=tmp_path / "p.tif")
    picture = read_png(tmp_path / "p.png")
    assert picture.shape == (4, 384, 480)
    with rasterio.open(tmp_path / "p.tif") as file:
        np.testing.assert_array_equal(file.read(), picture[:, ::6, ::6])
    preview(store, tmp_path / "q.png", max_px=80)
    assert read_png(tmp_path / "q.png").shape == (4, 64, 80)


def test_a_folder_as_the_picture_is_refused_with_a_name(map_store, tmp_path):
    with pytest.raises(StoreError, match=r"map\.png"):
        preview(map_store, tmp_path)
    with pytest.raises(StoreError, match=r"map\.tif"):
        preview(map_store, tmp_path / "p.png", cog=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_gdal_is_called_one(tmp_path, monkeypatch):
    from bocage.embeddings import atomic

    monkeypatch.setattr(atomic, "_free_bytes", lambda folder: 0)
    failure = type("CPLE_FileIOError", (Exception,), {"__module__": "rasterio._err", "errno": 3})
    with (
        pytest.raises(StoreError, match="no space left"),
        atomic.naming_failures(tmp_path / "map.tif"),
    ):
        raise failure("TIFFWriteDirectoryTagData:IO error writing tag data")
