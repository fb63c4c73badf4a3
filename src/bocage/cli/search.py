"""``bocage search``: what looks like what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def search(  # noqa: PLR0917 - one argument per option is how typer reads a command
    index: Annotated[str, typer.Argument(help="Folder or address of an index.")],
    like: Annotated[
        list[str] | None,
        typer.Option(help="LON,LAT or row (0/325) or vector.npy; repeat for several."),
    ] = None,
    unlike: Annotated[list[str] | None, typer.Option(help="The same, for what not.")] = None,
    area: Annotated[str | None, typer.Option(help="W,S,E,N in degrees, or a GeoJSON file.")] = None,
    dates: Annotated[str | None, typer.Option(help="2024, or 2024-04-01/2024-09-30.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE, or COLUMN=LEAST..LARGEST.")
    ] = None,
    k: Annotated[int, typer.Option("--top", "-k", help="Number of results.")] = 50,
    combine: Annotated[str, typer.Option(help="mean, and, or, xor.")] = "mean",
    invert: Annotated[bool, typer.Option(help="The least similar instead.")] = False,
    exact: Annotated[bool, typer.Option(help="Compare every int8 vector.")] = False,
    view: Annotated[
        str | None, typer.Option(help="Instead: outlier, surprise, edge, diversity, places.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="NAME.parquet or NAME.geojson.")] = None,
) -> None:
    """Find rows that look like places, rows or vectors, inside an area."""
    from bocage.errors import ConfigError
    from bocage.search import SearchOptions, open_index
    from bocage.search import search as find
    from bocage.search.results import check_ending
    from bocage.search.views import places_like
    from bocage.search.views import view as compute

    opened = open_index(index)
    place = _area(area)
    span: Any = tuple(dates.split("/")) if dates and "/" in dates else dates
    if out is not None:
        check_ending(out)
    options = SearchOptions(k=k, combine=combine, invert=invert, exact=exact)
    if view:
        _check_view(view, out, {"--like": like, "--unlike": unlike, "--where": where})
    if view == "places":
        places = places_like(opened, place, k=k, dates=span)
        if not places:
            typer.echo("nothing to compare: every row group of the index touches the area")
        for found in places:
            bounds = ", ".join(f"{v:.5f}" for v in found["bbox_wsen"])
            typer.echo(f"{found['distance']:.3f}  {found['first_row']:>10}  {bounds}")
        return
    if view:
        _print(compute(opened, view, area=place, dates=span).hits(opened, k), out)
        return
    if not like:
        raise ConfigError(
            got="a search without --like",
            expected="at least one place, row or vector",
            fix="for example --like 36.82,-1.29, or --view outlier",
        )
    hits = find(
        opened,
        [_exemplar(text) for text in like],
        negatives=[_exemplar(text) for text in unlike or []],
        area=place,
        dates=span,
        where=dict(_filter(text) for text in where or []) or None,
        options=options,
    )
    _print(hits, out)


def _print(hits: Any, out: Path | None) -> None:
    """The first ten on the screen, all of them in a file."""
    named = "source" in hits.attributes.column_names
    sources = hits.attributes["source"].to_pylist() if named else [None] * len(hits)
    shown = zip(hits.row[:10], hits.score, hits.lonlat, hits.dates, sources, strict=False)
    for row, score, (lon, lat), date, source in shown:
        place = f"{score:.4f}  {row:>10}  {lon:.5f},{lat:.5f}"
        typer.echo("  ".join(str(part) for part in (place, date, source) if part))
    if len(hits) > 10 and out is None:
        typer.echo(f"... {len(hits) - 10} more; --out hits.geojson writes all")
    if out is not None:
        hits.write(out)
        typer.echo(f"{out}: {len(hits)} of {hits.n_searched} rows")


def _check_view(view: str, out: Path | None, options: dict[str, Any]) -> None:
    """Refuse what a view would not look at."""
    from bocage.errors import ConfigError

    unused = [name for name, value in options.items() if value]
    if view == "places" and out is not None:
        unused.append("--out")
    if unused:
        raise ConfigError(
            got=f"--view {view} with {', '.join(unused)}",
            expected="--area, --dates and --top, and --out for values of rows",
            fix=f"leave out {', '.join(unused)}, or --view",
        )


def _area(text: str | None) -> Any:
    if text is None:
        return None
    parts = text.split(",")
    try:
        return [float(part) for part in parts]
    except ValueError:
        return text


def _exemplar(text: str) -> Any:
    if not text.endswith(".npy"):
        return text
    import numpy as np

    from bocage.errors import SourceError

    try:
        return np.load(text, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SourceError(
            got=f"{text} ({error})", expected="a vector saved by numpy", fix="check the path"
        ) from error


def _filter(text: str) -> tuple[str, Any]:
    from bocage.errors import ConfigError

    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ConfigError(
            got=f"--where {text}",
            expected="COLUMN=VALUE or COLUMN=LEAST..LARGEST",
            fix="for example --where landuse=forest",
        )
    if ".." in value:
        least, _, largest = value.partition("..")
        return name, (_number(least), _number(largest))
    return name, _number(value)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
