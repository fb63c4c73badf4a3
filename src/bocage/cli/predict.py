"""``bocage predict``: a probe or a fine-tuned network over embeddings or imagery, to a map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_INPUT = "Input, for scenes"
_MODEL = "Model, for scenes"
_OUTPUT = "Output"


def predict(  # noqa: PLR0917 - one argument per option is how typer reads a command
    source: Annotated[
        list[str], typer.Argument(help="Embeddings (NAME.zarr, NAME.tif), or a scene to embed.")
    ],
    with_: Annotated[
        Path, typer.Option("--with", help="Folder of `bocage probe` or `bocage finetune`.")
    ],
    out: Annotated[Path, typer.Option(help="NAME.tif; sidecars lie beside it.")],
    years: Annotated[
        str | None, typer.Option(help="Of several, as 2024 or 2023,2024; all by default.")
    ] = None,
    probability: Annotated[
        bool, typer.Option(help="Also NAME.probability.tif.", rich_help_panel=_OUTPUT)
    ] = True,
    threshold: Annotated[
        float, typer.Option(help="Of the classes of a multi-label map.", rich_help_panel=_OUTPUT)
    ] = 0.5,
    polygons: Annotated[
        Path | None,
        typer.Option(help="Also NAME.gpkg, .geojson or .parquet.", rich_help_panel=_OUTPUT),
    ] = None,
    min_cells: Annotated[
        int, typer.Option(help="Smallest polygon, in cells.", rich_help_panel=_OUTPUT)
    ] = 1,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Random places of known class: areas get intervals.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    picture: Annotated[bool, typer.Option(help="Also NAME.png.", rich_help_panel=_OUTPUT)] = True,
    keep_embeddings: Annotated[
        bool,
        typer.Option("--keep-embeddings", help="Keep those of a scene.", rich_help_panel=_OUTPUT),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="The probe's by default.", rich_help_panel=_MODEL)
    ] = None,
    weights: Annotated[
        str,
        typer.Option(help="hub, a file or folder, or random.", rich_help_panel=_MODEL),
    ] = "hub",
    device: Annotated[str, typer.Option(help="cpu or cuda.", rich_help_panel=_MODEL)] = "cpu",
    precision: Annotated[
        str, typer.Option(help="auto, fp32, bf16 or int8.", rich_help_panel=_MODEL)
    ] = "fp32",
    window: Annotated[
        int | None, typer.Option(help="Pixels the model sees at once.", rich_help_panel=_MODEL)
    ] = None,
    halo: Annotated[
        int | None, typer.Option(help="Overlap of windows, pixels.", rich_help_panel=_MODEL)
    ] = None,
    period: Annotated[
        str, typer.Option(help="all dates as one, or one map per year.", rich_help_panel=_MODEL)
    ] = "all",
    sensor: Annotated[
        str | None, typer.Option(help="If names do not tell.", rich_help_panel=_INPUT)
    ] = None,
    bands: Annotated[
        str | None, typer.Option(help="Band names in file order.", rich_help_panel=_INPUT)
    ] = None,
    date: Annotated[
        str | None, typer.Option(help="If files do not say: 2024-07-01.", rich_help_panel=_INPUT)
    ] = None,
    dates: Annotated[
        str | None, typer.Option(help="Keep 2024-04-01/2024-09-30.", rich_help_panel=_INPUT)
    ] = None,
    bbox: Annotated[
        str | None, typer.Option(help="west,south,east,north, degrees.", rich_help_panel=_INPUT)
    ] = None,
    crs: Annotated[
        str | None, typer.Option(help="utm or EPSG:n to reproject.", rich_help_panel=_INPUT)
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Multiply by: 10000, db.", rich_help_panel=_INPUT)
    ] = None,
    offset: Annotated[str | None, typer.Option(help="Add.", rich_help_panel=_INPUT)] = None,
    level: Annotated[
        str | None, typer.Option(help="L1C or L2A, if known.", rich_help_panel=_INPUT)
    ] = None,
    cloud_mask: Annotated[
        bool, typer.Option(help="Use SCL or QA_PIXEL if present.", rich_help_panel=_INPUT)
    ] = True,
    composite: Annotated[
        str | None, typer.Option(help="month, year or 30d.", rich_help_panel=_INPUT)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
) -> None:
    """Map what a probe or a fine-tuned network learned; run again after a crash to go on."""
    options = dict(locals())
    from bocage.learn.predict import PredictConfig, describe, is_embeddings
    from bocage.learn.predict import predict as make_map

    windows = {"window_px": window, "halo_px": halo, "period": period}
    config = PredictConfig(
        years=_years(years),
        probability=probability,
        threshold=threshold,
        polygons=polygons,
        min_cells=min_cells,
        reference=reference,
        picture=picture,
        keep_embeddings=keep_embeddings,
        embed={k: v for k, v in windows.items() if v is not None},
    )
    request = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    network: Any = None
    imagery: Any = source[0]
    if len(source) > 1 or not is_embeddings(source[0], with_):
        imagery, network = _open(options)
        if dry_run:
            _plan_scene(imagery, network, with_, config)
            return
    elif dry_run:
        typer.echo(describe(source[0], with_, out=out, config=config))
        return
    result = make_map(
        imagery,
        with_,
        out=out,
        model=network,
        config=config,
        request=request,
        report=typer.echo,
        show_progress=True,
    )
    typer.echo(str(result))


def _years(text: str | None) -> tuple[int, ...] | None:
    from bocage.errors import ConfigError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            got=f"--years {text}",
            expected="years such as 2024 or 2023,2024",
            fix="see the years with `bocage info`",
        ) from error


def _open(options: dict[str, Any]) -> tuple[Any, Any]:
    """The stack, and the model that a probe needs (None for a fine-tuned network)."""
    from bocage.cli.embed import input_options
    from bocage.errors import ConfigError
    from bocage.imagery import open_stack
    from bocage.learn.predict.predictor import load_predictor

    sources = options["source"]
    unset = {"catalog": None, "collections": None, "max_cloud": None}
    stack = open_stack(
        sources[0] if len(sources) == 1 else sources, **input_options({**options, **unset})
    )
    if options["composite"]:
        from bocage.imagery import composite

        stack = composite(stack, period=options["composite"])
    known = load_predictor(options["with_"])
    if known.kind == "finetuned":
        return stack, None
    from bocage.models import load_model

    name = options["model"] or known.fitted_on.get("model")
    if not name:
        raise ConfigError(
            got=f"the probe {known.name}, which does not say its model",
            expected="the model that made its embeddings",
            fix="pass --model, for example --model olmoearth-v1.2-nano",
        )
    random = options["weights"] in {"random", "none"}
    model = load_model(
        name,
        weights=None if random else options["weights"],
        device=options["device"],
        precision=options["precision"],
    )
    return stack, model


def _plan_scene(stack: Any, network: Any, with_: Path, config: Any) -> None:
    from bocage.learn.predict.prediction import embed_options
    from bocage.learn.predict.predictor import load_predictor
    from bocage.mapping import EmbedConfig, make_plan, time_window, window_encoder

    known = load_predictor(with_)
    model = network if network is not None else known.scorer
    plan = make_plan(stack, model, EmbedConfig(**embed_options(known, config)))
    typer.echo(plan.describe(time_window(plan, window_encoder(model, plan))))
    typer.echo(f"with     {known.name}: {known.task}, {', '.join(known.outputs[:8])}")
