"""``bocage bench``: how fast encoders run on this machine, with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(
    help="Measure how fast encoders run here; a result that differs from the official one is not "
    "reported.",
    no_args_is_help=True,
)


@bench.callback()
def _group() -> None:
    """Measure how fast encoders run here."""


@bench.command()
def encoder(  # noqa: PLR0917 - typer makes options of defaults
    models: Annotated[list[str], typer.Argument(help="Names of models; see bocage models.")],
    out: Annotated[Path, typer.Option(help="CSV to write; the machine goes beside it.")] = Path(
        "encoder.csv"
    ),
    size: Annotated[list[int], typer.Option(help="Side of a crop in pixels.")] = [128],  # noqa: B006
    times: Annotated[list[int], typer.Option(help="Timesteps, one per size.")] = [1],  # noqa: B006
    patch_size: Annotated[list[int], typer.Option(help="One per size.")] = [8],  # noqa: B006
    sensors: Annotated[str, typer.Option(help="Comma-separated.")] = "sentinel2_l2a",
    precision: Annotated[str, typer.Option(help="Of fp32, bf16, int8.")] = "fp32,bf16",
    batch: Annotated[str, typer.Option(help="Comma-separated batch sizes.")] = "1,8",
    plain: Annotated[bool, typer.Option(help="Time the plain encoder too.")] = False,
    peer: Annotated[bool, typer.Option(help="Time the official package in turn.")] = True,
    repeats: Annotated[int, typer.Option(help="Timed forwards of each way, at least.")] = 5,
    seconds: Annotated[float, typer.Option(help="Time for each comparison, at least.")] = 1.0,
    gsd: Annotated[float, typer.Option(help="Ground resolution in metres.")] = 10.0,
    scene: Annotated[str | None, typer.Option(help="Sentinel-2 raster or folder.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    protocol: Annotated[
        str | None,
        typer.Option(help="throughputbench: batch 512, 20 warm-ups, 30 s, published columns."),
    ] = None,
) -> None:
    """Compare ways of running encoders: images and km2 per second, share of the matmul peak."""
    from bocage import bench as room
    from bocage.errors import ConfigError

    if not len(size) == len(times) == len(patch_size):
        raise ConfigError(
            got=f"{len(size)} sizes, {len(times)} times, {len(patch_size)} patch sizes",
            expected="as many of each",
            fix="repeat --size, --times and --patch-size together",
        )
    if protocol not in (None, "throughputbench"):
        raise ConfigError(
            got=f"protocol {protocol!r}", expected="throughputbench", fix="correct --protocol"
        )
    names = tuple(sensors.split(","))
    shapes = tuple(
        room.Shape(sensors=names, size_px=s, times=t, patch_size=p)
        for s, t, p in zip(size, times, patch_size, strict=True)
    )
    precisions = tuple(precision.split(","))
    if protocol is None:
        rows = list(
            room.run_encoder_benchmark(
                room.EncoderBenchmark(
                    models=tuple(models),
                    shapes=shapes,
                    precisions=precisions,
                    compile=(True, False) if plain else (True,),
                    batch_sizes=tuple(int(b) for b in batch.split(",")),
                    peer=peer,
                    repeats=repeats,
                    seconds=seconds,
                    gsd_m=gsd,
                    device=device,
                    scene=scene,
                )
            )
        )
        typer.echo(room.format_rows(rows))
    else:
        job = room.ThroughputBench(
            models=tuple(models), precisions=precisions, device=device, gsd_m=gsd, shape=shapes[0]
        )
        rows = []
        for row in room.run_throughputbench(job):
            rows.append(row)
            typer.echo(
                f"{row['model_name']:32} {row['precision']} {row['compile_mode']:8} "
                f"{row['throughput_mean']:10.1f} images/s  {row['gate']}"
            )
    n_rows = room.write_table(out, rows, room.describe_machine(device))
    typer.echo(f"wrote {n_rows} rows to {out}")


@bench.command()
def scene(  # noqa: PLR0917
    source: Annotated[str, typer.Argument(help="A Sentinel-2 raster or folder.")],
    model: Annotated[str, typer.Option(help="Name of a model.")] = "olmoearth-v1.2-nano",
    weights: Annotated[str, typer.Option(help="hub, a path, or random.")] = "random",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or int8.")] = "auto",
    patch_size: Annotated[int, typer.Option(help="Pixels a side.")] = 8,
    date: Annotated[
        str | None, typer.Option(help="Day of the scene, if its name lacks it.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Times, after one that does not count.")] = 5,
    out: Annotated[Path, typer.Option(help="CSV to write.")] = Path("scene.csv"),
) -> None:
    """Time a whole map, from opening to writing, beside the model alone."""
    from bocage import bench as room

    row = room.run_scene_benchmark(
        source,
        model,
        weights=None if weights == "random" else weights,
        precision=precision,
        patch_size=patch_size,
        date=date,
        repeats=repeats,
        report=typer.echo,
    )
    for key, value in row.items():
        typer.echo(f"{key:15} {value:.3f}" if isinstance(value, float) else f"{key:15} {value}")
    room.write_table(out, [row], room.describe_machine("cpu"))
    typer.echo(f"wrote 1 row to {out}")
