"""``bocage zonal``: a map and polygons in, a table with a row per polygon out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bocage.cli.years import parse_years

_ZONES = "Zones"
_MAP = "Map"


def zonal(  # noqa: PLR0917 - one argument per option is how typer reads a command
    rasters: Annotated[
        list[str],
        typer.Argument(help="Embeddings, a map of classes or of numbers; or one per year."),
    ],
    zones: Annotated[
        str, typer.Option(help="Polygons: GeoParquet, GeoPackage, GeoJSON, Shapefile.")
    ],
    out: Annotated[Path | None, typer.Option(help="NAME.parquet, .gpkg, .geojson or .csv.")] = None,
    identifier: Annotated[
        str | None,
        typer.Option("--id", help="Column that names the zones.", rich_help_panel=_ZONES),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer of the file.", rich_help_panel=_ZONES)
    ] = None,
    stats: Annotated[
        str | None,
        typer.Option(help="mean,std,min,max,sum,median,p10,stats,quartiles,percentiles or auto."),
    ] = None,
    above: Annotated[
        float | None, typer.Option(help="Also hectares and share of at least this.")
    ] = None,
    deltas: Annotated[
        bool, typer.Option("--deltas", help="Of several years: also differences.")
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option(
            help="embeddings, classes or values, if the file does not say.", rich_help_panel=_MAP
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class table: value, name.", rich_help_panel=_MAP)
    ] = None,
    years: Annotated[
        str | None, typer.Option(help="Of the map: 2024,2025.", rich_help_panel=_MAP)
    ] = None,
    dims: Annotated[
        int | None, typer.Option(help="Of embeddings, the first so many.", rich_help_panel=_MAP)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
) -> None:
    """Sum up a map per polygon: hectares of classes, means of numbers or embeddings."""
    from bocage.errors import ConfigError
    from bocage.zonal import ZonalConfig, zonal_statistics

    if out is None and not dry_run:
        raise ConfigError(
            got="no --out", expected="a place for the table", fix="for example --out stats.parquet"
        )
    result = zonal_statistics(
        rasters[0] if len(rasters) == 1 else rasters,
        zones,
        out=out,
        id_column=identifier,
        layer=layer,
        kind=kind,  # type: ignore[arg-type]  # checked there
        classes=classes,
        dims=dims,
        years=parse_years(years),
        config=ZonalConfig(
            stats=stats or (),
            above=above,
            deltas=deltas,
        ),
        report=typer.echo,
        dry_run=dry_run,
        show_progress=True,
    )
    if not dry_run:
        typer.echo(str(result))
