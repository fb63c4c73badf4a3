"""``bocage probe``: labels and embeddings in, a probe and an honest report out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bocage.cli.imagery_options import ImageryOptions, with_imagery

_LABELS = "Labels"
_FOLDS = "Scores"
_SCENE = "Model, for scenes"


@with_imagery
def probe(
    source: Annotated[str, typer.Argument(help="Embeddings (.zarr, .tif), or a scene.")],
    labels: Annotated[
        list[Path] | None,
        typer.Argument(help="GeoPackage, GeoJSON, GeoParquet, CSV, or one raster mask."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for the probe and its report.")],
    label: Annotated[
        str | None,
        typer.Option(help="Column; a,b,c for labels that hold together.", rich_help_panel=_LABELS),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="classification, multilabel, regression.", rich_help_panel=_LABELS),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Class table: value, name, color.", rich_help_panel=_LABELS),
    ] = None,
    date_column: Annotated[
        str | None, typer.Option(help="Column of years or dates.", rich_help_panel=_LABELS)
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer of the file.", rich_help_panel=_LABELS)
    ] = None,
    year: Annotated[
        int | None, typer.Option(help="Year of the embeddings.", rich_help_panel=_LABELS)
    ] = None,
    min_share: Annotated[
        float | None,
        typer.Option(
            help="Cells that a polygon covers by this share, 0 to 1.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    max_samples: Annotated[
        int, typer.Option(help="Draw at most so many cells.", rich_help_panel=_LABELS)
    ] = 1_000_000,
    method: Annotated[
        str | None,
        typer.Option(help="logistic, ridge, adamw, knn, knn5, forest, mlp; the first is kept."),
    ] = None,
    balanced: Annotated[bool, typer.Option(help="Classes weigh the same.")] = False,
    folds: Annotated[
        str,
        typer.Option(
            help="spatial, random, group, time, leave_one_block_out.", rich_help_panel=_FOLDS
        ),
    ] = "spatial",
    n_folds: Annotated[int, typer.Option(help="How many.", rich_help_panel=_FOLDS)] = 5,
    block_m: Annotated[
        float | None,
        typer.Option(
            help="Side of the blocks, meters; measured if left out.", rich_help_panel=_FOLDS
        ),
    ] = None,
    buffer_m: Annotated[
        float | None, typer.Option(help="Gap around test samples, meters.", rich_help_panel=_FOLDS)
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            help="The imagery of embeddings, to score its bands too.", rich_help_panel=_FOLDS
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.", rich_help_panel=_FOLDS)] = 0,
    model: Annotated[
        str | None, typer.Option(help="See `bocage models`.", rich_help_panel=_SCENE)
    ] = None,
    weights: Annotated[
        str, typer.Option(help="hub, a file or folder, or random.", rich_help_panel=_SCENE)
    ] = "hub",
    patch_size: Annotated[
        int, typer.Option(help="Pixels per cell, 1 to 8.", rich_help_panel=_SCENE)
    ] = 4,
    imagery: ImageryOptions = ImageryOptions(),  # noqa: B008 - replaced by its options
) -> None:
    """Learn classes or numbers from labelled places, and say how good that is."""
    from bocage.errors import ConfigError
    from bocage.learn.examine import ProbeConfig, fit_probe
    from bocage.learn.source import UNNAMED, embeddings_at, open_source, read_any_labels

    scene, files = imagery.source_and_labels(source, labels)
    if not files:
        raise ConfigError(
            got=f"{source} without labels",
            expected="a map or a scene, and a file of labelled places",
            fix="try: bocage probe scene.zarr labels.gpkg --out probe/",
        )
    if out.exists() and not out.is_dir():
        raise ConfigError(
            got=f"--out {out}, which is a file",
            expected="a folder for the probe and its report",
            fix=f"use --out {out.with_suffix('')}-probe",
        )
    if beside is None and imagery.bands is not None and Path(imagery.bands).exists():
        # Until --bands came to name bands, as everywhere, it named the scene.
        beside, imagery = imagery.bands, replace(imagery, bands=None)
    if (
        imagery.given()
        and beside is None
        and model is None
        and scene is not None
        and embeddings_at(scene, dims=UNNAMED) is not None
    ):
        imagery.check_unused(
            f"the embeddings {scene}", fix="name the imagery with --beside, or leave them out"
        )
    config = ProbeConfig(
        methods=tuple(method.split(",")) if method else (),
        folds=folds,  # type: ignore[arg-type]  # make_folds names the kinds there are
        n_folds=n_folds,
        block_m=block_m,
        buffer_m=buffer_m,
        balanced=balanced,
        seed=seed,
    )
    known = read_any_labels(
        files,
        column=_columns(label),
        task=task,
        classes=classes,
        date_column=date_column,
        layer=layer,
        year=year,
    )
    typer.echo(known.describe())
    opened = open_source(
        scene,
        beside=beside,
        store=out / "embeddings.zarr",
        model=model,
        weights=weights,
        patch_size=patch_size,
        open_imagery=imagery.open,
        say=typer.echo,
    )
    fitted, report = fit_probe(
        known,
        opened.embeddings,
        stack=opened.stack,
        config=config,
        year=year,
        min_share=min_share,
        max_samples=max_samples,
    )
    fitted.save(out)
    written = report.write(out)
    typer.echo(report.markdown())
    typer.echo(f"wrote    {out}: probe.json, arrays.npz, {', '.join(p.name for p in written)}")
    typer.echo(
        f"open     bocage.learn.load_probe({str(out)!r})   or: bocage predict MAP --with {out}"
    )


def _columns(label: str | None) -> Any:
    if label is None:
        return None
    names = [part.strip() for part in label.split(",")]
    return names[0] if len(names) == 1 else names
