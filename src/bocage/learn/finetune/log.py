"""metrics.jsonl: one line per step and one per epoch.

A run that goes on forgets what came after its last state.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: dict[str, Any]) -> None:
        """Add one line."""
        if not self.enabled:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole lines."""
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # a killed process wrote half a line
    return rows
