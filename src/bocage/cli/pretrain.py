"""``bocage pretrain``: from samples to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bocage.cli.pretrain_data import build, convert, describe

pretrain = typer.Typer(
    help="Train the model family: build samples, train, export, compare choices.",
    no_args_is_help=True,
)


@pretrain.callback()
def _group() -> None:
    """Train the model family."""


for command in (build, convert, describe):
    pretrain.command()(command)


@pretrain.command()
def run(  # noqa: PLR0917 - typer makes options of defaults
    samples: Annotated[list[Path], typer.Argument(help="Stores, or official folders of samples.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an earlier one goes on.")],
    release: Annotated[str, typer.Option(help="v1, v1.1, v1.2 or v1.3.")] = "v1.2",
    size: Annotated[str, typer.Option(help="nano, tiny, small, base or large.")] = "nano",
    steps: Annotated[int, typer.Option(help="Updates in all; the schedule ends here.")] = 667_200,
    batch_size: Annotated[int, typer.Option(help="Samples per update, all processes.")] = 512,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Samples per forward; the release's by default.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="On every parameter.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps; a tenth, at most 8000.")] = None,
    ablation: Annotated[str, typer.Option(help="Named choice; see pretrain ablate.")] = "full",
    precision: Annotated[
        str, typer.Option(help="bf16 (autocast), fp32, or auto: bf16 where it is faster.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of weights, masks, drops.")] = 12536,
    data_seed: Annotated[int, typer.Option(help="Of order and crops.")] = 3622,
    flips: Annotated[
        bool | None, typer.Option(help="Flips and rotations; the release's by default.")
    ] = None,
    whiten: Annotated[
        bool, typer.Option(help="Start from decorrelated bands; helps short runs.")
    ] = False,
    max_bad_share: Annotated[
        float, typer.Option(help="More damaged samples than this share stop the run.")
    ] = 0.01,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    strategy: Annotated[str, typer.Option(help="auto, ddp or fsdp2 (under torchrun).")] = "auto",
    workers: Annotated[int, typer.Option(help="Loader workers.")] = 1,
    checkpoint_minutes: Annotated[float, typer.Option(help="Time between checkpoints.")] = 10.0,
    checkpoint_steps: Annotated[int | None, typer.Option(help="Steps between them.")] = None,
    keep: Annotated[int, typer.Option(help="Newest checkpoints that stay.")] = 2,
    evaluate: Annotated[
        list[Path] | None, typer.Option(help="Evaluation set (.npz or folder); repeatable.")
    ] = None,
    evaluate_steps: Annotated[int, typer.Option(help="Steps between scores.")] = 1000,
    stop_after: Annotated[int | None, typer.Option(help="Save and stop at this step.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Save and stop after this.")] = None,
    power: Annotated[float | None, typer.Option(help="Watts per process, if you know.")] = None,
    grid: Annotated[float, typer.Option(help="g CO2e per kWh of your electricity.")] = 473.0,
    export: Annotated[Path | None, typer.Option(help="Model folder to write at the end.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the recipe and stop.")] = False,
) -> None:
    """Train, or go on with, a model; the same command again resumes."""
    import json

    from bocage.errors import PartialError
    from bocage.pretrain.ablate import ablated_recipe
    from bocage.pretrain.energy import energy_table
    from bocage.pretrain.evaluation import read_evaluation_set
    from bocage.pretrain.export import export as write_model
    from bocage.pretrain.loop import pretrain as train
    from bocage.pretrain.run_options import RunOptions
    from bocage.pretrain.sources import open_samples

    recipe = ablated_recipe(
        ablation,
        release,
        size,
        steps=steps,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup_steps=warmup,
        precision=_precision(precision, device),
        seed=seed,
        data_seed=data_seed,
        flips=flips,
        whiten=whiten,
        max_bad_share=max_bad_share,
    )
    if dry_run:
        typer.echo(json.dumps(recipe.to_json(), indent=1))
        return
    options = RunOptions(
        device=device,
        strategy=strategy,
        workers=workers,
        checkpoint_minutes=checkpoint_minutes,
        checkpoint_steps=checkpoint_steps,
        keep=keep,
        evaluation_sets=tuple(read_evaluation_set(path) for path in evaluate or ()),
        evaluate_steps=evaluate_steps,
        stop_after=stop_after,
        max_minutes=max_minutes,
        power_w=power,
        grid_g_per_kwh=grid,
    )
    data = open_samples(samples[0] if len(samples) == 1 else samples)
    result = train(recipe, data, out, options=options)
    if not result.writes:
        return
    typer.echo(
        f"{out}: step {result.step} of {steps}, loss {result.loss:.4f}, "
        f"{result.steps_per_s:.2f} steps/s, {100 * result.loading_share:.1f} % waiting for data"
    )
    for name, value in result.scores.items():
        typer.echo(f"{name}: {100 * value:.1f} %")
    typer.echo(energy_table(result.energy))
    if not result.finished:
        raise PartialError(
            got=f"a run that was stopped at step {result.step}",
            expected=f"{steps} steps",
            fix="run the same command to go on",
        )
    if export is not None:
        _say(write_model(out, export))


@pretrain.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, also of one that goes on.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    format: Annotated[  # noqa: A002
        str, typer.Option(help="official (weights.pth), safetensors, or encoder.")
    ] = "official",
    dtype: Annotated[str, typer.Option(help="fp32, or fp16 (not for official).")] = "fp32",
    step: Annotated[int | None, typer.Option(help="Checkpoint; the newest by default.")] = None,
) -> None:
    """Write a checkpoint as a folder that bocage and the official package load."""
    from bocage.pretrain.export import export as write_model

    _say(write_model(run, out, format=format, dtype=dtype, step=step))


def _say(written: object) -> None:
    from bocage.pretrain.export import Exported
    from bocage.progress import format_bytes

    assert isinstance(written, Exported)
    typer.echo(
        f"{written.folder}: step {written.step}, {written.n_tensors} tensors, "
        f"{format_bytes(written.n_bytes)}; open with bocage.load_model({str(written.folder)!r})"
    )


@pretrain.command()
def ablate(  # noqa: PLR0917
    samples: Annotated[list[Path], typer.Argument(help="Stores, or official folders of samples.")],
    out: Annotated[Path, typer.Option(help="Folder; one run below it for each choice.")],
    evaluate: Annotated[list[Path], typer.Option(help="Evaluation set; repeatable.")],
    choices: Annotated[str, typer.Option(help="Comma-separated names, or all.")] = "all",
    release: Annotated[str, typer.Option(help="v1, v1.1, v1.2 or v1.3.")] = "v1.2",
    size: Annotated[str, typer.Option(help="nano, tiny, small, base or large.")] = "nano",
    steps: Annotated[int, typer.Option(help="Updates of each.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Samples per update.")] = 64,
    micro_batch_size: Annotated[int | None, typer.Option(help="Samples per forward.")] = None,
    precision: Annotated[
        str, typer.Option(help="bf16 (autocast), fp32, or auto: bf16 where it is faster.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of weights, masks, drops.")] = 12536,
    learning_rate: Annotated[float | None, typer.Option(help="Peak, for all choices.")] = None,
    whiten: Annotated[
        bool, typer.Option(help="Start from decorrelated bands; helps short runs.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Loader workers.")] = 1,
) -> None:
    """Train named choices at the same budget and print their scores beside the report's."""
    from bocage.pretrain.ablate import ABLATIONS, ablation_table
    from bocage.pretrain.ablate import ablate as run_all
    from bocage.pretrain.evaluation import read_evaluation_set
    from bocage.pretrain.run_options import RunOptions
    from bocage.pretrain.sources import open_samples

    sets = tuple(read_evaluation_set(path) for path in evaluate)
    rows = run_all(
        tuple(ABLATIONS) if choices == "all" else tuple(choices.split(",")),
        open_samples(samples[0] if len(samples) == 1 else samples),
        out,
        release=release,
        size=size,
        steps=steps,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        precision=_precision(precision, device),
        seed=seed,
        learning_rate=learning_rate,
        whiten=whiten,
        options=RunOptions(device=device, workers=workers, evaluation_sets=sets),
    )
    table = ablation_table(rows, sets)
    out.mkdir(parents=True, exist_ok=True)
    (out / "ablations.md").write_text(table + "\n")
    typer.echo(table)
    typer.echo(f"{out}: ablations.md and {len(rows)} runs")


def _precision(asked: str, device: str) -> str:
    """bf16 where it is faster: on a GPU, and on a CPU whose kernels train (docs/pretraining.md)."""
    if asked != "auto":
        return asked
    if device.startswith("cuda"):
        return "bf16"
    from bocage.models.training_kernels import why_unavailable

    return "bf16" if why_unavailable() is None else "fp32"
