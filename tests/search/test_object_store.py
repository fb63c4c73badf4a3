"""An index in an object store answers as the one in the folder it was copied from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bocage.errors import ConfigError, InputError, SourceError
from bocage.search import ArraySource, index, open_index, search
from tests.search.conftest import Corpus

pytest.importorskip("obstore", reason="object stores need obstore")
moto_server = pytest.importorskip(
    "moto.server", reason="the S3 server of the tests is moto: pip install 'moto[server]'"
)
boto3 = pytest.importorskip("boto3", reason="moto[server] brings boto3")

BUCKET = "places"


@pytest.fixture
def bucket(index_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The index, uploaded to a private bucket of a local S3 server."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    for file in index_path.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), BUCKET, f"a/b/{file.relative_to(index_path)}")
    yield f"s3://{BUCKET}/a/b"
    server.stop()


def test_an_index_in_s3_answers_as_its_folder(
    bucket: str, index_path: Path, corpus: Corpus
) -> None:
    area = (11.0, 45.5, 12.0, 46.5)
    remote, local = open_index(bucket), open_index(index_path)
    found, expected = (search(opened, corpus.x[5], area=area) for opened in (remote, local))
    assert len(expected.row) >= 10
    assert found.row == expected.row
    np.testing.assert_array_equal(found.score, expected.score)
    # By range: the same bytes as from the folder, and less than all of them.
    assert remote.storage.n_bytes == local.storage.n_bytes
    stored = sum(f.stat().st_size for f in index_path.rglob("*") if f.is_file())
    assert remote.storage.n_bytes < stored
    assert remote.storage.n_requests > 4


def test_what_is_missing_in_s3_is_named(bucket: str) -> None:
    with pytest.raises(SourceError, match=r"s3://places/other without a readable index.json"):
        open_index(f"s3://{BUCKET}/other")
    with pytest.raises(SourceError, match="s3://absent"):
        open_index("s3://absent/x")


def test_building_into_or_from_an_object_store_is_refused(
    index_path: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = ArraySource(corpus.x[:300], corpus.lonlat[:300])
    with pytest.raises(ConfigError, match=r"s3://places/new .*folder"):
        index(source, "s3://places/new")
    with pytest.raises(InputError, match=r"s3://places/chips.parquet"):
        index("s3://places/chips.parquet", tmp_path / "i")
    assert not list(tmp_path.iterdir())
