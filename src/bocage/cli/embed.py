"""``bocage embed``: imagery in, a map of embeddings out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bocage.cli.imagery_options import ImageryOptions, with_imagery

DEFAULT_MODEL = "olmoearth-v1.2-nano"

_MODEL = "Model"
_RUN = "Run"


@with_imagery
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
    imagery: ImageryOptions = ImageryOptions(),  # noqa: B008 - replaced by its options
    codec: Annotated[
        str, typer.Option(help="signed_power (int8) or float32.", rich_help_panel=_RUN)
    ] = "signed_power",
    period: Annotated[
        str, typer.Option(help="all dates as one, or one per year.", rich_help_panel=_RUN)
    ] = "all",
    window: Annotated[
        int | None, typer.Option(help="Pixels the model sees at once.", rich_help_panel=_RUN)
    ] = None,
    seam_free: Annotated[
        bool,
        typer.Option("--seam-free", help="A window per token (v1.2, v1.3).", rich_help_panel=_RUN),
    ] = False,
    halo: Annotated[
        int | None,
        typer.Option(
            help="Overlap of windows, which fade into each other, pixels.", rich_help_panel=_RUN
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(help="Unit of writing and resume, pixels.", rich_help_panel=_RUN),
    ] = None,
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
    options = {**locals(), **imagery.as_dict()}
    for name in ("ctx", "config", "dry_run", "shard", "imagery"):
        del options[name]
    if config is not None:
        options = _repeat(ctx, config, options)
    run(options, shard=shard, dry_run=dry_run)


def run(options: dict[str, Any], *, shard: str | None = None, dry_run: bool = False) -> None:
    """Open, load, embed and print; ``options`` are the command's own, by name."""
    from bocage.errors import ConfigError
    from bocage.mapping import EmbedConfig, check_request, make_plan, time_window, window_encoder
    from bocage.mapping import embed as embed_stack
    from bocage.models import load_model

    sources = options["source"] or []
    if not (sources or options["catalog"]) or (options["out"] is None and not dry_run):
        raise ConfigError(
            got="no " + ("--out" if sources or options["catalog"] else "SOURCE and no --catalog"),
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
        seam_free=options["seam_free"],
        codec=options["codec"],
        period=options["period"],
    )
    if options["out"] is not None:
        check_request(Path(options["out"]), shard)
    stack = ImageryOptions.of(options).open(sources)
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
    typer.echo(f"{model.name}: {model.description}")
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


def _repeat(ctx: typer.Context, path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Options of an earlier run, under those that were typed now."""
    from bocage.mapping.record import read_request

    typed = {
        name: value
        for name, value in options.items()
        if str(getattr(ctx.get_parameter_source(name), "name", "")) == "COMMANDLINE"
    }
    return {**options, **read_request(path), **typed}
