"""Sums of encoded blocks that wait for their neighbours: in memory first, on disk if that lasts.

A short run never writes them. In a long one a kill costs the blocks of the last seconds, and they
are encoded anew; a run that ends, fails or is interrupted leaves them for the next on disk.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from zipfile import BadZipFile

import numpy as np

from bocage.embeddings.atomic import naming_failures
from bocage.errors import StoreError
from bocage.mapping.blend import Part
from bocage.mapping.markers import Claim, Markers
from bocage.types import CodeArray

KEEP_S = 5.0
"""Encoded blocks may be in memory alone for so long: what a kill can cost."""

KEEP_BYTES = 32 * 2**20
"""In memory at most; those that came first go to disk first."""


@dataclass
class _Kept:
    """A part in memory, and the hold on its block: nobody else can know that it is encoded."""

    arrays: Part
    claim: Claim

    @property
    def n_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(kw_only=True)
class Parts:
    """The parts of a store, by the names of their blocks; for several threads."""

    markers: Markers
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _spilled_at: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _spilling: threading.Lock = field(default_factory=threading.Lock)

    def put(self, key: str, part: Part, claim: Claim) -> None:
        """Keep the part of a block that is encoded, and its claim until others can see it."""
        with self._lock:
            self._kept[key] = _Kept(part, claim)
        if time.monotonic() - self._spilled_at >= KEEP_S:
            self.spill()
        else:
            self.spill(KEEP_BYTES)

    def has(self, key: str) -> bool:
        """Whether a block is encoded and its part not dropped yet."""
        with self._lock:
            if key in self._kept:
                return True
        return self.markers.part(key).exists()

    def get(self, key: str, *names: str) -> list[CodeArray]:
        """Arrays of a part; StoreError if a power cut or another hand has damaged its file."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                return [kept.arrays[name] for name in names]
        path = self.markers.part(key)
        try:
            with np.load(path) as part:
                return [part[name] for name in names]
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise StoreError(
                got=f"{path}, which is damaged ({type(error).__name__})",
                expected="a whole file",
                fix="delete it and run again; only its block is encoded anew",
            ) from error

    def drop(self, key: str) -> None:
        """Forget a part that no block waits for any more."""
        with self._lock:
            kept = self._kept.pop(key, None)
        if kept is not None:
            kept.claim.release()
        self.markers.part(key).unlink(missing_ok=True)

    def spill(self, keep_bytes: int = 0) -> None:
        """Write parts to disk until no more bytes than that are in memory."""
        with self._spilling:
            if not keep_bytes:
                self._spilled_at = time.monotonic()
            while (oldest := self._oldest_above(keep_bytes)) is not None:
                self._write(*oldest)

    def _oldest_above(self, keep_bytes: int) -> tuple[str, _Kept] | None:
        with self._lock:
            if sum(kept.n_bytes for kept in self._kept.values()) <= keep_bytes:
                return None
            return next(iter(self._kept.items()))

    def _write(self, key: str, kept: _Kept) -> None:
        path = self.markers.part(key)
        partial = path.with_name(f".{path.name}.partial")
        with naming_failures(path), partial.open("wb") as file:
            np.savez(file, **kept.arrays)  # type: ignore[arg-type]  # numpy offers allow_pickle too
        partial.replace(path)
        with self._lock:
            was_dropped = self._kept.pop(key, None) is None
        if was_dropped:
            path.unlink(missing_ok=True)
        kept.claim.release()
