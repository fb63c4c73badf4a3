"""What the build promises: every row once, valid GeoParquet, computable offsets, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bocage.errors import ConfigError, InputError, StoreError
from bocage.search import ArraySource, IndexOptions, OpenedIndex, index, open_index
from bocage.search.hilbert import hilbert_key
from bocage.search.learned import default_code, learn

from .conftest import Corpus, columns_of


def write_chips(path: Path, corpus: Corpus, rows: slice, *, x=None) -> Path:
    geopandas = pytest.importorskip("geopandas")
    import shapely

    lon, lat = corpus.lonlat[rows].T
    vectors = corpus.x[rows] if x is None else x
    frame = geopandas.GeoDataFrame(
        {
            "embedding": list(vectors),
            "number": np.arange(len(corpus.x))[rows],
            "when": np.datetime64("1970-01-01") + corpus.date[rows].astype("timedelta64[D]"),
        },
        geometry=shapely.box(lon - 0.01, lat - 0.01, lon + 0.01, lat + 0.01),
        crs="EPSG:4326",
    )
    frame.to_parquet(path)
    return path


def all_rows(opened: OpenedIndex) -> pa.Table:
    files = sorted((Path(opened.storage.uri) / "shards").iterdir())
    return pa.concat_tables([pq.read_table(f) for f in files])


def test_every_row_appears_exactly_once_with_its_own_values(
    opened: OpenedIndex, corpus: Corpus
) -> None:
    table = all_rows(opened)
    numbers = np.asarray(table["number"])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(len(corpus.x)))
    np.testing.assert_array_equal(np.asarray(table["date"].cast("int32")), corpus.date[numbers])
    groups = np.repeat(np.arange(opened.n_groups), opened.manifest["n_rows"])
    rows = np.concatenate([np.arange(n) for n in opened.manifest["n_rows"]])
    vectors = opened.read_vectors(groups, rows)
    cosine = (vectors * corpus.unit[numbers]).sum(axis=1)
    assert cosine.min() > 0.9999


def test_a_place_fed_by_several_files_keeps_every_row(corpus: Corpus, tmp_path: Path) -> None:
    # Interleaved halves: every shard and row group draws from both files.
    files = [
        write_chips(tmp_path / "b.parquet", corpus, slice(1, 3000, 2)),
        write_chips(tmp_path / "a.parquet", corpus, slice(0, 3000, 2)),
    ]
    options = IndexOptions(rows_per_shard=400, rows_per_group=100)
    result = index(files, tmp_path / "i", options=options, date_column="when")
    assert result.n_rows == 3000
    numbers = np.asarray(all_rows(open_index(tmp_path / "i"))["number"])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(3000))
    assert len({*(numbers[:100] % 2)}) == 2


def test_the_manifest_says_where_every_fixed_value_lies(opened: OpenedIndex) -> None:
    root, m = Path(opened.storage.uri), opened.manifest
    for g in range(0, opened.n_groups, 5):
        data = (root / m["file"][g]).read_bytes()
        table = pq.ParquetFile(root / m["file"][g]).read_row_group(int(m["group"][g]))
        n = len(table)
        for name, width in (("code", opened.code_bytes), ("rerank", opened.info.rerank_dims)):
            start = m[f"{name}_offset"][g]
            assert data[start : start + n * width] == b"".join(table[name].to_pylist())
        box = table["bbox"].combine_chunks()
        for name in ("xmin", "ymin", "xmax", "ymax"):
            start = m[f"{name}_offset"][g]
            values = np.frombuffer(data[start : start + 4 * n], "<f4")
            np.testing.assert_array_equal(
                values, np.asarray(pa.chunked_array([box]).chunk(0).field(name))
            )
        start = m["date_offset"][g]
        days = np.frombuffer(data[start : start + 4 * n], "<i4")
        np.testing.assert_array_equal(days, np.asarray(table["date"].cast("int32")))


def test_geopandas_reads_a_shard_and_prunes_by_its_bbox_covering(opened: OpenedIndex) -> None:
    geopandas = pytest.importorskip("geopandas")
    import shapely

    shard = Path(opened.storage.uri) / opened.manifest["file"][0]
    frame = geopandas.read_parquet(shard)
    assert frame.crs == "OGC:CRS84"
    assert set(frame.geom_type) == {"Polygon"}
    west, south, east, north = frame.total_bounds
    middle = (west, south, (west + east) / 2, (south + north) / 2)
    part = geopandas.read_parquet(shard, bbox=middle)
    assert 0 < len(part) < len(frame)
    assert len(part) == int(frame.intersects(shapely.box(*middle)).sum())
    footer = json.loads(pq.read_metadata(shard).metadata[b"emb"])
    rule = footer["emb:quantization"]
    assert rule["method"] == "linear"
    # Whoever knows the extension alone reads the vectors: scale and offset per dimension.
    q = np.frombuffer(frame["rerank"][7], np.int8)
    x = np.array(rule["scale"]) * q + rule["offset"]
    stored = opened.read_vectors(np.zeros(1, int), np.full(1, 7))[0]
    np.testing.assert_allclose(x / np.linalg.norm(x), stored, atol=1e-6)


def test_duckdb_reads_the_shards_as_one_table(opened: OpenedIndex, corpus: Corpus) -> None:
    duckdb = pytest.importorskip("duckdb")
    shards = Path(opened.storage.uri) / "shards" / "*.parquet"
    count, code_bytes, lowest = duckdb.sql(
        f"select count(*), max(octet_length(code)), min(bbox.xmin) from '{shards}'"
    ).fetchall()[0]
    assert count == len(corpus.x)
    assert code_bytes == 8
    assert lowest == pytest.approx(corpus.lonlat[:, 0].min(), abs=1e-3)


def test_boxes_cover_their_geometries(opened: OpenedIndex) -> None:
    import shapely

    table = all_rows(opened)
    bounds = shapely.bounds(shapely.from_wkb(table["geometry"].to_numpy()))
    box = table["bbox"].combine_chunks()
    box = pa.chunked_array([box]).chunk(0)
    assert (np.asarray(box.field("xmin")) <= bounds[:, 0]).all()
    assert (np.asarray(box.field("ymax")) >= bounds[:, 3]).all()


def test_the_hilbert_curve_visits_neighbors_in_turn() -> None:
    n = 64
    lon, lat = np.meshgrid(
        (np.arange(n) + 0.5) / n * 360 - 180, (np.arange(n) + 0.5) / n * 180 - 90
    )
    key = hilbert_key(lon.ravel(), lat.ravel())
    order = np.argsort(key)
    row, col = np.divmod(order, n)
    steps = np.abs(np.diff(row)) + np.abs(np.diff(col))
    assert (steps == 1).all()


def test_row_groups_are_compact(opened: OpenedIndex, corpus: Corpus) -> None:
    extent = np.ptp(corpus.lonlat, axis=0).prod()
    size = (opened.bounds[:, 2] - opened.bounds[:, 0]) * (opened.bounds[:, 3] - opened.bounds[:, 1])
    # 24 groups over the extent; twice the ideal share is what a Hilbert curve gives.
    assert size.sum() < 2.5 * extent


def test_buckets_that_are_too_large_are_cut_again(corpus: Corpus, tmp_path, monkeypatch) -> None:
    for module in ("buckets", "learned"):
        monkeypatch.setattr(f"bocage.search.{module}.BUCKET_BYTES", 20_000)
        monkeypatch.setattr(f"bocage.search.{module}.MAX_BUCKETS", 3)
    lonlat = corpus.lonlat.copy()
    lonlat[2000:4000] = lonlat[2000]  # and one place with more rows than a bucket may have
    source = ArraySource(corpus.x, lonlat, columns=columns_of(corpus))
    index(source, tmp_path / "i", options=IndexOptions(rows_per_shard=1000, rows_per_group=250))
    table = all_rows(open_index(tmp_path / "i"))
    numbers = np.asarray(table["number"])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(len(corpus.x)))
    keys = hilbert_key(*lonlat[numbers].T)
    assert (np.diff(keys.astype(np.int64)) >= 0).all()


def test_the_same_source_gives_the_same_files(corpus: Corpus, tmp_path: Path) -> None:
    for name in ("a", "b"):
        index(ArraySource(corpus.x[:1500], corpus.lonlat[:1500]), tmp_path / name)
    for file in ("shards/00000.parquet", "index.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_sample_is_drawn_from_all_of_the_source(tmp_path: Path) -> None:
    # One block of rows differs from all others: a sample of a few blocks would miss its range.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100_000, 8)).astype(np.float32)
    x[40_000:50_000] += [9, 0, 0, 0, 0, 0, 0, 0]
    source = ArraySource(x, rng.uniform(0, 5, (len(x), 2)))
    options = IndexOptions(sample_rows=4000)
    learned = learn(source, options, "some-model")
    assert 2000 <= learned.codec.fitted_on["n_rows"] <= 4000
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    seen = learned.rerank.low, learned.rerank.low + 254 * learned.rerank.step
    # 32,000 of the rows are looked at, in blocks of 16,384; with all of them the range is exact.
    assert seen[0].min() >= -1
    assert seen[1].max() <= 1 + 1e-6
    whole = learn(source, IndexOptions(sample_rows=12_500), "some-model").rerank
    np.testing.assert_allclose(whole.low, unit.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(whole.low + 254 * whole.step, unit.max(axis=0), atol=1e-6)


def test_codes_by_default_are_a_32nd_of_the_floats_and_bits_for_few_rows() -> None:
    assert default_code(50_000, 128) == "balanced_pq16"
    assert default_code(50_000, 64) == "balanced_pq8"
    assert default_code(50_000, 1024) == "balanced_pq64"
    assert default_code(417, 768) == "binary_mean"
    assert default_code(50_000, 4) == "binary_mean"


# -- bad input ------------------------------------------------------------------------------------


def test_nodata_rows_are_left_out_and_counted(corpus: Corpus, tmp_path: Path) -> None:
    x = corpus.x[:500].copy()
    x[100:150] = np.nan
    result = index(ArraySource(x, corpus.lonlat[:500]), tmp_path / "i")
    assert (result.n_rows, result.n_dropped) == (450, 50)


def test_broken_vectors_are_refused_with_their_file(corpus: Corpus, tmp_path: Path) -> None:
    x = corpus.x[:500].copy()
    x[33, 5] = np.nan
    with pytest.raises(
        InputError, match=r"NaN or infinity inside 1 vectors \(first row 33\) in rows 0"
    ):
        index(ArraySource(x, corpus.lonlat[:500]), tmp_path / "i")
    x = corpus.x[:500].copy()
    x[7] = 0
    with pytest.raises(InputError, match="1 all-zero vectors"):
        index(ArraySource(x, corpus.lonlat[:500]), tmp_path / "i")
    result = index(
        ArraySource(x, corpus.lonlat[:500]), tmp_path / "i", options=IndexOptions(on_zero="drop")
    )
    assert result.n_rows == 499
    with pytest.raises(InputError, match="single valid vector"):
        index(ArraySource(x * np.nan, corpus.lonlat[:500]), tmp_path / "j")
    assert not (tmp_path / "j").exists()


def test_tables_of_mixed_dimensions_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    ragged = [corpus.x[i] if i != 3 else corpus.x[i, :32] for i in range(50)]
    file = write_chips(tmp_path / "ragged.parquet", corpus, slice(0, 50), x=ragged)
    with pytest.raises(InputError, match=r"64 and 32 dimensions in .*ragged"):
        index(file, tmp_path / "i")
    one = write_chips(tmp_path / "one.parquet", corpus, slice(0, 50))
    two = write_chips(tmp_path / "two.parquet", corpus, slice(50, 90), x=corpus.x[50:90, :32])
    with pytest.raises(InputError, match="dimensions"):
        index([one, two], tmp_path / "i")


def test_int8_tables_need_the_name_of_their_rule_and_nodata_codes_are_dropped(
    corpus: Corpus, tmp_path: Path
) -> None:
    from bocage.embeddings.codecs import signed_power

    q = signed_power.encode(corpus.x[:80] / 8)
    q[10:15] = -128
    file = write_chips(tmp_path / "q.parquet", corpus, slice(0, 80), x=list(q))
    with pytest.raises(InputError, match="signed_power"):
        index(file, tmp_path / "i")
    result = index(file, tmp_path / "i", quantization="signed_power")
    assert (result.n_rows, result.n_dropped) == (75, 5)
    q[20, 3] = -128
    file = write_chips(tmp_path / "p.parquet", corpus, slice(0, 80), x=list(q))
    with pytest.raises(InputError, match="NaN or infinity inside 1 vectors"):
        index(file, tmp_path / "j", quantization="signed_power")


def test_codecs_without_a_distance_and_existing_targets_are_refused(
    corpus: Corpus, tmp_path: Path, index_path: Path
) -> None:
    source = ArraySource(corpus.x[:300], corpus.lonlat[:300])
    with pytest.raises(ConfigError, match="int8"):
        index(source, tmp_path / "i", options=IndexOptions(code="int8"))
    with pytest.raises(StoreError):
        index(source, index_path)
    with pytest.raises(InputError, match="column 'vec'"):
        file = write_chips(tmp_path / "c.parquet", corpus, slice(0, 50))
        index(file, tmp_path / "i", embedding_column="vec")


def test_a_foreign_index_json_is_refused(index_path: Path, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"format": "other"}')
    with pytest.raises(StoreError, match="format other"):
        open_index(tmp_path)
    (tmp_path / "index.json").write_text("not json")
    with pytest.raises(StoreError, match="unreadable"):
        open_index(tmp_path)


def test_places_outside_the_world_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outside the world"):
        index(ArraySource(corpus.x[:50], corpus.lonlat[:50] * 40_000), tmp_path / "i")
    with pytest.raises(InputError, match="NaN or infinity"):
        ArraySource(corpus.x[:50], corpus.lonlat[:50] * np.nan)


def test_a_name_that_is_taken_is_refused_before_the_work(
    corpus: Corpus, tmp_path: Path, monkeypatch
) -> None:
    taken = tmp_path / "index"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")

    def read(*_args, **_options):
        raise AssertionError("read before the name was looked at")

    monkeypatch.setattr("bocage.search.build.learn", read)
    with pytest.raises(StoreError, match="exists already"):
        index(ArraySource(corpus.x, corpus.lonlat), taken)
    assert [path.name for path in tmp_path.rglob("*")] == ["index", "notes.txt"]
