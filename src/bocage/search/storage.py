"""Bytes of an index from a folder, a web server or an object store, by range.

Every request and byte is counted, because that is what a query costs. Remote access goes through
obstore; its own joining of ranges (1 MB gaps) is not used, so that what is asked for is what is
read.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from bocage.errors import ConfigError, SourceError
from bocage.search.layout import INDEX_FILE

if TYPE_CHECKING:
    from bocage.types import PathLike

Range = tuple[int, int]
"""Offset and length in bytes."""

_PARALLEL = 8
_COUNTING = Lock()
"""Row groups are read on several threads, and adding to a number takes more than one step."""


class Storage(Protocol):
    """Files of one index."""

    uri: str
    n_requests: int
    n_bytes: int

    def read(self, path: str) -> bytes:
        """A whole file."""

    def read_ranges(self, path: str, ranges: list[Range]) -> list[bytes]:
        """Pieces of a file, each exactly as long as asked for."""


def open_storage(uri: PathLike) -> Storage:
    """Storage of a folder, or of an http(s)://, s3://, gs:// or az:// address."""
    address = str(uri)
    if "://" in address and not address.startswith("file://"):
        return RemoteStorage(address)
    return FolderStorage(address.removeprefix("file://"))


class FolderStorage:
    """Files of a local folder."""

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        self.uri = str(folder)
        self.n_requests = 0
        self.n_bytes = 0
        if not self.folder.is_dir():
            raise SourceError(
                got=f"{folder}, which is not a folder",
                expected="a search index, made by bocage index",
                fix="check the path",
            )

    def read(self, path: str) -> bytes:
        """A whole file."""
        try:
            data = (self.folder / path).read_bytes()
        except OSError as error:
            raise missing_file(path, self.uri, error) from error
        self.n_requests += 1
        self.n_bytes += len(data)
        return data

    def read_ranges(self, path: str, ranges: list[Range]) -> list[bytes]:
        """Pieces of a file; SourceError if it is missing or too short."""
        try:
            file = os.open(self.folder / path, os.O_RDONLY)
        except OSError as error:
            raise missing_file(path, self.uri, error) from error
        try:
            pieces = [os.pread(file, length, offset) for offset, length in ranges]
        finally:
            os.close(file)
        return _counted(self, path, ranges, pieces)


class RemoteStorage:
    """Files behind http(s) or in an object store, read with a few requests at a time."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.n_requests = 0
        self.n_bytes = 0
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise ConfigError(
                got=f"the remote index {uri} without the package obstore",
                expected="obstore",
                fix='pip install "bocage[search]", or copy the index to a folder',
            ) from error
        options: dict[str, Any] = {}
        if uri.startswith("http://"):
            options["client_options"] = {"allow_http": True}
        elif not uri.startswith("https://") and not any(
            name in os.environ for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN")
        ):
            options["skip_signature"] = True  # public data needs no account
        self._store = from_url(self.uri, **options)
        self._pool = ThreadPoolExecutor(_PARALLEL)

    def read(self, path: str) -> bytes:
        """A whole file."""
        import obstore

        try:
            data = bytes(obstore.get(self._store, path).bytes())
        except (OSError, ValueError) as error:
            raise missing_file(path, self.uri, error) from error
        except obstore.exceptions.BaseError as error:
            raise self._failed(path, error) from error
        self.n_requests += 1
        self.n_bytes += len(data)
        return data

    def read_ranges(self, path: str, ranges: list[Range]) -> list[bytes]:
        """Pieces of a file, a request each."""
        import obstore

        def piece(wanted: Range) -> bytes:
            start, length = wanted
            return bytes(obstore.get_range(self._store, path, start=start, length=length))

        try:
            pieces = list(self._pool.map(piece, ranges))
        except (OSError, ValueError) as error:
            raise missing_file(path, self.uri, error) from error
        except obstore.exceptions.BaseError as error:
            raise self._failed(path, error) from error
        return _counted(self, path, ranges, pieces)

    def _failed(self, path: str, error: Exception) -> SourceError:
        # obstore raises its own tree of errors: no range support, refused, timed out.
        return SourceError(
            got=f"{self.uri}/{path}: {_first_line(error)}",
            expected="a server that answers range requests",
            fix="check the address, and that the server supports Range requests",
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def missing_file(path: str, uri: str, error: Exception) -> SourceError:
    """A file that the manifest names and nobody has."""
    if path == INDEX_FILE:
        return SourceError(
            got=f"{uri} without a readable {path} ({_first_line(error)})",
            expected="a search index",
            fix=f"make one of embeddings: bocage index {uri} --out NAME.index",
        )
    return SourceError(
        got=f"no readable {path} in {uri} ({_first_line(error)})",
        expected="every file of the index",
        fix="copy the index again, with its folder shards and manifest.parquet, or build it again",
    )


def joined(ranges: list[Range], max_gap: int) -> tuple[list[Range], list[tuple[int, int]]]:
    """Join sorted ranges whose gap is small; also the joined range and offset of each one."""
    groups: list[Range] = []
    places: list[tuple[int, int]] = []
    for start, length in ranges:
        if groups and start - sum(groups[-1]) <= max_gap:
            first, _ = groups[-1]
            groups[-1] = (first, max(sum(groups[-1]), start + length) - first)
        else:
            groups.append((start, length))
        places.append((len(groups) - 1, start - groups[-1][0]))
    return groups, places


def _counted(storage: Storage, path: str, ranges: list[Range], pieces: list[bytes]) -> list[bytes]:
    for (offset, length), piece in zip(ranges, pieces, strict=True):
        if len(piece) != length:
            raise SourceError(
                got=f"{path} in {storage.uri} ends {length - len(piece)} bytes short at {offset}",
                expected="the whole file that the manifest describes",
                fix="the copy is truncated: copy it again, or build the index again",
            )
    with _COUNTING:
        storage.n_requests += len(pieces)
        storage.n_bytes += sum(map(len, pieces))
    return pieces
