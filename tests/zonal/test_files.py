"""Tables on disk: read back by others, and whole or absent."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import ThreadingHTTPServer

import duckdb
import geopandas
import numpy as np
import pandas
import pyarrow.parquet
import pytest

from bocage import zonal_statistics
from bocage.errors import ConfigError, SourceError, StoreError
from bocage.zonal.files import write_table
from tests.zonal.conftest import frame, square, write_raster
from tests.zonal.test_sums import Quiet


@pytest.fixture
def case(tmp_path):
    x = np.arange(400, dtype=np.float32).reshape(1, 20, 20)
    zones = frame([square(0, 0, 5, 5), None, square(5, 5, 5, 5.5)], name=["a", "b", "ü"])
    return write_raster(tmp_path / "v.tif", x), zones


@pytest.mark.parametrize("name", ["t.parquet", "t.gpkg", "t.geojson", "t.csv"])
def test_every_format_holds_the_table(case, tmp_path, name):
    raster, zones = case
    out = tmp_path / name
    result = zonal_statistics(raster, zones, id_column="name", out=out)
    if name == "t.csv":
        found = pandas.read_csv(out)
        assert out.read_bytes().startswith(b"\xef\xbb\xbf")  # spreadsheets
    else:
        read = geopandas.read_parquet if name == "t.parquet" else geopandas.read_file
        found = read(out)
        assert found.crs == (4326 if name == "t.geojson" else zones.crs)
        shapes = found.geometry.to_crs(zones.crs)
        assert shapes[1] is None or shapes[1].is_empty
        assert shapes[2].symmetric_difference(zones.geometry[2]).area < 1
    assert found["name"].tolist() == ["a", "b", "ü"]
    np.testing.assert_allclose(found["mean"], result.table["mean"], rtol=1e-12)
    assert str(result).splitlines()[-1].startswith("open ")


def test_parquet_says_its_version_bounds_and_origin(case, tmp_path):
    raster, zones = case
    zonal_statistics(raster, zones, id_column="name", out=tmp_path / "t.parquet")
    metadata = pyarrow.parquet.read_metadata(tmp_path / "t.parquet").metadata
    geo = json.loads(metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    origin = json.loads(json.loads(metadata[b"PANDAS_ATTRS"])["bocage"])
    assert origin["source"] == str(raster) and origin["kind"] == "values"
    rows = duckdb.sql(f"select name, bbox.xmin from '{tmp_path / 't.parquet'}' order by name")
    assert rows.fetchall()[0] == ("a", 700_000)


def test_a_table_of_zones_can_be_zones_again(case, tmp_path):
    raster, zones = case
    zonal_statistics(raster, zones, id_column="name", out=tmp_path / "t.parquet")
    with pytest.warns(UserWarning, match="give way to statistics of the same name"):
        again = zonal_statistics(raster, tmp_path / "t.parquet", id_column="name")
    assert again.table.columns.is_unique and "bbox" not in again.table


@pytest.mark.parametrize("name", ["t.shp", "t.xlsx", "t"])
def test_endings_that_cannot_be_written_are_refused_before_the_work(case, tmp_path, name):
    with pytest.raises(ConfigError, match=r"ends in .parquet, .gpkg"):
        zonal_statistics(tmp_path / "missing.tif", case[1], out=tmp_path / name)


def test_a_folder_that_takes_nothing_is_found_before_the_work(case, tmp_path, monkeypatch):
    raster, zones = case
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("bocage.zonal.statistics.add_up", lambda *_: pytest.fail("worked first"))
    with pytest.raises(StoreError, match="while writing"):
        zonal_statistics(raster, zones, out=tmp_path / "file" / "t.csv")


def test_zones_behind_an_address(case, tmp_path):
    raster, zones = case
    zones.to_file(tmp_path / "zones.geojson")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        table = zonal_statistics(raster, f"{base}/zones.geojson", id_column="name").table
        with pytest.raises(SourceError, match=r"127.0.0.1.*none.geojson"):
            zonal_statistics(raster, f"{base}/none.geojson")
    finally:
        server.shutdown()
    assert table["n_cells"].tolist() == pytest.approx([25, 0, 27.5], abs=1e-3)


def test_inputs_are_not_written_over(case, tmp_path):
    raster, zones = case
    path = tmp_path / "zones.gpkg"
    zones.to_file(path)
    with pytest.raises(ConfigError, match="which is also read"):
        zonal_statistics(raster, path, out=tmp_path / "x" / ".." / "zones.gpkg")
    assert len(geopandas.read_file(path)) == 3


def test_a_failed_write_leaves_what_was_there(case, tmp_path, monkeypatch):
    raster, zones = case
    out = tmp_path / "t.parquet"
    table = zonal_statistics(raster, zones, id_column="name", out=out).table
    before = out.read_bytes()

    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="no space left on the disk"):
        write_table(table, out)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.parquet", "v.tif"]


def test_who_reads_the_old_table_reads_it_to_the_end(case, tmp_path):
    raster, zones = case
    out = tmp_path / "t.csv"
    zonal_statistics(raster, zones, id_column="name", out=out)
    before = out.read_bytes()
    with out.open("rb") as reader:
        start = reader.read(10)
        zonal_statistics(raster, zones, id_column="name", out=out, stats="mean")
        assert start + reader.read() == before
    assert out.read_bytes() != before


def test_a_killed_run_leaves_no_table(tmp_path):
    """Killed while it sums; the table of a run before is whole."""
    x = np.zeros((1, 3000, 3000), np.float32)
    raster = write_raster(tmp_path / "v.tif", x, compress="deflate", tiled=True)
    frame([square(0, 0, 3000, 3000)]).to_file(tmp_path / "z.gpkg")
    words = ["zonal", raster, "--zones", tmp_path / "z.gpkg", "--out", tmp_path / "t.csv"]
    program = (
        "import bocage.zonal.quantiles as q, time, sys\n"
        "add = q.Quantiles.add\n"
        "def slow(*a):\n"
        "    print('summing', flush=True); time.sleep(9)\n"
        "q.Quantiles.add = slow\n"
        "from bocage.cli import main\n"
        "sys.argv[0] = 'bocage'\n"
        "main()\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    for line in run.stdout:
        if line.startswith("summing"):
            break
    time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.tif", "z.gpkg"]


@pytest.mark.parametrize("fid", [[7, 7, 7], ["x", "y", "z"]])
def test_a_column_called_fid_stays_a_column(case, tmp_path, fid):
    raster, zones = case
    zones["FID"] = fid
    zonal_statistics(raster, zones, id_column="name", out=tmp_path / "t.gpkg")
    assert geopandas.read_file(tmp_path / "t.gpkg")["FID"].tolist() == fid


def test_shapes_of_another_column_name(case, tmp_path):
    raster, zones = case
    zones = zones.rename_geometry("shape").assign(geometry=5)
    with pytest.warns(UserWarning, match="give way.*: geometry"):
        zonal_statistics(raster, zones, id_column="name", out=tmp_path / "t.gpkg")
    assert geopandas.read_file(tmp_path / "t.gpkg").geometry[0].equals(zones.geometry[0])
