"""``bocage validate``: does a store or raster follow the rules of the field."""

from __future__ import annotations

from typing import Annotated

import typer


def validate(
    path: Annotated[str, typer.Argument(help="A .zarr store or a .tif of embeddings.")],
) -> None:
    """Check a store or raster against the conventions; exit code 1 if something is wrong."""
    from bocage.embeddings import validate as check

    findings = check(path)
    for finding in findings:
        typer.echo(str(finding))
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        raise typer.Exit(1)
    typer.echo(f"{path}: valid" + (f", {len(findings)} remark(s)" if findings else ""))
