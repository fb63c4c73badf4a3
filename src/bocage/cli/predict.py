"""``bocage predict``: a probe or a fine-tuned network over embeddings or imagery, to a map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bocage.cli.imagery_options import ImageryOptions, with_imagery
from bocage.cli.years import parse_years

_MODEL = "Model, for scenes"
_OUTPUT = "Output"


@with_imagery
def predict(  # noqa: PLR0917 - one argument per option is how typer reads a command
    with_: Annotated[
        Path, typer.Option("--with", help="Folder of `bocage probe` or `bocage finetune`.")
    ],
    out: Annotated[Path, typer.Option(help="NAME.tif; sidecars lie beside it.")],
    source: Annotated[
        list[str] | None,
        typer.Argument(help="Embeddings (NAME.zarr, NAME.tif), or a scene to embed."),
    ] = None,
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
    reference_label: Annotated[
        str | None,
        typer.Option(help="Their column; that of the probe's labels.", rich_help_panel=_OUTPUT),
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
    imagery: ImageryOptions = ImageryOptions(),  # noqa: B008 - replaced by its options
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
) -> None:
    """Map what a probe or a fine-tuned network learned; run again after a crash to go on."""
    options = {**locals(), **imagery.as_dict()}
    del options["imagery"]
    from bocage.errors import ConfigError

    options["source"] = source = source or []
    if not (source or imagery.catalog):
        raise ConfigError(
            got="no SOURCE and no --catalog",
            expected="embeddings, or a scene to embed",
            fix="try: bocage predict scene.zarr --with probe/ --out map.tif",
        )

    from bocage.learn.predict import PredictConfig, describe, is_embeddings
    from bocage.learn.predict import predict as make_map

    windows = {"window_px": window, "halo_px": halo, "period": period}
    config = PredictConfig(
        years=parse_years(years),
        probability=probability,
        threshold=threshold,
        polygons=polygons,
        min_cells=min_cells,
        reference=reference,
        reference_label=reference_label,
        picture=picture,
        keep_embeddings=keep_embeddings,
        embed={k: v for k, v in windows.items() if v is not None},
    )
    request = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    network: Any = None
    subject: Any = source[0] if len(source) == 1 else None
    if subject is None or not is_embeddings(subject, with_):
        subject, network = _open(options)
        if dry_run:
            _plan_scene(subject, network, with_, config)
            return
    else:
        imagery.check_unused(f"the embeddings {subject}", fix="leave them out")
        _check_unused(subject, options)
    if dry_run:
        typer.echo(describe(subject, with_, out=out, config=config))
        return
    result = make_map(
        subject,
        with_,
        out=out,
        model=network,
        config=config,
        request=request,
        report=typer.echo,
        show_progress=True,
    )
    typer.echo(str(result))


def _open(options: dict[str, Any]) -> tuple[Any, Any]:
    """The stack, and the model that a probe needs (None for a fine-tuned network)."""
    from bocage.errors import ConfigError
    from bocage.learn.predict.predictor import load_predictor

    stack = ImageryOptions.of(options).open(options["source"])
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


_OF_SCENES = {
    "model": None,
    "weights": "hub",
    "device": "cpu",
    "precision": "fp32",
    "window": None,
    "halo": None,
    "period": "all",
    "keep_embeddings": False,
}
"""Options that only a scene looks at, with their defaults."""


def _check_unused(source: str, options: dict[str, Any]) -> None:
    from bocage.errors import ConfigError

    unused = [name for name, default in _OF_SCENES.items() if options[name] != default]
    if unused:
        raise ConfigError(
            got="--" + " and --".join(unused).replace("_", "-") + f" with the embeddings {source}",
            expected="options of the model only where a scene is embedded",
            fix="leave them out",
        )


def _plan_scene(stack: Any, network: Any, with_: Path, config: Any) -> None:
    from bocage.learn.predict.prediction import embed_options
    from bocage.learn.predict.predictor import load_predictor
    from bocage.mapping import EmbedConfig, make_plan, time_window, window_encoder

    known = load_predictor(with_)
    model = network if network is not None else known.scorer
    plan = make_plan(stack, model, EmbedConfig(**embed_options(known, config)))
    typer.echo(plan.describe(time_window(plan, window_encoder(model, plan))))
    typer.echo(f"with     {known.name}: {known.task}, {', '.join(known.outputs[:8])}")
