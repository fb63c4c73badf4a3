"""metrics.jsonl: one line per step and one per epoch.

A run that goes on forgets what came after its last state.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from bocage.embeddings.atomic import write_file

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Lines of JSON, each on the disk before the run goes on."""

    def __init__(self, folder: Path, *, steps_done: int, enabled: bool) -> None:
        """Keep what was logged up to a step; a line that was cut off is dropped."""
        self.path = folder / METRICS_FILE
        self.enabled = enabled
        if not enabled:
            return
        kept = [row for row in read_metrics(folder) if row["step"] <= steps_done]
        if "test" in (kept[-1] if kept else {}):
            kept.pop()
        write_file(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def write(self, row: dict[str, Any]) -> None:
        """Add one line."""
        if not self.enabled:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's log; one that was torn by a kill is left out."""
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows
