"""Clustered vectors over a few degrees, an index of them, and a web server that answers ranges."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="search needs pyarrow")

from bocage.search import ArraySource, IndexOptions, OpenedIndex, index, open_index


@dataclass
class Corpus:
    x: np.ndarray
    lonlat: np.ndarray
    date: np.ndarray
    kind: np.ndarray

    @property
    def unit(self) -> np.ndarray:
        return self.x / np.linalg.norm(self.x, axis=1, keepdims=True)

    def numbers(self, hits_columns) -> np.ndarray:
        return np.asarray(hits_columns["number"])


def make_corpus(n: int = 6000, dims: int = 64) -> Corpus:
    """Vectors of low intrinsic dimension that change smoothly on the ground, not centered."""
    rng = np.random.default_rng(7)
    lonlat = np.stack([rng.uniform(10, 14, n), rng.uniform(45, 47, n)], axis=1)
    waves = np.sin(lonlat @ rng.normal(0, 2, (2, 8)) + rng.uniform(0, 6, 8))
    x = waves @ rng.normal(0, 1, (8, dims)) + rng.normal(0, 0.15, (n, dims)) + 1.5
    date = np.where(rng.random(n) < 0.5, 19_000, 19_400)
    return Corpus(
        x=x.astype(np.float32),
        lonlat=lonlat,
        date=date.astype(np.int32),
        kind=rng.integers(0, 3, n),
    )


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return make_corpus()


def columns_of(corpus: Corpus):
    import pyarrow as pa

    return pa.table(
        {
            "number": np.arange(len(corpus.x), dtype=np.int64),
            "kind": [("field", "forest", "water")[k] for k in corpus.kind],
        }
    )


@pytest.fixture(scope="session")
def index_path(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "corpus.index"
    source = ArraySource(
        corpus.x, corpus.lonlat, date=corpus.date, columns=columns_of(corpus), model="test-model"
    )
    index(source, path, options=IndexOptions(rows_per_shard=1000, rows_per_group=250))
    return path


@pytest.fixture(scope="session")
def bits_path(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows with a bit per dimension instead of the default codes."""
    path = tmp_path_factory.mktemp("search") / "bits.index"
    source = ArraySource(corpus.x, corpus.lonlat, date=corpus.date, columns=columns_of(corpus))
    options = IndexOptions(code="binary_mean", rows_per_shard=1000, rows_per_group=250)
    index(source, path, options=options)
    return path


@pytest.fixture
def opened(index_path: Path) -> OpenedIndex:
    return open_index(index_path)


@dataclass
class RangeServer:
    """Counts what leaves it."""

    address: str
    root: Path
    files: list[str] = field(default_factory=list)
    n_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        self.files, self.n_bytes = [], 0


@pytest.fixture
def range_server(index_path: Path) -> Iterator[RangeServer]:
    log = RangeServer(address="", root=index_path)
    handler = partial(_RangeHandler, log=log)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    log.address = f"http://127.0.0.1:{server.server_address[1]}"
    yield log
    server.shutdown()


class _RangeHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args, log: RangeServer) -> None:
        self.log = log
        super().__init__(*args)

    def do_GET(self) -> None:
        path = self.log.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        wanted = self.headers.get("Range")
        total = len(data)
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            start = int(first) if first else max(0, total - int(last))
            stop = min(int(last) + 1, total) if first and last else total
            data, status = data[start:stop], 206
        self.send_response(status)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with self.log.lock:  # before the answer: who has it may already look at the counts
            self.log.files.append(self.path.lstrip("/"))
            self.log.n_bytes += len(data)
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass
