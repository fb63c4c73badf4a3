"""How the C library keeps memory, on Linux with glibc; elsewhere nothing happens.

Long runs allocate and free the same large blocks thousands of times, from several threads.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


@lru_cache(maxsize=1)
def share_one_arena() -> None:
    """Let all threads allocate from one pool; call it before the first thread starts.

    With a pool per reading thread, each as large as what that thread ever held, a scene of four
    times the area took 1.5 times the memory (bench/scene.py). Pools that threads made before go to
    later threads, and give memory back that is faulted in again for the next batch.
    """
    _mallopt(_M_ARENA_MAX, 1)


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Keep up to 1 GiB that was freed, for the next activations.

    By default glibc hands large blocks back to the system and faults every page in again: 25 % of
    the time of the nano model (measured 2026-11-21, 2 cores).
    """
    share_one_arena()
    _mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
    _mallopt(_M_TRIM_THRESHOLD, 2**30)


def peak_resident_mb() -> float:
    """Largest resident size of this process so far, in MB (1e6 bytes).

    Not ``getrusage``: its maximum starts from the size of the process that started this one.
    Without /proc (macOS, Windows) it has to do, where it exists.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def _mallopt(parameter: int, value: int) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    mallopt(parameter, value)
