"""``bocage pretrain build | convert | describe``: imagery to samples to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bocage.cli.imagery_options import PANEL, ImageryOptions, with_imagery


@with_imagery
def build(  # noqa: PLR0917 - one argument per option is how typer reads a command
    source: Annotated[list[str], typer.Argument(help="Folders or files of imagery.")],
    out: Annotated[Path, typer.Option(help="Store to write, NAME.zarr.")],
    size: Annotated[int, typer.Option(help="Side of a sample, pixels.")] = 128,
    stride: Annotated[
        int | None, typer.Option(help="Distance of windows; edge to edge by default.")
    ] = None,
    min_valid: Annotated[float, typer.Option(help="Share of pixels a timestep must have.")] = 0.9,
    max_steps: Annotated[int, typer.Option(help="Timesteps of a sample, up to 12.")] = 12,
    fill_bands: Annotated[
        bool, typer.Option("--fill-bands", help="Copy missing bands from the nearest.")
    ] = False,
    each: Annotated[
        bool,
        typer.Option("--each", help="Every file is a place of its own.", rich_help_panel=PANEL),
    ] = False,
    imagery: ImageryOptions = ImageryOptions(),  # noqa: B008 - replaced by its options
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map", help="worldcover=FILE, srtm=FILE, ...; repeatable.", rich_help_panel=PANEL
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the windows only.")] = False,
) -> None:
    """Cut imagery into samples for pretraining; run it again after a stop and it goes on."""
    from bocage.pretrain.build import build_samples
    from bocage.pretrain.build_config import BuildConfig

    config = BuildConfig(
        size_px=size,
        stride_px=stride,
        min_valid_share=min_valid,
        max_steps=max_steps,
        fill_bands=fill_bands,
        each=each,
        composite=imagery.composite,
        maps=_maps(map_ or []),
        open_options=imagery.open_options(),
    )
    report = build_samples(source, out, config, dry_run=dry_run, show_progress=True)
    typer.echo(str(report))
    if not dry_run:
        _say_written(out)


def convert(
    source: Annotated[Path, typer.Argument(help="Folder with sample_metadata.csv.")],
    out: Annotated[Path, typer.Option(help="Store to write, NAME.zarr.")],
    float32: Annotated[
        str | None, typer.Option(help="Modalities to keep as real numbers: srtm,...")
    ] = None,
    max_bad_share: Annotated[
        float, typer.Option(help="Share of damaged samples before it stops.")
    ] = 0.01,
) -> None:
    """Turn official H5 samples into a store whose crops read fast; goes on after a stop."""
    from bocage.pretrain.convert import convert_samples

    names = tuple(float32.split(",")) if float32 else ()
    report = convert_samples(
        source, out, float32=names, max_bad_share=max_bad_share, show_progress=True
    )
    typer.echo(str(report))
    _say_written(out)


def describe(
    source: Annotated[Path, typer.Argument(help="A store, or a folder of official samples.")],
) -> None:
    """Say what a collection of samples holds."""
    from bocage.pretrain.describe import describe_samples

    typer.echo(describe_samples(source))


def _maps(texts: list[str]) -> dict[str, str]:
    """Modality and file of each --map."""
    from bocage.errors import ConfigError

    pairs = [text.partition("=") for text in texts]
    for text, (_, sign, path) in zip(texts, pairs, strict=True):
        if not sign or not path:
            raise ConfigError(
                got=f"--map {text}", expected="worldcover=FILE and the like", fix="name the map"
            )
    return {name.strip(): path.strip() for name, _, path in pairs}


def _say_written(out: Path) -> None:
    from bocage.progress import format_bytes, size_on_disk

    typer.echo(f"{out} ({format_bytes(size_on_disk(out))}); see it with")
    typer.echo(f"  bocage pretrain describe {out}")
