"""Peak memory and time of loading v1.2 base for embeddings, against the official package.

Each loader runs in fresh processes, alternately; the file is an official state dict with random
weights. Time and memory of the imports are given apart, so that the share of each is visible.

    python bench/load_model.py [--size base] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bocage.memory import peak_resident_mb


def official(folder: Path) -> None:
    from olmoearth_pretrain_minimal import load_model_from_path

    mark()
    load_model_from_path(folder)


def ours(folder: Path) -> None:
    from bocage import load_model
    from bocage.models import Model  # noqa: F401  (imports torch before the clock starts)

    mark()
    load_model(folder)


LOADERS = {"official": official, "ours": ours}
MARKS: list[tuple[float, float]] = []


def mark() -> None:
    MARKS.append((time.perf_counter(), peak_resident_mb()))


def write_model(folder: Path, size: str) -> None:
    import torch
    from olmoearth_pretrain_minimal import OlmoEarthPretrain_v1

    from bocage.models.config_json import config_to_json
    from bocage.models.releases import release_config

    config = config_to_json(release_config("v1.2", size))
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(OlmoEarthPretrain_v1(size, "v1.2").model.state_dict(), folder / "weights.pth")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="base")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("LOADER", "FOLDER"))
    parser.add_argument("--write", metavar="FOLDER", type=Path)
    args = parser.parse_args()
    if args.write:
        write_model(args.write, args.size)
        return
    if args.run:
        mark()
        LOADERS[args.run[0]](Path(args.run[1]))
        mark()
        (start, _), (imported, import_mb), (end, peak_mb) = MARKS
        print(json.dumps([imported - start, end - imported, import_mb, peak_mb]))
        return
    with tempfile.TemporaryDirectory() as name:
        # In a process of its own: the peak memory of a child starts at that of its parent.
        write = [sys.executable, __file__, "--size", args.size, "--write", name]
        subprocess.run(write, check=True)
        rows: dict[str, list[list[float]]] = {loader: [] for loader in LOADERS}
        for _ in range(args.repeats):
            for loader in LOADERS:
                command = [sys.executable, __file__, "--run", loader, name]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                rows[loader].append(json.loads(output))
    medians = {k: [statistics.median(c) for c in zip(*v, strict=True)] for k, v in rows.items()}
    print(f"v1.2 {args.size}, median of {args.repeats} fresh processes each")
    for loader, (import_s, load_s, import_mb, peak_mb) in medians.items():
        print(
            f"{loader:9} import {import_s:5.2f} s  load {load_s:5.2f} s  "
            f"peak {peak_mb:6.0f} MB  (after import {import_mb:.0f} MB)"
        )
    a, b = medians["ours"], medians["official"]
    print(
        f"ours / official: load time {a[1] / b[1]:.2f}, with import {sum(a[:2]) / sum(b[:2]):.2f}, "
        f"peak memory {a[3] / b[3]:.2f}, above the import {(a[3] - a[2]) / (b[3] - b[2]):.2f}"
    )


if __name__ == "__main__":
    main()
