"""``bocage evaluate``: a suite of tasks over models, or the study of compression."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    study: Annotated[str, typer.Argument(help="A suite (.toml, .json), or compression.")],
    source: Annotated[
        Path | None,
        typer.Argument(help="compression: GeoParquet, or .npz with x, labels, lonlat."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for tables and plots.")],
    label_column: Annotated[str, typer.Option(help="Column of the class.")] = "label",
    embedding_column: Annotated[str, typer.Option(help="Column of the vectors.")] = "embedding",
    codecs: Annotated[
        str | None, typer.Option(help="Names, comma separated; the full grid by default.")
    ] = None,
    margin: Annotated[str, typer.Option(help="Equivalence margin.")] = "0.5pt",
    folds: Annotated[int, typer.Option(help="Folds of each split.")] = 5,
    block_km: Annotated[float, typer.Option(help="Side of the spatial blocks.")] = 50.0,
    probe: Annotated[bool, typer.Option(help="Linear probe too, which is slow.")] = True,
    area_km2: Annotated[float, typer.Option(help="Area to price; all land.")] = 148.94e6,
    gsd_m: Annotated[float, typer.Option(help="Ground size of an embedding.")] = 10.0,
    model: Annotated[str, typer.Option(help="Recorded in the report.")] = "",
) -> None:
    """Score models on the tasks of a suite, or codecs against float32 on labelled embeddings."""
    from bocage.errors import ConfigError

    if Path(study).suffix in {".toml", ".json"}:
        _suite(Path(study), out)
        return
    if study != "compression" or source is None:
        raise ConfigError(
            got=f"study {study!r}{'' if source else ' without a source'}",
            expected="a suite file, or compression and labelled embeddings",
            fix="bocage evaluate suite.toml --out scores, or bocage evaluate compression ...",
        )
    from bocage.embeddings.codecs.labelled import read_sample
    from bocage.embeddings.codecs.recommend import parse_tolerance
    from bocage.embeddings.codecs.study import StudyOptions
    from bocage.embeddings.codecs.study import evaluate as run
    from bocage.embeddings.codecs.study.evaluate import GRID
    from bocage.embeddings.codecs.study.report import markdown

    sample = read_sample(source, label_column=label_column, embedding_column=embedding_column)
    options = StudyOptions(
        codecs=tuple(codecs.split(",")) if codecs else GRID,
        margin=parse_tolerance(margin),
        n_folds=folds,
        block_km=block_km,
        probe=probe,
        area_km2=area_km2,
        gsd_m=gsd_m,
    )
    assert sample.labels is not None  # a label column was named
    result = run(sample.x, sample.labels, lonlat=sample.lonlat, options=options, model=model)
    result.write(out)
    typer.echo(markdown(result))
    typer.echo(f"{out}: table.md, table.csv, study.json, pareto_*.png")


def _suite(path: Path, out: Path) -> None:
    from bocage.bench.work import Shape, multiply_adds
    from bocage.learn.suite import read_suite
    from bocage.learn.suite_run import run_suite
    from bocage.learn.suite_table import markdown, write

    def macs(
        model: Any, sensors: tuple[str, ...], size_px: int, n_times: int, patch_size: int
    ) -> int:
        shape = Shape(sensors=sensors, size_px=size_px, times=n_times, patch_size=patch_size)
        return multiply_adds(model.config, shape)

    result = run_suite(read_suite(path), macs=macs, say=typer.echo)
    written = write(result, out)
    typer.echo(markdown(result))
    typer.echo(f"{out}: {', '.join(p.name for p in written)}")
