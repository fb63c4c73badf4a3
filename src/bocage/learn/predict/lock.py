"""One process per map: a lock that dies with its process, and what a killed one left behind."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bocage.embeddings.atomic import PARTIAL_SUFFIX
from bocage.errors import StoreError

_PARTS = "probability|scores|embeddings|binary|strengths"
"""What stands between a map's name and the suffix of a file that belongs to it."""


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Refuse to write one map from two processes; the lock is the operating system's."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.lock")
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                got=f"{out}, which another process is writing",
                expected="one process per map",
                fix="wait for it, or choose another --out",
            ) from error
        try:
            for left in _left_behind(out):
                shutil.rmtree(left)
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _left_behind(out: Path) -> list[Path]:
    """Folders of unfinished files of this map, and not those of NAME.other.tif beside it."""
    own = re.compile(
        rf"\.{re.escape(out.stem)}(_\d+)?(\.({_PARTS}))?\.\w+\.[0-9a-f]{{8}}"
        rf"{re.escape(PARTIAL_SUFFIX)}"
    )
    return [path for path in out.parent.iterdir() if own.fullmatch(path.name) and path.is_dir()]
