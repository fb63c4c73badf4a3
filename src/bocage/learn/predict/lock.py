"""One process per output: a lock that dies with its process, and what a killed one left behind."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bocage.embeddings.atomic import PARTIAL_SUFFIX, naming_failures
from bocage.errors import StoreError

_PARTS = "probability|scores|embeddings|binary|strengths"
"""What stands between a map's name and the suffix of a file that belongs to it."""


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Refuse to write one map from two processes; what a killed one left is removed."""
    handle = hold(out, "one process per map")
    try:
        with naming_failures(out):
            for left in _left_behind(out):
                shutil.rmtree(left)
        yield
    finally:
        let_go(handle)


def hold(out: Path, rule: str) -> IO[bytes]:
    """A locked file beside what is written, until `let_go` or the end of the process.

    StoreError, which states `rule`, if another process holds it or the folder takes no files.
    """
    with naming_failures(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        handle = out.with_name(f".{out.name}.lock").open("ab")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its holder may have finished and removed the file while it was opened here.
        if os.fstat(handle.fileno()).st_nlink == 0:
            raise BlockingIOError
    except BlockingIOError as error:
        handle.close()
        raise StoreError(
            got=f"{out}, which another process is writing",
            expected=rule,
            fix="wait for it, or choose another --out",
        ) from error
    return handle


def let_go(handle: IO[bytes]) -> None:
    """Remove the lock and its file; safe to call twice."""
    if not handle.closed:
        Path(handle.name).unlink(missing_ok=True)
        handle.close()


def _left_behind(out: Path) -> list[Path]:
    """Folders of unfinished files of this map, and not those of NAME.other.tif beside it."""
    own = re.compile(
        rf"\.{re.escape(out.stem)}(_\d+)?(\.({_PARTS}))?\.\w+\.[0-9a-f]{{8}}"
        rf"{re.escape(PARTIAL_SUFFIX)}"
    )
    return [path for path in out.parent.iterdir() if own.fullmatch(path.name) and path.is_dir()]
