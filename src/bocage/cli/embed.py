"""``bocage embed``: imagery in, a map of embeddings out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_MODEL = "olmoearth-v1.2-nano"

_INPUT = "Input"
_MODEL = "Model"
_RUN = "Run"


def embed(  # noqa: PLR0917 - one argument per option is how typer reads a command
    ctx: typer.Context,
    source: Annotated[
        list[str] | None,
        typer.Argument(help="Folder, GeoTIFFs, JP2s, NetCDF, Zarr or STAC items (one or more)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="NAME.zarr, or NAME.tif for a COG.")] = None,
    model: Annotated[
        str, typer.Option(help="See `bocage models`.", rich_help_panel=_MODEL)
    ] = DEFAULT_MODEL,
    weights: Annotated[
        str,
        typer.Option(help="hub, a file or folder, or random (to try).", rich_help_panel=_MODEL),
    ] = "hub",
    device: Annotated[str, typer.Option(help="cpu or cuda.", rich_help_panel=_MODEL)] = "cpu",
    precision: Annotated[
        str, typer.Option(help="auto, fp32, bf16 or int8.", rich_help_panel=_MODEL)
    ] = "fp32",
    patch_size: Annotated[
        int, typer.Option(help="Pixels per cell, 1 to 8.", rich_help_panel=_MODEL)
    ] = 4,
    output: Annotated[
        str,
        typer.Option(help="auto, pooled, student, locations.", rich_help_panel=_MODEL),
    ] = "auto",
    query: Annotated[
        int | None,
        typer.Option(help="v1.3: pixels per output cell.", rich_help_panel=_MODEL),
    ] = None,
    sensor: Annotated[
        str | None, typer.Option(help="If names do not tell.", rich_help_panel=_INPUT)
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(help="Band names in file order: B02,B03,...", rich_help_panel=_INPUT),
    ] = None,
    date: Annotated[
        str | None, typer.Option(help="If files do not say: 2024-07-01.", rich_help_panel=_INPUT)
    ] = None,
    bbox: Annotated[
        str | None,
        typer.Option(help="west,south,east,north in degrees.", rich_help_panel=_INPUT),
    ] = None,
    crs: Annotated[
        str | None, typer.Option(help="utm or EPSG:n to reproject.", rich_help_panel=_INPUT)
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Multiply values, or db.", rich_help_panel=_INPUT)
    ] = None,
    offset: Annotated[
        float | None, typer.Option(help="Add to values: -1000.", rich_help_panel=_INPUT)
    ] = None,
    level: Annotated[
        str | None, typer.Option(help="L1C or L2A, if known.", rich_help_panel=_INPUT)
    ] = None,
    cloud_mask: Annotated[
        bool, typer.Option(help="Use SCL or QA_PIXEL if present.", rich_help_panel=_INPUT)
    ] = True,
    composite: Annotated[
        str | None,
        typer.Option(help="month, year or 30d: one median per period.", rich_help_panel=_INPUT),
    ] = None,
    codec: Annotated[
        str, typer.Option(help="signed_power (int8) or float32.", rich_help_panel=_RUN)
    ] = "signed_power",
    period: Annotated[
        str, typer.Option(help="all dates as one, or one per year.", rich_help_panel=_RUN)
    ] = "all",
    window: Annotated[
        int | None, typer.Option(help="Pixels the model sees at once.", rich_help_panel=_RUN)
    ] = None,
    halo: Annotated[
        int | None, typer.Option(help="Margin thrown away, pixels.", rich_help_panel=_RUN)
    ] = None,
    block: Annotated[
        int, typer.Option(help="Unit of writing and resume, pixels.", rich_help_panel=_RUN)
    ] = 1024,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows per forward.", rich_help_panel=_RUN)
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="Part of the work, 3/40.", rich_help_panel=_RUN)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan only.", rich_help_panel=_RUN)
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="Repeat a run.json; other options win.", rich_help_panel=_RUN),
    ] = None,
) -> None:
    """Turn imagery into a map of embeddings; run again after a crash to go on."""
    options = {k: v for k, v in locals().items() if k not in {"ctx", "config", "dry_run", "shard"}}
    if config is not None:
        options = _repeat(ctx, config, options)
    run(options, shard=shard, dry_run=dry_run)


def run(options: dict[str, Any], *, shard: str | None = None, dry_run: bool = False) -> None:
    """Open, load, embed and print; ``options`` are the command's own, by name."""
    from bocage.errors import ConfigError
    from bocage.imagery import open_stack
    from bocage.mapping import EmbedConfig, make_plan, time_window, window_encoder
    from bocage.mapping import embed as embed_stack
    from bocage.models import load_model

    if not options["source"] or (options["out"] is None and not dry_run):
        raise ConfigError(
            got="no " + ("SOURCE" if not options["source"] else "--out"),
            expected="imagery to read and a place to write",
            fix="try: bocage embed scene/ --out scene.zarr",
        )
    settings = EmbedConfig(
        patch_size=options["patch_size"],
        window_px=options["window"],
        halo_px=options["halo"],
        block_px=options["block"],
        batch_size=options["batch_size"],
        output=options["output"],
        query_px=options["query"],
        codec=options["codec"],
        period=options["period"],
    )
    sources = options["source"]
    stack = open_stack(sources[0] if len(sources) == 1 else sources, **_input_options(options))
    if options["composite"]:
        from bocage.imagery import composite

        stack = composite(stack, period=options["composite"])
    weights = None if options["weights"] in {"random", "none"} else options["weights"]
    model = load_model(
        options["model"],
        weights=weights,
        device=options["device"],
        precision=options["precision"],
    )
    if weights is None:
        typer.secho(
            "RANDOM WEIGHTS: the map shows that everything works and means nothing yet.",
            fg="yellow",
            err=True,
        )
    if dry_run:
        plan = make_plan(stack, model, settings)
        typer.echo(plan.describe(time_window(plan, window_encoder(model, plan))))
        return
    request = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    result = embed_stack(
        stack,
        model,
        out=options["out"],
        config=settings,
        shard=shard,
        request=request,
        report=typer.echo,
        show_progress=True,
    )
    typer.echo(str(result))


def _input_options(options: dict[str, Any]) -> dict[str, Any]:
    from bocage.errors import ConfigError

    given = {name: options[name] for name in ("sensor", "date", "crs", "offset", "level")}
    found = {name: value for name, value in given.items() if value is not None}
    found["cloud_mask"] = options["cloud_mask"]
    if options["bands"]:
        found["bands"] = [b.strip() for b in options["bands"].split(",")]
    if options["scale"]:
        found["scale"] = options["scale"] if options["scale"] == "db" else _number(options["scale"])
    if options["bbox"]:
        parts = [_number(p) for p in options["bbox"].split(",")]
        if len(parts) != 4:
            raise ConfigError(
                got=f"--bbox {options['bbox']}",
                expected="four numbers: west,south,east,north in degrees",
                fix="use for example --bbox 36.7,-1.4,36.9,-1.2",
            )
        found["bbox"] = tuple(parts)
    return found


def _number(text: str) -> float:
    from bocage.errors import ConfigError

    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(got=repr(text), expected="a number", fix="check the option") from error


def _repeat(ctx: typer.Context, path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Options of an earlier run, under those that were typed now."""
    from bocage.mapping.record import read_request

    typed = {
        name: value
        for name, value in options.items()
        if str(getattr(ctx.get_parameter_source(name), "name", "")) == "COMMANDLINE"
    }
    return {**options, **read_request(path), **typed}
