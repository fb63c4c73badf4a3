"""``bocage preview``: a picture of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def preview(
    path: Annotated[str, typer.Argument(help="A .zarr store or a .tif of embeddings.")],
    png: Annotated[Path | None, typer.Option(help="Picture; NAME.png by default.")] = None,
    year: Annotated[int | None, typer.Option(help="Of several; the last by default.")] = None,
    cog: Annotated[Path | None, typer.Option(help="Also an RGB GeoTIFF for a GIS.")] = None,
) -> None:
    """Draw the first three principal components as red, green and blue."""
    from bocage.embeddings import preview as draw

    target = png or Path(path.rstrip("/")).with_suffix(".png")
    typer.echo(str(draw(path, target, cog=cog, year=year)))
