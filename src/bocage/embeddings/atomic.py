"""Files that are either whole or absent.

Everything is written beside its target under a name that no reader looks at, flushed to the disk,
and renamed. A killed process or a full disk leaves the target as it was.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bocage.errors import BocageError, StoreError

PARTIAL_SUFFIX = ".partial"
"""Ends the names of files being written; whoever finds one may delete it."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROOM_BYTES = 256 * 1024
_FULL_TEXTS = ("No space left", "disk full", "File too large", "quota exceeded")


def write_file(target: Path, data: bytes | memoryview) -> None:
    """Put the bytes at the target in one step, replacing what was there; StoreError if it fails.

    The temporary name is always the same, so a killed run and its repetition leave the same files.
    Only one process may write one target.
    """
    partial = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")
    with naming_failures(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def directory_in_place(target: Path) -> Iterator[Path]:
    """A fresh folder beside the target, which becomes the target when the block ends well.

    Two processes may try at once: the second finds the target taken and gets a StoreError.
    """
    with naming_failures(target):
        _check_free(target)  # before the work, which may take hours
    with naming_failures(target), scratch_beside(target) as folder:
        yield folder
        _check_free(target)
        try:
            folder.replace(target)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                raise _taken(target) from error
            raise


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the target's own disk, removed afterwards whatever happens."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def naming_failures(target: Path) -> Iterator[None]:
    """Turn a failed write into a StoreError that names the target and what to do."""
    try:
        yield
    except BocageError:
        raise
    except OSError as error:
        raise _write_failed(target, error) from error
    except Exception as error:
        # GDAL reports its write failures as its own exception types.
        if type(error).__module__.startswith("rasterio"):
            raise _write_failed(target, error) from error
        raise


def flush_to_disk(path: Path) -> None:
    """Wait until a file that another library wrote is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _write_failed(target: Path, error: Exception) -> StoreError:
    # The system's own words, without the temporary name that means nothing to the user.
    text = getattr(error, "strerror", None) or str(error)
    # GDAL's exceptions have an errno of GDAL's own numbering.
    code = error.errno if isinstance(error, OSError) else None
    full = (
        code in _FULL
        or any(t in text for t in _FULL_TEXTS)
        # GDAL says "Write failed" and no more.
        or (code is None and _free_bytes(target.parent) < _NO_ROOM_BYTES)
    )
    reason = "no space left on the disk" if full else text or type(error).__name__
    return StoreError(
        got=f"{reason} while writing {target}",
        expected="a disk that takes the output",
        fix=(
            "free some space or choose another --out, and run again; what was finished is kept"
            if full
            else "check the path and its permissions, and run again"
        ),
    )


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return _NO_ROOM_BYTES


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise _taken(target)


def _taken(target: Path) -> StoreError:
    return StoreError(
        got=f"{target}, which exists already",
        expected="a new path",
        fix="choose another path, or delete it first",
    )
