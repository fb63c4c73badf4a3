"""Views against brute force on all pairs."""

import numpy as np
import pytest

from bocage.errors import ConfigError, InputError
from bocage.search import ArraySource, IndexOptions, OpenedIndex, index, open_index
from bocage.search.views import outlier, places_like, view

from .conftest import Corpus

AREA = (11.0, 45.2, 12.0, 46.0)


@pytest.fixture(params=["bits_path", "index_path"])
def opened(request: pytest.FixtureRequest) -> OpenedIndex:
    """Of binary codes, whose bits count, and of product codes, whose decoded vectors have bits."""
    return open_index(request.getfixturevalue(request.param))


def bits_of(opened: OpenedIndex, codes: np.ndarray) -> np.ndarray:
    if opened.info.code["codec"] == "binary_mean":
        return codes
    centers, basis = opened.codec.centers, opened.codec.basis
    decoded = [np.concatenate([centers[j][b] for j, b in enumerate(q)]) @ basis.T for q in codes]
    return np.packbits(np.array(decoded) > 0, axis=1)


@pytest.fixture
def pairs(opened: OpenedIndex):
    """Codes, places and all distances of the area, the slow way."""
    groups = range(opened.n_groups)
    lon, lat = np.concatenate([opened.read_places(g).lonlat for g in groups]).T
    inside = (lon >= 11) & (lon <= 12) & (lat >= 45.2) & (lat <= 46)
    codes = bits_of(opened, np.concatenate([opened.read_codes(g) for g in groups])[inside])
    apart = np.bitwise_count(codes[:, None] ^ codes[None]).sum(axis=2) / opened.info.dims
    return codes, apart, haversine(np.radians(lon[inside]), np.radians(lat[inside]))


def haversine(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Great-circle angles between all pairs."""
    up = np.sin((lat[:, None] - lat) / 2) ** 2
    along = np.cos(lat[:, None]) * np.cos(lat) * np.sin((lon[:, None] - lon) / 2) ** 2
    return 2 * np.arcsin(np.sqrt(up + along))


def test_outlier_is_the_mean_distance_to_all_others(opened, pairs) -> None:
    codes, apart, _ = pairs
    expected = apart.sum(axis=1) / (len(codes) - 1)
    np.testing.assert_allclose(view(opened, "outlier", area=AREA).value, expected, atol=1e-6)
    shuffled = np.random.default_rng(0).permutation(len(codes))
    again = outlier(codes[shuffled], opened.info.dims)
    np.testing.assert_allclose(again, expected[shuffled], atol=1e-6)


def test_surprise_edge_and_diversity_equal_brute_force(opened, pairs) -> None:
    _, apart, ground = pairs
    np.fill_diagonal(ground, np.inf)
    order = np.argsort(ground, axis=1)
    near8 = np.take_along_axis(apart, order[:, :8], axis=1)
    near6 = np.take_along_axis(apart, order[:, :6], axis=1)
    around = np.concatenate([np.arange(len(apart))[:, None], order[:, :15]], axis=1)
    pairwise = [apart[np.ix_(rows, rows)].sum() / (16 * 15) for rows in around]
    for name, expected in [
        ("surprise", near8.mean(axis=1)),
        ("edge", np.ptp(near6, axis=1)),
        ("diversity", pairwise),
    ]:
        value = view(opened, name, area=AREA).value
        np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=name)


def test_places_like_ranks_row_groups_by_their_majority_bits(opened, corpus: Corpus) -> None:
    places = places_like(opened, AREA, k=5)
    assert [p["distance"] for p in places] == sorted(p["distance"] for p in places)
    for place in places:
        west, south, east, north = place["bbox_wsen"]
        assert east < 11 or west > 12 or north < 45.2 or south > 46
    everywhere = places_like(opened, AREA, k=999)
    assert len(everywhere) < opened.n_groups
    group, _ = opened.find_row(places[0]["first_row"])
    majority = np.unpackbits(bits_of(opened, opened.read_codes(group)), axis=1).mean(axis=0) > 0.5
    stored = np.frombuffer(opened.manifest["fingerprint"][group], np.uint8)
    np.testing.assert_array_equal(np.unpackbits(stored), majority)


def test_views_refuse_unknown_names_and_empty_areas(opened: OpenedIndex) -> None:
    with pytest.raises(ConfigError, match="outlier"):
        view(opened, "strange")
    with pytest.raises(InputError, match="inside the index"):
        view(opened, "outlier", area=(0, 0, 1, 1))


def test_codes_without_bits_are_refused_with_the_fix(corpus: Corpus, tmp_path) -> None:
    pytest.importorskip("faiss")
    source = ArraySource(corpus.x[:300], corpus.lonlat[:300])
    index(source, tmp_path / "i", options=IndexOptions(code="rabitq"))
    with pytest.raises(ConfigError, match=r"rabitq .*binary"):
        view(tmp_path / "i", "outlier")
