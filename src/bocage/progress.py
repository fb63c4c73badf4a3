"""One progress display: a bar on a terminal, plain lines with an ETA in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bocage.types import PathLike

Advance = Callable[[float], None]
"""Call with the amount of work just finished."""

PLAIN_INTERVAL_S = 10.0
"""Seconds between lines off a terminal: a Slurm log wants few."""


@contextmanager
def progress(title: str, total: float, *, unit: str, enabled: bool = True) -> Iterator[Advance]:
    """Show how far ``total`` units of work are and when they will be done, on standard error."""
    if not enabled or total <= 0:
        yield lambda _amount: None
    elif sys.stderr.isatty():
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        yield _plain(title, total, unit)


@contextmanager
def _bar(title: str, total: float, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total)
        yield lambda amount: bars.advance(task, amount)


def _plain(title: str, total: float, unit: str) -> Advance:
    start = last = time.monotonic()
    done = 0.0

    def advance(amount: float) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if done < total and now - last < PLAIN_INTERVAL_S:
            return
        last = now
        left_s = (now - start) / done * (total - done) if done else 0.0
        line = f"{title}: {done:.0f}/{total:.0f} {unit}, {format_duration(left_s)} left"
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    return advance


def format_duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 10 s, 5 h 20 min."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def format_bytes(n_bytes: float) -> str:
    """Bytes in decimal units, as disks are sold: 3.1 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def size_on_disk(path: PathLike) -> int:
    """Bytes of a file, or of all files below a folder."""
    from pathlib import Path

    root = Path(path)
    if root.is_file():
        return root.stat().st_size
    return sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
