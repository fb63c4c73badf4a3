"""``bocage finetune``: labelled crops, or a scene and labels, to a network for maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bocage.cli.imagery_options import ImageryOptions, with_imagery

_DATA = "From a scene and labels"
_NETWORK = "Network"
_TRAINING = "Training"


@with_imagery
def finetune(  # noqa: PLR0917 - one argument per option is how typer reads a command
    source: Annotated[str, typer.Argument(help="A training set, or a scene to cut crops from.")],
    labels: Annotated[
        list[Path] | None,
        typer.Argument(help="For a scene: GeoPackage, GeoJSON, GeoParquet, or one raster mask."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the network and its record.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Keep the crops of a scene in this folder.", rich_help_panel=_DATA),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column of the labels.", rich_help_panel=_DATA)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="classification, segmentation, regression.", rich_help_panel=_DATA),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Class table: value, name, color.", rich_help_panel=_DATA),
    ] = None,
    crop: Annotated[int, typer.Option(help="Side of a crop, pixels.", rich_help_panel=_DATA)] = 32,
    split: Annotated[
        str, typer.Option(help="spatial or random.", rich_help_panel=_DATA)
    ] = "spatial",
    model: Annotated[
        str,
        typer.Option(
            help="See `bocage models`; a folder; timm:NAME, smp:Unet/resnet18.",
            rich_help_panel=_NETWORK,
        ),
    ] = "olmoearth-v1.2-nano",
    weights: Annotated[
        str,
        typer.Option(help="hub, a file or folder, or random.", rich_help_panel=_NETWORK),
    ] = "hub",
    new_head: Annotated[
        bool,
        typer.Option("--new-head", help="Only the encoder of a folder.", rich_help_panel=_NETWORK),
    ] = False,
    head: Annotated[str, typer.Option(help="linear or unet.", rich_help_panel=_NETWORK)] = "linear",
    features: Annotated[
        str, typer.Option(help="auto, pooled, locations.", rich_help_panel=_NETWORK)
    ] = "auto",
    patch_size: Annotated[
        int, typer.Option(help="Pixels per patch, 1 to 8.", rich_help_panel=_NETWORK)
    ] = 4,
    normalization: Annotated[
        str, typer.Option(help="pretraining or dataset.", rich_help_panel=_NETWORK)
    ] = "pretraining",
    recipe: Annotated[
        str,
        typer.Option(help="frozen-start, layer-decay or plain.", rich_help_panel=_TRAINING),
    ] = "frozen-start",
    epochs: Annotated[int, typer.Option(help="How many.", rich_help_panel=_TRAINING)] = 50,
    batch_size: Annotated[
        int, typer.Option(help="Crops per forward and process.", rich_help_panel=_TRAINING)
    ] = 16,
    accumulate: Annotated[
        int, typer.Option(help="Forwards per step.", rich_help_panel=_TRAINING)
    ] = 1,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate.", rich_help_panel=_TRAINING)
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(help="auto, plateau, cosine, constant.", rich_help_panel=_TRAINING),
    ] = "auto",
    class_weights: Annotated[
        str,
        typer.Option(help="none, balanced, or one per class: 1,5,2.", rich_help_panel=_TRAINING),
    ] = "none",
    flips: Annotated[
        bool, typer.Option(help="Turn and mirror crops.", rich_help_panel=_TRAINING)
    ] = True,
    drop_timesteps: Annotated[
        float, typer.Option(help="Chance to hide a date.", rich_help_panel=_TRAINING)
    ] = 0.0,
    drop_bands: Annotated[
        float, typer.Option(help="Chance to hide a band.", rich_help_panel=_TRAINING)
    ] = 0.0,
    precision: Annotated[
        str, typer.Option(help="auto, fp32 or bf16.", rich_help_panel=_TRAINING)
    ] = "auto",
    metric: Annotated[
        str, typer.Option(help="Score of the best epoch.", rich_help_panel=_TRAINING)
    ] = "auto",
    seed: Annotated[
        int, typer.Option(help="Of all that is drawn.", rich_help_panel=_TRAINING)
    ] = 42,
    device: Annotated[str, typer.Option(help="cpu or cuda.", rich_help_panel=_TRAINING)] = "cpu",
    imagery: ImageryOptions = ImageryOptions(),  # noqa: B008 - replaced by its options
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
) -> None:
    """Train an encoder and a head on labels; run again after a crash to go on."""
    options = {**locals(), **imagery.as_dict()}
    del options["imagery"]
    from bocage.errors import ConfigError
    from bocage.learn.finetune import FinetuneConfig
    from bocage.learn.finetune import finetune as train
    from bocage.learn.finetune.plan import plan_finetune

    if out is None and not dry_run:
        raise ConfigError(
            got="no --out",
            expected="a folder to write the network to",
            fix="try: bocage finetune crops/ --out network/",
        )
    names = FinetuneConfig.__dataclass_fields__
    settings: dict[str, Any] = {k: v for k, v in options.items() if k in names}
    config = FinetuneConfig(**{**settings, "class_weights": _weights(class_weights)})
    crops = _crops(options)
    begin, chosen = _model(model, weights, new_head=new_head)
    if chosen is None:
        typer.secho(
            "RANDOM WEIGHTS: this trains from nothing; published weights learn from fewer labels.",
            fg="yellow",
            err=True,
        )
    if out is None or dry_run:
        plan = plan_finetune(crops, begin, config=config, weights=chosen, device=device)
        typer.echo(plan)
        return
    request = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    result = train(
        crops,
        begin,
        out=out,
        config=config,
        weights=chosen,
        device=device,
        show_progress=True,
        report=typer.echo,
        request={k: [str(p) for p in v] if isinstance(v, list) else v for k, v in request.items()},
    )
    if _rank() == 0:
        typer.echo(str(result))


def _crops(options: dict[str, Any]) -> Any:
    """The training set of a folder, or one cut from a scene (once, if it is kept)."""
    from bocage.errors import ConfigError
    from bocage.learn.finetune import open_training_set, write_training_set
    from bocage.learn.finetune.set_folder import SET_FILE

    imagery, kept = ImageryOptions.of(options), options["data"]
    source, labels = imagery.source_and_labels(options["source"], options["labels"])
    if source is not None and not labels:
        if not (Path(source) / SET_FILE).exists():
            raise ConfigError(
                got=f"{source} without labels, which holds no training set",
                expected=f"a folder with {SET_FILE}, or a scene and labels",
                fix="try: bocage finetune scene/ labels.gpkg --out network/",
            )
        imagery.check_unused(
            f"the training set {source}", fix="leave them out: its crops are cut already"
        )
        return open_training_set(source)
    if kept is not None and (kept / SET_FILE).exists():
        raise ConfigError(
            got=f"{kept}, which holds a training set already",
            expected="a new folder for --data",
            fix=f"train on it with: bocage finetune {kept}",
        )
    from bocage.learn.finetune.crop_scene import crop_scene
    from bocage.learn.source import read_any_labels

    wanted = options["task"]
    known = read_any_labels(
        labels,
        column=options["label"],
        task={"segmentation": "classification"}.get(wanted, wanted),
        classes=options["classes"],
    )
    typer.echo(known.describe())
    crops = crop_scene(
        imagery.open([] if source is None else [source]),
        known,
        task=wanted,
        crop_px=options["crop"],
        split=options["split"],
        seed=options["seed"],
    )
    if kept is not None and _rank() == 0:
        write_training_set(kept, crops)
        typer.echo(f"wrote    {kept}: {len(crops)} crops")
    return crops


def _model(model: str, weights: str, *, new_head: bool) -> tuple[Any, str | None]:
    """What to begin with, and its weights."""
    chosen = None if weights in {"random", "none"} else weights
    if not new_head:
        return model, chosen
    from bocage.models import load_model

    return load_model(model, weights=chosen, compile=False), chosen


def _weights(text: str) -> str | tuple[float, ...]:
    from bocage.errors import ConfigError

    if text in {"none", "balanced"}:
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            got=f"--class-weights {text}",
            expected="none, balanced, or numbers such as 1,5,2",
            fix="use --class-weights balanced",
        ) from error


def _rank() -> int:
    import os

    return int(os.environ.get("RANK", "0"))
