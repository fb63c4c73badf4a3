"""``bocage models``: which models there are."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    pattern: Annotated[str, typer.Argument(help="For example '*v1.2*'.")] = "*",
) -> None:
    """List the models that load by name."""
    from fnmatch import filter as matching

    from bocage.models import list_models

    for name in matching(list_models(), pattern):
        typer.echo(name)
