"""Answers against brute force and faiss; areas, dates and filters; what goes over the wire."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapely
from rasterio.warp import transform

from bocage.errors import ConfigError, InputError, SourceError, StoreError
from bocage.search import IndexOptions, OpenedIndex, SearchOptions, index, open_index, search
from bocage.search.area import make_area

from .conftest import Corpus, RangeServer, columns_of


def numbers(hits) -> np.ndarray:
    return np.asarray(hits.attributes["number"])


def row_of(opened: OpenedIndex, number: int) -> str:
    """Row id of a row of the corpus, through the column it was indexed with."""
    for g in range(opened.n_groups):
        found = np.flatnonzero(np.asarray(opened.read_columns(g, ["number"])["number"]) == number)
        if len(found):
            return opened.row_ids(np.array([g]), found[:1])[0]
    raise AssertionError(number)


def test_exact_search_equals_faiss_flat(opened: OpenedIndex, corpus: Corpus) -> None:
    faiss = pytest.importorskip("faiss")
    # faiss over the stored vectors: same data, so the same neighbors.
    groups = np.repeat(np.arange(opened.n_groups), opened.manifest["n_rows"])
    rows = np.concatenate([np.arange(n) for n in opened.manifest["n_rows"]])
    stored = opened.read_vectors(groups, rows)
    flat = faiss.IndexFlatIP(stored.shape[1])
    flat.add(stored)
    ids = np.array(opened.row_ids(groups, rows))
    for query in corpus.unit[:5]:
        cosine, nearest = flat.search(query[None], 20)
        hits = search(opened, query, options=SearchOptions(k=20, exact=True))
        assert hits.row == ids[nearest[0]].tolist()
        np.testing.assert_allclose(hits.score, cosine[0], atol=1e-6)


def test_codes_alone_equal_faiss_binary_flat(bits_path: Path, corpus: Corpus) -> None:
    faiss = pytest.importorskip("faiss")
    opened = open_index(bits_path)
    codes = np.concatenate([opened.read_codes(g) for g in range(opened.n_groups)])
    flat = faiss.IndexBinaryFlat(8 * codes.shape[1])
    flat.add(codes)
    query = corpus.unit[11]
    bits, _ = flat.search(opened.codec.encode(query[None]), 30)
    hits = search(opened, query, options=SearchOptions(k=30, rerank=False))
    np.testing.assert_allclose(hits.score, 1 - 2 * bits[0] / opened.info.dims, atol=1e-6)


def test_product_codes_alone_equal_faiss_over_the_same_centers(
    opened: OpenedIndex, corpus: Corpus
) -> None:
    faiss = pytest.importorskip("faiss")
    codec = opened.codec
    assert codec.name == "balanced_pq8"  # a 32nd of 64 float32 values
    codes = np.concatenate([opened.read_codes(g) for g in range(opened.n_groups)])
    flat = faiss.IndexPQ(codec.basis.shape[1], 8, 8, faiss.METRIC_L2)
    faiss.copy_array_to_vector(codec.centers.reshape(-1), flat.pq.centroids)
    flat.is_trained = True
    flat.add_sa_codes(codes)
    query = corpus.unit[11]
    inside = (query - codec.mean) @ codec.basis
    off_axes = ((query - codec.mean) ** 2).sum() - (inside**2).sum()
    apart, rows = flat.search(inside[None], 30)
    hits = search(opened, query, options=SearchOptions(k=30, rerank=False))
    np.testing.assert_allclose(hits.score, 1 - (apart[0] + off_axes) / 2, atol=1e-5)
    ids = opened.row_ids(*np.divmod(rows[0], 250))
    assert len(set(ids) & set(hits.row)) >= 29  # the last two may be equal


def test_two_stages_find_the_float32_neighbors(opened: OpenedIndex, corpus: Corpus) -> None:
    found = []
    for i in range(0, 400, 20):
        cosine = corpus.unit @ corpus.unit[i]
        cosine[i] = -2  # self is no neighbor
        truth = np.argsort(-cosine)[:10]
        hits = search(opened, row_of(opened, i), options=SearchOptions(k=10))
        assert i not in numbers(hits)
        found.append(np.isin(truth, numbers(hits)).mean())
    assert np.mean(found) >= 0.95


def stored_vectors(opened: OpenedIndex) -> np.ndarray:
    """What the index holds, in the order of the corpus."""
    groups = np.repeat(np.arange(opened.n_groups), opened.manifest["n_rows"])
    rows = np.concatenate([np.arange(n) for n in opened.manifest["n_rows"]])
    number = np.concatenate(
        [np.asarray(opened.read_columns(g, ["number"])["number"]) for g in range(opened.n_groups)]
    )
    x = np.empty((len(rows), opened.info.rerank_dims), np.float32)
    x[number] = opened.read_vectors(groups, rows)
    return x


def brute_force(x: np.ndarray, positives, negatives, how: str) -> np.ndarray:
    good, bad = x @ x[positives].T, x @ x[negatives].T
    best = np.sort(good, axis=1)
    score = {
        "mean": good.mean(axis=1) - bad.mean(axis=1),
        "and": best[:, 0] - bad.max(axis=1),
        "or": best[:, -1] - bad.max(axis=1),
        "xor": best[:, -1] - best[:, -2] - bad.max(axis=1),
    }[how]
    score[positives + negatives] = np.nan
    return score


@pytest.mark.parametrize("how", ["mean", "and", "or", "xor"])
@pytest.mark.parametrize("invert", [False, True])
def test_exemplars_combine_as_documented(opened: OpenedIndex, how: str, invert: bool) -> None:
    positives, negatives = [5, 900, 1700], [3000, 42]
    expected = brute_force(stored_vectors(opened), positives, negatives, how)
    expected *= -1 if invert else 1
    hits = search(
        opened,
        [row_of(opened, i) for i in positives],
        negatives=[row_of(opened, i) for i in negatives],
        options=SearchOptions(k=15, combine=how, invert=invert, exact=True),
    )
    np.testing.assert_allclose(hits.score, -np.sort(-expected)[:15], atol=1e-6)
    np.testing.assert_allclose(hits.score, expected[numbers(hits)], atol=1e-6)


def test_a_place_a_row_and_a_vector_are_the_same_exemplar(
    opened: OpenedIndex, corpus: Corpus
) -> None:
    lon, lat = (float(v) for v in corpus.lonlat[77])
    options = SearchOptions(k=5, include_exemplars=True)
    by_place = search(opened, (lon, lat), options=options)
    assert numbers(by_place)[0] == 77
    assert search(opened, f"{lon},{lat}", options=options).row == by_place.row
    assert search(opened, by_place.row[0], options=options).row == by_place.row
    assert search(opened, corpus.x[77] * 9, options=options).row == by_place.row


# -- areas and filters ----------------------------------------------------------------------------


def test_rectangles_polygons_dates_and_columns_filter_as_numpy_does(
    opened: OpenedIndex, corpus: Corpus
) -> None:
    import shapely

    lon, lat = corpus.lonlat.T
    everything = SearchOptions(k=10_000, include_exemplars=True)

    def found(**filters) -> set[int]:
        return set(numbers(search(opened, corpus.x[0], options=everything, **filters)).tolist())

    box = (lon > 11) & (lon < 12) & (lat > 45.5) & (lat < 46)
    assert found(area=(11, 45.5, 12, 46)) == set(np.flatnonzero(box))
    circle = shapely.Point(12, 46).buffer(0.4)
    inside = shapely.contains_xy(circle, lon, lat)
    assert found(area=circle) == set(np.flatnonzero(inside))
    assert found(area=json.loads(shapely.to_geojson(circle))) == set(np.flatnonzero(inside))
    late = corpus.date == 19_400
    day = str(np.datetime64(19_400, "D"))
    assert found(area=(11, 45.5, 12, 46), dates=day) == set(np.flatnonzero(box & late))
    assert found(dates=("2023-01-01", "2024-12-31")) == set(np.flatnonzero(late))
    forest = corpus.kind == 1
    assert found(where={"kind": "forest"}) == set(np.flatnonzero(forest))
    low = np.arange(len(lon)) <= 99
    where = {"kind": ["forest", "water"], "number": (0, 99)}
    assert found(where=where) == set(np.flatnonzero((corpus.kind > 0) & low))


def test_areas_across_the_antimeridian(tmp_path: Path) -> None:
    from bocage.search import ArraySource

    rng = np.random.default_rng(3)
    lon = np.concatenate(
        [rng.uniform(178, 180, 200), rng.uniform(-180, -178, 200), np.full(50, 0.0)]
    )
    lonlat = np.stack([lon, rng.uniform(-18, -16, 450)], axis=1)
    lonlat[:, 0] = np.clip(lonlat[:, 0], -179.9, 179.9)
    x = rng.normal(size=(450, 16)).astype(np.float32)
    index(ArraySource(x, lonlat), tmp_path / "i", options=IndexOptions(rows_per_group=50))
    options = SearchOptions(k=1000)
    expected = int((np.abs(lonlat[:, 0]) > 179).sum())
    assert (
        len(search(tmp_path / "i", x[0], area=(179, -20, -179, -10), options=options)) == expected
    )
    beyond = {
        "type": "Polygon",
        "coordinates": [[[179, -20], [181, -20], [181, -10], [179, -10], [179, -20]]],
    }
    assert len(search(tmp_path / "i", x[0], area=beyond, options=options)) == expected
    jump = {
        "type": "Polygon",
        "coordinates": [[[179, -20], [-179, -20], [-179, -10], [179, -10], [179, -20]]],
    }
    with pytest.raises(InputError, match="beyond 180"):
        search(tmp_path / "i", x[0], area=jump)


def test_cells_across_the_antimeridian_stay_where_they_are(tmp_path: Path) -> None:
    from affine import Affine

    from bocage.embeddings import EmbeddingGrid, create_store, write_shard

    # Fiji in UTM zone 1: the twelfth column of cells lies across 180 degrees.
    grid = EmbeddingGrid(
        crs="EPSG:32601", transform=Affine(80, 0, 179_240, 0, -80, -1_882_000), shape_yx=(24, 24),
        dims=16, codec="float32", years=(2024,), shard_cells=64,
    )  # fmt: skip
    create_store(tmp_path / "fiji.zarr", grid)
    x = np.random.default_rng(0).normal(size=(16, 24, 24)).astype(np.float32)
    write_shard(tmp_path / "fiji.zarr", grid, 2024, 0, 0, x)
    index(tmp_path / "fiji.zarr", tmp_path / "i")
    opened = open_index(tmp_path / "i")
    row, col = np.mgrid[:24, :24].reshape(2, -1)
    lon, lat = transform("EPSG:32601", "EPSG:4326", 179_280 + 80 * col, -1_882_040 - 80 * row)
    hits = search(opened, x[:, 0, 0], options=SearchOptions(k=1000))
    assert len(hits) == 576
    assert (hits.bbox[:, 2] - hits.bbox[:, 0]).max() < 0.001
    at = np.ravel_multi_index(
        [hits.attributes[name].to_numpy() for name in ("grid_row", "grid_col")], (24, 24)
    )
    apart = (hits.lonlat[:, 0] - np.array(lon)[at] + 180) % 360 - 180
    assert np.abs(apart).max() < 0.0005  # half a cell at most
    for i in (0, 11, 12, 13, 23, 300):
        best = search(
            opened, (lon[i], lat[i]), options=SearchOptions(k=1, include_exemplars=True)
        ).attributes
        assert (best["grid_row"][0].as_py(), best["grid_col"][0].as_py()) == (row[i], col[i])
    for far in ((0.0, -17.0), (90.0, -17.0)):
        with pytest.raises(InputError, match="km away"):
            search(opened, far)


def test_unusable_areas_and_filters_say_the_fix(opened: OpenedIndex, corpus: Corpus) -> None:
    x = corpus.x[0]
    for area, sentence in [
        ((11, 46, 12, 45), "empty area"),
        ((11, 45, 11, 46), "empty area"),
        ((500_000, 4_000_000, 510_000, 4_010_000), "degrees"),
        (shapely.geometry.mapping(shapely.box(500_000, 4_000_000, 510_000, 4_010_000)), "4326"),
        ((0, 0, 1, 1), "inside the index"),
        ({"type": "Nothing"}, "GeoJSON"),
        ((1, 2, 3), "west, south, east, north"),
    ]:
        with pytest.raises(InputError, match=sentence):
            search(opened, x, area=area)
    with pytest.raises(InputError, match=r"expected an area and dates inside the index \(10"):
        search(opened, x, dates=1999)
    with pytest.raises(InputError, match="dates '2020-13'"):
        search(opened, x, dates="2020-13")
    with pytest.raises(InputError, match="column 'owner'"):
        search(opened, x, where={"owner": "me"})
    with pytest.raises(InputError, match="of the column's type"):
        search(opened, x, where={"number": ("a", "b")})


def test_unusable_exemplars_say_the_fix(opened: OpenedIndex, corpus: Corpus) -> None:
    x = corpus.x[0]
    for exemplar, sentence in [
        (x[:10], r"shape \(10,\)"),
        (x * np.nan, "NaN"),
        (x * 0, "all zero"),
        ((100.0, 10.0), "km away"),
        ((45.0, 200.0), "longitude first"),
        ("99/0", "a row of this index|one of"),
        ("first", "shard/row"),
        ("a,b", "lon,lat"),
        ([], "at least one vector"),
    ]:
        with pytest.raises(InputError, match=sentence):
            search(opened, exemplar)
    with pytest.raises(ConfigError, match="combine"):
        SearchOptions(combine="nand")
    with pytest.raises(ConfigError, match="at least 1"):
        SearchOptions(k=0)


def test_k_beyond_the_rows_returns_them_all_best_first(opened, corpus: Corpus) -> None:
    hits = search(opened, corpus.x[0], options=SearchOptions(k=99_999))
    assert len(hits) == len(corpus.x)
    assert (np.diff(hits.score) <= 0).all()


# -- damaged copies -------------------------------------------------------------------------------


def test_missing_and_truncated_shards_are_named(index_path: Path, tmp_path: Path, corpus) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(index_path, copy)
    shard = copy / "shards" / "00002.parquet"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 3])
    with pytest.raises(SourceError, match=r"00002.*truncated"):
        search(copy, corpus.x[0])
    shard.unlink()
    with pytest.raises(SourceError, match=r"no readable shards/00002"):
        search(copy, corpus.x[0])
    (copy / "manifest.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(StoreError, match="manifest"):
        open_index(copy)
    with pytest.raises(SourceError, match="not a folder"):
        open_index(tmp_path / "nowhere")


# -- results --------------------------------------------------------------------------------------


def test_results_are_valid_geojson_and_geoparquet(opened, corpus: Corpus, tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    hits = search(opened, corpus.x[3], area=(11, 45.2, 13, 46.5), options=SearchOptions(k=7))
    for name in ("hits.geojson", "hits.parquet"):
        path = hits.write(tmp_path / name)
        frame = (geopandas.read_file if name.endswith("json") else geopandas.read_parquet)(path)
        np.testing.assert_allclose(frame["score"], hits.score, atol=1e-6)
        assert frame["row"].tolist() == hits.row
        bounds = frame.bounds.to_numpy()
        centers = (bounds[:, :2] + bounds[:, 2:]) / 2
        np.testing.assert_allclose(centers, corpus.lonlat[frame["number"]], atol=1e-4)
    with pytest.raises(ConfigError, match="ending"):
        hits.write(tmp_path / "hits.csv")


# -- over the wire --------------------------------------------------------------------------------


def test_an_area_query_reads_only_its_shards(
    range_server: RangeServer, index_path: Path, corpus: Corpus
) -> None:
    pytest.importorskip("obstore")
    local, remote = open_index(index_path), open_index(range_server.address)
    range_server.reset()
    area = (10.1, 45.1, 10.6, 45.5)
    options = SearchOptions(k=5, n_candidates=20)
    hits = search(remote, corpus.x[0], area=area, options=options)
    groups = local.groups_of(make_area(area), None)
    files = set(local.manifest["file"][groups])
    shards = [f for f in range_server.files if f.startswith("shards/")]
    assert set(shards) <= files
    assert 0 < len(files) < len(set(local.manifest["file"]))
    assert len(groups) < local.n_groups / 2

    # The counts the library reports are those of the server.
    assert (
        remote.storage.n_bytes
        - sum((index_path / f).stat().st_size for f in ("index.json", "manifest.parquet"))
        == range_server.n_bytes
    )
    # First stage: one request per row group; codes, and bounds where the area cuts the group.
    per_row = local.code_bytes + 20
    first = len(groups) * (250 * per_row + 6 * 64)
    reranked = 20 * local.info.rerank_dims + len(shards) * 16_384  # at most one gap per request
    attributes = 5 * (2 * 65_536)  # footer and geometry of at most k row groups
    codec = sum(p.stat().st_size for p in (index_path / "codec").iterdir())
    assert range_server.n_bytes <= first + reranked + attributes + codec
    # And the answer is that of the local copy.
    here = search(local, corpus.x[0], area=area, options=options)
    assert here.row == hits.row
    np.testing.assert_array_equal(here.score, hits.score)


def grouped_index(folder: Path, n: int = 40_000) -> Path:
    """128 dimensions in groups of 4,096 over two years, from place to place."""
    from bocage.search import ArraySource

    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6)) @ rng.normal(size=(6, 128)) + rng.normal(0, 0.1, (n, 128))
    lonlat = rng.uniform(0, 4, (n, 2))
    date = np.where(lonlat[:, 0] < 2, 19_400, 19_000).astype(np.int32)
    source = ArraySource(x.astype(np.float32), lonlat, date=date)
    index(source, folder / "i")
    return folder / "i"


def test_the_first_stage_reads_codes_alone_where_the_manifest_decides(
    range_server: RangeServer, tmp_path: Path
) -> None:
    pytest.importorskip("obstore")
    range_server.root = grouped_index(tmp_path)
    opened = open_index(range_server.address)
    n, width = opened.info.n_rows, opened.code_bytes
    assert width * 32 == 4 * opened.info.dims
    per_group = opened.manifest["n_rows"]

    def read(area, days) -> tuple[int, int, int]:
        """Rows found, bytes and requests that the server saw."""
        range_server.reset()
        place = make_area(area)
        groups = opened.groups_of(place, days)
        found = sum(len(opened.read_inside(int(g), place, days)) for g in groups)
        return found, range_server.n_bytes, len(range_server.files)

    # The whole world, with and without dates that hold for all rows: codes, one request a group.
    assert read(None, None) == (n, n * width, len(per_group))
    assert read((-10, -10, 10, 10), (18_000, 20_000)) == (n, n * width, len(per_group))
    assert n * width <= 4 * opened.info.dims * n / 16

    # An area in which some groups lie as a whole: bounds of the others alone, and no dates.
    area = (0.0, 0.0, 3.2, 3.2)
    touched = make_area(area).touches(opened.bounds)
    whole = make_area(area).covers(opened.bounds)
    assert 0 < whole.sum() < touched.sum() < len(touched)
    found, n_bytes, n_requests = read(area, None)
    in_doubt = per_group[touched & ~whole]
    payload = per_group[touched].sum() * width + in_doubt.sum() * 16
    assert payload <= n_bytes <= payload + 4 * 64 * len(in_doubt)  # page headers
    assert n_requests == touched.sum()
    assert n_bytes <= 1.01 * 4 * opened.info.dims * per_group[touched].sum() / 16

    # A year: groups of the other are left out, dates are read of mixed groups alone.
    found, n_bytes, _ = read(None, (19_400, 19_765))
    m = opened.manifest
    mixed = (m["date_first"] < 19_400) & (m["date_last"] >= 19_400)
    late = m["date_last"] >= 19_400
    assert n_bytes == per_group[late].sum() * width + 4 * per_group[mixed].sum()
    west = np.concatenate([opened.read_places(g).date for g in range(len(per_group))]) == 19_400
    assert found == west.sum()


def test_rows_without_a_date_are_looked_at_one_by_one(tmp_path: Path) -> None:
    from bocage.search import ArraySource

    rng = np.random.default_rng(1)
    x, lonlat = rng.normal(size=(200, 16)).astype(np.float32), rng.uniform(0, 1, (200, 2))
    date = np.full(200, 19_400, np.int32)
    date[::4] = 0
    index(ArraySource(x, lonlat, date=date), tmp_path / "i")
    opened = open_index(tmp_path / "i")
    assert opened.manifest["n_undated"].tolist() == [50]
    hits = search(opened, x[1], dates=("2020-01-01", "2025-01-01"), options=SearchOptions(k=999))
    assert len(hits) == 150
    assert set(hits.dates) == {"2023-02-12"}
    hits = search(opened, x[1], options=SearchOptions(k=999))
    assert hits.dates.count(None) == 50


def test_results_carry_the_bounds_and_dates_that_are_stored(
    opened: OpenedIndex, corpus: Corpus
) -> None:
    hits = search(opened, corpus.x[3], options=SearchOptions(k=40))
    for row_id, box, day in zip(hits.row, hits.bbox, hits.date, strict=True):
        group, row = opened.find_row(row_id)
        places = opened.read_places(group)
        np.testing.assert_array_equal(places.bbox[row], box)
        assert places.date[row] == day


def test_a_missing_remote_file_is_named(range_server: RangeServer) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(SourceError, match=r"index\.json"):
        open_index(range_server.address + "/elsewhere")


@pytest.mark.parametrize(
    "code", ["rabitq", "rabitq4", "pq16", "binary_itq", "binary_mean", "balanced_pq4"]
)
def test_other_first_stages_find_the_neighbors(code: str, corpus: Corpus, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from bocage.search import ArraySource

    source = ArraySource(
        corpus.x[:2000], corpus.lonlat[:2000], columns=columns_of(corpus).slice(0, 2000)
    )
    index(source, tmp_path / "i", options=IndexOptions(code=code, rows_per_group=500))
    unit = corpus.unit[:2000]
    truth = np.argsort(-(unit @ unit[0]))[:10]
    options = SearchOptions(k=10, n_candidates=200)
    hits = search(open_index(tmp_path / "i"), corpus.x[0], options=options)
    assert np.isin(truth, numbers(hits)).mean() >= 0.9
