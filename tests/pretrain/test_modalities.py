"""Ranges and bands against the official package's own tables."""

import json
from importlib.resources import files

import numpy as np
import pytest
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.data.normalize import Normalizer
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.constants import Modality

from bocage.errors import InputError
from bocage.pretrain.modalities import MODALITIES, modality, normalize

TABLES = files("olmoearth_pretrain_minimal.olmoearth_pretrain_v1.data.norm_configs")
PREDEFINED = ("openstreetmap_raster", "worldcereal")  # no computed table: specification 1.5


@pytest.mark.parametrize("name", [n for n in MODALITIES if n not in PREDEFINED])
def test_normalization_equals_the_official_computed_tables(name):
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 200, (4, 4, 2, len(MODALITIES[name].bands))).astype(np.float32)
    official = Normalizer(std_multiplier=2.0).normalize(Modality.get(name), x)
    np.testing.assert_allclose(normalize(name, x), official, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PREDEFINED)
def test_maps_without_computed_table_use_the_official_predefined_range(name):
    table = json.loads((TABLES / "predefined.json").read_text())[name]
    low = [table[band]["min"] for band in MODALITIES[name].bands]
    high = [table[band]["max"] for band in MODALITIES[name].bands]
    np.testing.assert_allclose(normalize(name, np.array(low)), 0)
    np.testing.assert_allclose(normalize(name, np.array(high)), 1)


@pytest.mark.parametrize("name", MODALITIES)
def test_bands_and_band_sets_are_the_official_ones(name):
    official = Modality.get(name)
    order = [band for group in official.band_sets for band in group.bands]
    assert list(MODALITIES[name].bands) == order
    sizes = [len(group.bands) for group in official.band_sets]
    v1 = {"sentinel2_l2a": [4, 6, 2], "landsat": [1, 10]}.get(name, [sum(sizes)])
    assert [len(s) for s in MODALITIES[name].band_sets("v1")] == v1
    assert [len(s) for s in MODALITIES[name].band_sets("single")] == [sum(sizes)]


def test_unknown_modality_is_named():
    with pytest.raises(InputError, match="got modality 'naip'; expected one of sentinel2_l2a"):
        modality("naip")
