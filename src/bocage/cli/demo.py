"""``bocage demo``: the real 19 km scene of the `demo` extra, from files to a map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("bocage-demo"),
    model: Annotated[str, typer.Option(help="See `bocage models`.")] = "bocage-nano",
    weights: Annotated[str, typer.Option(help="hub, a file or folder, or random.")] = "hub",
    patch_size: Annotated[int, typer.Option(help="Pixels per cell, 1 to 8.")] = 8,
) -> None:
    """Embed a real Sentinel-2 scene and write a store, a GeoTIFF and a picture."""
    from bocage.mapping.demo import run_demo

    run_demo(out, model=model, weights=weights, patch_size=patch_size, say=typer.echo)
