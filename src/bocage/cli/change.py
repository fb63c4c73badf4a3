"""``bocage change``: two times of one place to a map of what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bocage.cli.imagery_options import ImageryOptions, with_imagery
from bocage.cli.years import parse_years


@with_imagery
def change(  # noqa: PLR0917 - one argument per option is how typer reads a command
    before: Annotated[
        str | None, typer.Argument(help="Embeddings, a scene, or any raster of bands.")
    ] = None,
    after: Annotated[
        str | None, typer.Argument(help="The same, later; or none, with --years.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="NAME.tif; sidecars lie beside it.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="magnitude, cosine, difference, pca, logistic; bands: cva, irmad."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Points of change and no change, for logistic.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Of several.")] = None,
    years: Annotated[str | None, typer.Option(help="Of the embeddings: 2024,2025.")] = None,
    components: Annotated[int, typer.Option(help="Kept by pca.")] = 8,
    threshold: Annotated[
        float | None, typer.Option(help="Of NAME.binary.tif; Otsu's by default.")
    ] = None,
    codec: Annotated[str, typer.Option(help="auto, int8 or float32.")] = "auto",
    binary: Annotated[bool, typer.Option(help="Also NAME.binary.tif.")] = True,
    picture: Annotated[bool, typer.Option(help="Also NAME.png.")] = True,
    imagery: ImageryOptions = ImageryOptions(),  # noqa: B008 - replaced by its options
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
) -> None:
    """Map what changed between two times, with data missing at either told from no change.

    Options of imagery hold for both scenes; --offset before=0,after=-1000 tells them apart.
    """
    options = {k: str(v) if isinstance(v, Path) else v for k, v in locals().items()}
    options |= imagery.as_dict()
    del options["imagery"]
    from bocage.change import ChangeConfig, describe_pair, map_change, open_pair
    from bocage.errors import ConfigError

    if out is None and not dry_run:
        raise ConfigError(
            got="no --out", expected="a place for the map", fix="for example --out change.tif"
        )
    chosen = _two(parse_years(years))
    config = ChangeConfig(
        method=method or ("logistic" if labels is not None else "magnitude"),
        labels=labels,
        label_column=label_column,
        components=components,
        threshold=threshold,
        codec=codec,  # type: ignore[arg-type]  # checked there
        binary=binary,
        picture=picture,
    )
    first, second = _times(before, after, imagery)
    if dry_run or out is None:
        pair = open_pair(first, second, years=chosen)
        config.check_kind(pair.is_embeddings)
        typer.echo(describe_pair(pair, config))
        return
    result = map_change(
        first,
        second,
        out=out,
        years=chosen,
        config=config,
        request=options,
        report=typer.echo,
        show_progress=True,
    )
    typer.echo(str(result))


def _times(before: str | None, after: str | None, imagery: ImageryOptions) -> tuple[Any, Any]:
    """Both times as they were typed; scenes opened as the options say."""
    from bocage.errors import ConfigError

    earlier, later = imagery.sides()
    if before is None and imagery.catalog is None:
        raise ConfigError(
            got="no BEFORE and no --catalog",
            expected="two times of one place",
            fix="try: bocage change 2024.zarr 2025.zarr --out change.tif",
        )
    if earlier != later and after is None:
        after = before  # two times of one folder or catalog
    elif before is None:
        raise ConfigError(
            got="a catalog and one set of options",
            expected="two times",
            fix="tell them apart, for example with --dates before=2024,after=2025",
        )
    return _scene(before, earlier), None if after is None and before else _scene(after, later)


def _scene(path: str | None, imagery: ImageryOptions) -> Any:
    """A path as it is, or imagery opened with what was typed about it."""
    if path is not None and not imagery.given():
        return path
    from bocage.change.pair import silent_about_models
    from bocage.learn.source import embeddings_at

    if path is not None and embeddings_at(path) is not None:
        imagery.check_unused(
            f"the embeddings {path}", fix="leave them out, or name the scenes instead"
        )
    with silent_about_models():
        return imagery.open([] if path is None else [path])


def _two(years: tuple[int, ...] | None) -> tuple[int, int] | None:
    from bocage.errors import ConfigError

    if years is None:
        return None
    if len(years) != 2:
        raise ConfigError(
            got=f"--years {','.join(map(str, years))}",
            expected="two years, before and after",
            fix="use for example --years 2024,2025",
        )
    return years[0], years[1]
