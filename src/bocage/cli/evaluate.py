"""``bocage evaluate``: studies on labelled embeddings; now there is one, of compression."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(  # noqa: PLR0917 - one argument per option is how typer reads a command
    study: Annotated[str, typer.Argument(help="compression")],
    source: Annotated[Path, typer.Argument(help="GeoParquet, or .npz with x, labels, lonlat.")],
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
    """Score codecs against float32 on labelled embeddings, and price them."""
    from bocage.errors import ConfigError

    if study != "compression":
        raise ConfigError(
            got=f"study {study!r}", expected="compression", fix="bocage evaluate compression ..."
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
