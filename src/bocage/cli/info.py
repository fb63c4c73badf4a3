"""``bocage info``: what a store or raster of embeddings is."""

from __future__ import annotations

from typing import Annotated

import typer


def info(
    path: Annotated[str, typer.Argument(help="A .zarr store or a .tif of embeddings.")],
) -> None:
    """Say what a store or raster of embeddings is, and how to open it."""
    from bocage.embeddings import info as describe

    typer.echo(str(describe(path)))
