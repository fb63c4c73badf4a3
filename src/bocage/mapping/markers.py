"""What is finished, and who is at work: small files beside the data.

A marker is written after its shard, so a shard with a marker is whole. A part is what an encoded
block and its neighbours are finished from (see blend). A lock is an
operating-system lock on a file, which dies with its process: a killed worker leaves nothing to
clean up, and two workers never write one shard.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bocage.difference import describe_difference
from bocage.embeddings.atomic import naming_failures, write_file
from bocage.errors import StoreError

FOLDER = "bocage"


@dataclass(frozen=True, kw_only=True)
class Markers:
    """Markers and locks of one store."""

    store: Path
    """The store's folder."""

    @property
    def folder(self) -> Path:
        """Where the markers are."""
        return self.store / FOLDER

    def prepare(self, identity: dict[str, Any]) -> None:
        """Bind the store to a configuration; StoreError if it already has another."""
        with naming_failures(self.store):
            self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "identity.json"
        if not path.exists():
            with self.exclusive("identity"):
                if not path.exists():
                    write_file(path, json.dumps(identity, indent=1, sort_keys=True).encode())
        theirs = json.loads(path.read_text())
        if theirs != identity:
            raise StoreError(
                got=f"{self.store} made with {describe_difference(theirs, identity)}",
                expected="the same options and unchanged inputs",
                fix="repeat the old options, choose another --out, or delete the store",
            )

    def is_done(self, key: str) -> bool:
        """Whether a block is finished."""
        return (self.folder / f"{key}.json").exists()

    def part(self, key: str) -> Path:
        """Where the sums of an encoded block wait for its neighbours."""
        return self.folder / f"{key}.part.npz"

    def finish(self, key: str, facts: dict[str, Any]) -> None:
        """Mark a block whose shard is written."""
        write_file(self.folder / f"{key}.json", json.dumps(facts, sort_keys=True).encode())

    def facts(self, key: str) -> dict[str, Any]:
        """What was noted when a block was finished."""
        facts: dict[str, Any] = json.loads((self.folder / f"{key}.json").read_text())
        return facts

    def claim(self, key: str) -> Claim | None:
        """Hold a block; None if another process holds it."""
        handle = os.open(self.folder / f"{key}.lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return Claim(handle)

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Do something that only one process may do at a time; waits for its turn."""
        while (claim := self.claim(name)) is None:
            time.sleep(0.1)
        try:
            yield
        finally:
            claim.release()

    def tidy(self) -> None:
        """Remove locks, parts and what killed runs left, once every block is finished."""
        for pattern in ("*.lock", "*.npz", ".*.partial"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)


class Claim:
    """A held block; the lock goes with release() or with the process."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    def release(self) -> None:
        """Let go; safe to call twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
