"""A study on paper: tables, prices, Pareto plots."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from bocage.embeddings.codecs.study.evaluate import StudyOptions, StudyResult

SCORES = ("knn", "knn_hamming", "linear")


def storage_cost(code_bytes: int, parameter_bytes: int, options: StudyOptions) -> dict[str, float]:
    """Terabytes and dollars a year for an area: cells times bytes, plus parameters."""
    cells = options.area_km2 * 1e6 / options.gsd_m**2
    n_bytes = cells * code_bytes + parameter_bytes
    return {
        "area_tb": n_bytes / 1e12,
        "dollars_per_year": n_bytes / 1e9 * options.dollars_per_gb_month * 12,
    }


def pareto(rows: list[dict[str, Any]], score: str) -> list[dict[str, Any]]:
    """Codecs that no other one beats in both bytes on disk and score, smallest first."""
    usable = sorted((r for r in rows if score in r), key=lambda r: (r["disk_bytes"], -r[score]))
    front: list[dict[str, Any]] = []
    for row in usable:
        if not front or row[score] > front[-1][score]:
            front.append(row)
    return front


def write_report(result: StudyResult, folder: Path) -> Path:
    """Write table.csv, table.md, study.json and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in result.rows for name in row))
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(
            {k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()}
            for row in result.rows
        )
    content = {
        "model": result.model,
        "options": asdict(result.options),
        "vectors": result.vectors,
        "classes": result.classes,
        "notes": result.notes,
        "rows": result.rows,
    }
    (folder / "study.json").write_text(json.dumps(content, indent=2, default=float) + "\n")
    (folder / "table.md").write_text(markdown(result))
    for split in dict.fromkeys(row["split"] for row in result.rows):
        _plot(result, split, folder / f"pareto_{split}.png")
    return folder


def markdown(result: StudyResult) -> str:
    """The study as Markdown: one table per split."""
    options = result.options
    recall = f"recall@{options.recall_at}"
    lines = [f"# Compression study{f' of {result.model}' if result.model else ''}", ""]
    v = result.vectors
    lines += [
        f"{v['n_vectors']} vectors of {v['dims']} dimensions, {len(result.classes)} classes. "
        f"Intrinsic dimension: MLE {v['mle_k20']:.1f}, TwoNN {v['two_nn']:.1f}, "
        f"participation ratio {v['participation_ratio']:.1f}, effective rank "
        f"{v['effective_rank']:.1f}. Variance in the first principal axes: "
        + ", ".join(f"{d} hold {100 * share:.1f} %" for d, share in v["pca_variance"].items())
        + ".",
        "",
        f"Differences are to float32, with 95 % bootstrap intervals. Equivalent: TOST within "
        f"{100 * options.margin:g} points, Holm-corrected, at 5 %. Bits off balance: mean distance "
        "of their share of ones from one half. Scores of each class: study.json.",
        "",
    ]
    lines += [f"Note: {note}." for note in result.notes]
    for split in dict.fromkeys(row["split"] for row in result.rows):
        rows = [row for row in result.rows if row["split"] == split]
        scores = [s for s in SCORES if any(s in row for row in rows)]
        heads = [
            "codec",
            "bytes",
            "on disk",
            *(h for s in scores for h in (s, "difference", "eq.")),
            recall,
        ]
        bits = any(row.get("bit_imbalance") is not None for row in rows)
        heads += ["bits off balance"] if bits else []
        heads += [f"TB for {options.area_km2:,.0f} km2", "$ a year"]
        lines += ["", f"## {split} folds", "", "| " + " | ".join(heads) + " |"]
        lines.append("|" + " --- |" * len(heads))
        for row in rows:
            cells = [row["codec"], row["code_bytes"], f"{row['disk_bytes']:.1f}"]
            for s in scores:
                cells += _score_cells(row, s)
            cells.append(f"{row[recall]:.3f}")
            if bits:
                off = row.get("bit_imbalance")
                cells.append("" if off is None else f"{off:.3f}")
            cells += [
                f"{row['area_tb']:,.1f}",
                f"{row['dollars_per_year']:,.0f}",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _score_cells(row: dict[str, Any], score: str) -> list[str]:
    if score not in row:
        return ["", "", ""]
    low, high = row[f"{score}_low"], row[f"{score}_high"]
    difference = f"{100 * row[f'{score}_difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    equivalent = row.get(f"{score}_equivalent")
    return [
        f"{100 * row[score]:.1f}",
        difference,
        "" if equivalent is None else ("yes" if equivalent else "no"),
    ]


def _plot(result: StudyResult, split: str, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        result.notes.append("no plots: matplotlib is not installed")
        return
    rows = [row for row in result.rows if row["split"] == split]
    scores = [s for s in ("knn", "linear") if any(s in row for row in rows)]
    figure = Figure(figsize=(6.5 * len(scores), 5), layout="constrained")
    for axis, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        front = pareto(rows, score)
        usable = [row for row in rows if score in row]
        for chosen, style, color in ((usable, "o", "0.6"), (front, "o-", "tab:blue")):
            at = [r["disk_bytes"] for r in chosen], [100 * r[score] for r in chosen]
            axis.plot(*at, style, c=color, ms=5)
        for row in usable:
            axis.annotate(
                row["codec"], (row["disk_bytes"], 100 * row[score]), fontsize=7, rotation=30,
                xytext=(3, 3), textcoords="offset points", c="k" if row in front else "0.5",
            )  # fmt: skip
        axis.set(xlabel="bytes per vector on disk", ylabel="accuracy, %")
        axis.set_title(f"{score}, {split} folds")
        # Bytes double from tick to tick; plain numbers, and none between.
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.margins(x=0.12)
    figure.savefig(path, dpi=120)
