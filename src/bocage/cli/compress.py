"""``bocage compress``: embeddings to small codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compress(  # noqa: PLR0917 - one argument per option is how typer reads a command
    source: Annotated[Path, typer.Argument(help="A .zarr or .tif of embeddings, or GeoParquet.")],
    out: Annotated[Path | None, typer.Option(help="NAME.zarr for a grid, or NAME.parquet.")] = None,
    codec: Annotated[
        str, typer.Option(help="For example int8, pca64-int8, prefix64-int8, binary_mean, pq32.")
    ] = "signed_power_gain",
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Only say which codec, and why.")
    ] = False,
    tolerance: Annotated[str, typer.Option(help="Loss allowed with --recommend.")] = "0.5pt",
    label_column: Annotated[
        str | None, typer.Option(help="Labels of a table, for --recommend.")
    ] = None,
    embedding_column: Annotated[str, typer.Option(help="Column of a table.")] = "embedding",
) -> None:
    """Compress embeddings, streaming; a killed run goes on when repeated."""
    from bocage.errors import ConfigError
    from bocage.progress import format_bytes

    if recommend:
        from bocage.embeddings.codecs.labelled import read_sample
        from bocage.embeddings.codecs.recommend import recommend as choose

        sample = read_sample(source, label_column=label_column, embedding_column=embedding_column)
        found = choose(sample.x, sample.labels, lonlat=sample.lonlat, tolerance=tolerance)
        typer.echo(f"{found.codec}\n{found.reason}")
        return
    if out is None:
        raise ConfigError(
            got="compress without --out",
            expected="a name for the result",
            fix="for example --out small.zarr, or --recommend to choose a codec first",
        )
    from bocage.embeddings.codecs.compress import compress as run

    result = run(source, out, codec=codec, embedding_column=embedding_column, show_progress=True)
    if not result.n_vectors:
        typer.echo("nothing to do: all of it was compressed before")
    typer.echo(
        f"{result.path}: {format_bytes(result.n_bytes)} of {result.codec} codes "
        f"for {format_bytes(result.float_bytes)} of float32"
    )
    opener = "from bocage.embeddings.codecs.compress import open_compressed"
    if out.suffix == ".zarr":
        typer.echo(f"open it: {opener}; open_compressed({str(out)!r})")
