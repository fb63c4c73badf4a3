"""The commands index, search, compress and evaluate, as typer runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from bocage.cli.compress import compress
from bocage.cli.evaluate import evaluate
from bocage.cli.index import index
from bocage.cli.search import search
from bocage.errors import ConfigError, InputError

from .conftest import Corpus
from .test_index import write_chips


def run(*args: object) -> str:
    app = typer.Typer(pretty_exceptions_enable=False)
    for command in (index, search, compress, evaluate):
        app.command()(command)
    result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def table(corpus: Corpus, tmp_path_factory) -> Path:
    pytest.importorskip("geopandas")
    return write_chips(tmp_path_factory.mktemp("chips") / "chips.parquet", corpus, slice(0, 400))


def test_index_then_search_then_open_the_result(table: Path, corpus: Corpus, tmp_path) -> None:
    out = run("index", table, "--out", tmp_path / "i", "--date-column", "when")
    assert "400 rows" in out
    lon, lat = corpus.lonlat[5]
    out = run(
        "search", tmp_path / "i", "--like", f"{lon},{lat}", "--area", "10,45,14,47",
        "--where", "number=0..199", "-k", 12, "--out", tmp_path / "h.geojson",
    )  # fmt: skip
    assert "12 of" in out
    features = json.loads((tmp_path / "h.geojson").read_text())["features"]
    assert len(features) == 12
    assert all(f["properties"]["number"] < 200 for f in features)
    assert len(run("search", tmp_path / "i", "--view", "surprise", "-k", 4).splitlines()) == 4
    np.save(tmp_path / "v.npy", corpus.x[5])
    assert "0/" in run("search", tmp_path / "i", "--like", tmp_path / "v.npy", "-k", 1)


def test_a_view_is_written_like_a_search(table: Path, corpus: Corpus, tmp_path) -> None:
    run("index", table, "--out", tmp_path / "i")
    out = tmp_path / "new" / "v.geojson"
    said = run("search", tmp_path / "i", "--view", "outlier", "-k", 12, "--out", out)
    features = json.loads(out.read_text())["features"]
    assert len(features) == 12 and "12 of 400 rows" in said
    assert f"{features[0]['properties']['score']:.4f}" == said.split()[0]
    assert features[0]["properties"]["row"] == said.split()[1]
    for options in (["--like", "0/1"], ["--where", "number=1"]):
        with pytest.raises(ConfigError, match=rf"--view outlier with {options[0]}"):
            run("search", tmp_path / "i", "--view", "outlier", *options)
    with pytest.raises(ConfigError, match=r"results to v\.shp"):
        run("search", tmp_path / "i", "--view", "outlier", "--out", tmp_path / "v.shp")
    with pytest.raises(ConfigError, match="k 0"):
        run("search", tmp_path / "i", "--view", "outlier", "-k", 0)


def test_commands_without_what_they_need_say_it(table: Path, tmp_path) -> None:
    run("index", table, "--out", tmp_path / "i")
    with pytest.raises(ConfigError, match="--like"):
        run("search", tmp_path / "i")
    with pytest.raises(ConfigError, match="COLUMN=VALUE"):
        run("search", tmp_path / "i", "--like", "0/1", "--where", "number")
    with pytest.raises(ConfigError, match="--out"):
        run("compress", table)
    with pytest.raises(ConfigError, match="study 'speed'"):
        run("evaluate", "speed", table, "--out", tmp_path / "s")
    with pytest.raises(InputError, match="column 'label'"):
        run("evaluate", "compression", table, "--out", tmp_path / "s")


def test_compress_and_recommend(table: Path, tmp_path) -> None:
    out = run("compress", table, "--out", tmp_path / "s.parquet", "--codec", "pca16-int8")
    assert "pca16-int8 codes" in out
    assert "no labels were given" in run("compress", table, "--recommend", "--tolerance", "20%")


def test_evaluate_writes_its_report(corpus: Corpus, tmp_path) -> None:
    pytest.importorskip("sklearn")
    labels = np.where(corpus.x[:300, 0] > np.median(corpus.x[:300, 0]), "high", "low")
    np.savez(tmp_path / "s.npz", x=corpus.x[:300], labels=labels, lonlat=corpus.lonlat[:300])
    out = run(
        "evaluate", "compression", tmp_path / "s.npz", "--out", tmp_path / "s", "--codecs",
        "int8,binary_mean", "--no-probe", "--folds", 3, "--block-km", 30,
    )  # fmt: skip
    assert "## spatial folds" in out
    assert {p.name for p in (tmp_path / "s").iterdir()} >= {"table.md", "table.csv", "study.json"}
