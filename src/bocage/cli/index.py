"""``bocage index``: embeddings to a search index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def index(  # noqa: PLR0917 - one argument per option is how typer reads a command
    source: Annotated[
        list[str],
        typer.Argument(help="Embeddings (.zarr, .tif; several of one model), or GeoParquet."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make, for example NAME.index.")],
    code: Annotated[
        str, typer.Option(help="First stage: auto, balanced_pq16, binary_mean, rabitq, ...")
    ] = "auto",
    rerank_dims: Annotated[
        int | None, typer.Option(help="Keep a Matryoshka prefix for the second stage.")
    ] = None,
    embedding_column: Annotated[str, typer.Option(help="Column of a table.")] = "embedding",
    date_column: Annotated[str | None, typer.Option(help="Column of a table.")] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Rule of int8 columns: signed_power.")
    ] = None,
    model: Annotated[str, typer.Option(help="Recorded in the index.")] = "",
    on_zero: Annotated[str, typer.Option(help="All-zero vectors: error or drop.")] = "error",
) -> None:
    """Turn embeddings of any size into shards that `bocage search` and a browser read by range."""
    from bocage.progress import format_bytes
    from bocage.search import IndexOptions
    from bocage.search import index as build

    result = build(
        list(source) if len(source) > 1 else source[0],
        out,
        options=IndexOptions(code=code, rerank_dims=rerank_dims, on_zero=on_zero),
        embedding_column=embedding_column,
        date_column=date_column,
        quantization=quantization,
        model=model,
        show_progress=True,
    )
    dropped = f" ({result.n_dropped} without data left out)" if result.n_dropped else ""
    typer.echo(f"{result.path}: {result.n_rows} rows{dropped}, {format_bytes(result.n_bytes)}")
    typer.echo(
        f"in {result.n_shards} shards; search it: bocage search {result.path} --like LON,LAT"
    )
