"""Tables of numbers on disk: CSV with a line per row, JSON of the machine beside it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bocage.types import PathLike


def write_table(path: PathLike, rows: Iterable[dict[str, Any]], machine: dict[str, Any]) -> int:
    """Write ``path`` and ``path`` with the ending _hardware.json; lists become words in one cell.

    Returns the number of rows.
    """
    rows = list(rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    path.with_name(f"{path.stem}_hardware.json").write_text(json.dumps(machine, indent=2) + "\n")
    return len(rows)


def format_rows(rows: Iterable[dict[str, Any]]) -> str:
    """A table for people: what was run, how fast, against what."""
    lines = [
        f"{'model':22} {'input':28} {'batch':>5} {'way':14} {'img/s':>9} {'spread':>15} "
        f"{'km2/s':>8} {'TFLOP/s':>8} {'peak':>5} {'MB':>6} {'first':>7} "
        f"{'faster':>7} {'(best)':>7}  gate"
    ]
    for row in rows:
        shape = (
            f"{row['sensors'].replace('sentinel2_l2a', 'S2').replace('sentinel1', 'S1')} "
            f"{row['input_size']}px T={row['timesteps']} p={row['patch_size']}"
        ).replace("landsat", "L8")
        way = f"{row['implementation'][:8]} {row['precision']}{' c' if row['compiled'] else ''}"
        faster = [
            "-" if math.isnan(row[key]) else f"{row[key]:.2f}x"
            for key in ("speedup", "speedup_best")
        ]
        spread = f"{row['images_per_s_low']:.1f}-{row['images_per_s_high']:.1f}"
        lines.append(
            f"{row['model']:22} {shape:28} {row['batch_size']:5} {way:14} "
            f"{row['images_per_s']:9.1f} {spread:>15} {row['km2_per_s']:8.2f} {row['tflops']:8.2f} "
            f"{row['share_of_peak']:5.0%} {row['peak_memory_mb']:6.0f} {row['first_call_s']:6.1f}s "
            f"{faster[0]:>7} {faster[1]:>7}  {row['gate']}"
        )
    return "\n".join(lines)


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(f"{x:.6g}" for x in value)
    return f"{value:.6g}" if isinstance(value, float) else value
