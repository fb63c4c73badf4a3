import pytest

from bocage.errors import InputError
from bocage.imagery.bands import band_token, is_level_1c, name_band, product_sensor


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("T18TWL_20200601T154911_B02_10m", "B02"),
        ("s2_B8A", "B8A"),
        ("S2-L2A-B11", "B11"),
        ("S1-SIGMA0-VV", "VV"),
        ("B4, central wavelength 665 nm", "B4"),
        ("T18TWL_20200601T154911_SCL_20m", "SCL"),
        ("LC09_L1TP_018033_20240601_20240601_02_T1_QA_PIXEL", "QA_PIXEL"),
        ("LC09_L1TP_018033_20240601_20240601_02_T1_B10", "B10"),
        ("red", "RED"),
        ("T18TWL_20200601T154911_TCI_10m", None),
        ("preview", None),
        ("AB02", None),
        ("WVP_10m", None),
    ],
)
def test_tokens_are_found_in_names(text, token):
    assert band_token(text) == token


@pytest.mark.parametrize(
    ("path", "sensor"),
    [
        ("S2A_MSIL2A_20200601T154911_N0214_R054_T18TWL.SAFE/IMG_DATA/B02.jp2", "sentinel2_l2a"),
        ("scenes/T18TWL_20200601T154911_B02.jp2", "sentinel2_l2a"),
        ("landsat8/l8_B1.tif", "landsat"),
        ("x/LC08_L1TP_018033_20200601_20200601_02_T1_B4.TIF", "landsat"),
        ("sentinel2/landsat/B4.tif", "landsat"),
        ("S1A_IW_GRDH.tif", "sentinel1"),
        ("sentinel-1-rtc", "sentinel1"),
        ("tile_000.tif", None),
    ],
)
def test_products_state_their_sensor(path, sensor):
    assert product_sensor(path) == sensor


def test_level_1c_is_read_from_names():
    assert is_level_1c("S2A_MSIL1C_20200601T154911")
    assert is_level_1c("s2_l1c_R10m.tif")
    assert not is_level_1c("S2A_MSIL2A_20200601T154911")


def test_an_ambiguous_band_is_settled_by_neighbours_or_pixel_size_or_not_at_all():
    assert name_band("B4", neighbours=frozenset({"B8A"})).sensor == "sentinel2_l2a"
    assert name_band("B4", neighbours=frozenset({"QA_PIXEL"})).sensor == "landsat"
    assert name_band("B4", resolution_m=30).sensor == "landsat"
    assert name_band("B4", resolution_m=10).band == "B04"
    assert name_band("RED", sensor="landsat").band == "B4"
    assert name_band("B10", sensor="sentinel2_l2a") is None
    with pytest.raises(InputError, match="sensor="):
        name_band("B4", where="x.tif")
