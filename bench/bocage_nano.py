"""Train `bocage-nano`, the small model of the package, and export it.

    python bench/bocage_nano.py build DATA samples.zarr
    python bench/bocage_nano.py train samples.zarr run/ --minutes 60
    python bench/bocage_nano.py ship run/ src/bocage/models/weights/bocage-nano
    python bench/bocage_nano_score.py DATA                  # beside random weights, bands, PCA

DATA is the folder of real imagery described in docs/pretraining.md. EuroSAT, Slovenia and
WorldCereal are never read by `build`.
"""

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path

from bocage.errors import BocageWarning

SENSOR = "sentinel2_l2a"
ASCENDING = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
INDIA = ["B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"]
STEPS = 5000


def build(data: Path, out: Path) -> None:
    import xarray as xr

    import bocage
    from bocage.mapping.demo import scene_folder
    from bocage.pretrain.build import build_samples
    from bocage.pretrain.build_config import BuildConfig

    def opened(path, bands, date, **options):
        return bocage.open_stack(path, sensor=SENSOR, bands=bands, date=date, **options)

    def save(name, stacks, stride):
        config = BuildConfig(size_px=128, stride_px=stride)
        print(name, build_samples(stacks, out / f"{name}.zarr", config, show_progress=True))

    warnings.simplefilter("ignore", BocageWarning)
    out.mkdir(parents=True, exist_ok=True)
    india = []
    for path in sorted((data / "s2_india_2024_2025").glob("*/2024/*.tif")):
        # Annual composites: the middle of the year stands for each.
        years = [
            opened(Path(str(path).replace("/2024/", f"/{year}/")), INDIA, f"{year}-07-01")
            for year in (2024, 2025)
        ]
        india.append(xr.concat(years, "time", combine_attrs="override"))
    save("india", india, 64)
    world = []
    for path in sorted((data / "s2_100k_sample").rglob("*.tif")):
        stack = opened(path, ASCENDING, "2021-07-01", offset=0)
        values = stack[SENSOR]
        # Baseline 04.00 adds 1000 to every number. Dates are unknown, so the pixels must tell:
        # the darkest band of a scene reaches below 1000 without it.
        if float(values.quantile(0.005)) > 1000:
            stack[SENSOR] = (values - 1000).clip(min=1)
            print("offset taken off", path.name)
        world.append(stack)
    save("world", world, 64)
    scene = bocage.open_stack(scene_folder(), date="2017-07-01", level="L1C")
    save("scene", [scene], 128)


def recipe_options(steps: int) -> dict:
    """What differs from the release, as options of make_recipe."""
    from bocage.pretrain.recipe import SAMPLING

    small = replace(
        SAMPLING["v1.2"], patch_sizes=(2, 3, 4, 5, 6, 7, 8), sides=(4, 5, 6, 7, 8, 9, 10)
    )
    return {
        "steps": steps,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "warmup_steps": 200,
        "precision": "fp32",
        "flips": True,
        "whiten": True,
        "sampling": small,
    }


def recipe(steps: int):
    from bocage.pretrain.recipe import make_recipe

    return make_recipe("v1.2", "nano", **recipe_options(steps))


def train(samples: Path, run: Path, steps: int, minutes: float | None, evaluation: list[Path]):
    from bocage.pretrain.evaluation import read_evaluation_set
    from bocage.pretrain.loop import pretrain
    from bocage.pretrain.run_options import RunOptions
    from bocage.pretrain.sources import open_samples

    options = RunOptions(
        max_minutes=minutes,
        checkpoint_minutes=5,
        evaluation_sets=tuple(read_evaluation_set(path) for path in evaluation),
        evaluate_steps=1000,
    )
    data = open_samples([samples / f"{name}.zarr" for name in ("india", "world", "scene")])
    result = pretrain(recipe(steps), data, run, options=options)
    print(result)


def ship(run: Path, out: Path) -> None:
    """The encoder of Sentinel-2 alone in half precision; other sensors were never trained."""
    from dataclasses import replace

    import torch
    from safetensors.torch import save_file

    from bocage.models.config_json import config_to_json
    from bocage.pretrain.checkpoint import load_tensors_of
    from bocage.pretrain.export import encoder_names
    from bocage.pretrain.loop import latest_checkpoint
    from bocage.pretrain.recipe_record import read_record

    config = replace(read_record(run).model, modalities=(SENSOR,), inputs=(SENSOR,))
    config = replace(config, band_sets={SENSOR: config.band_sets[SENSOR]}, decoder=None)
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None, f"{run} has no checkpoint"
    tensors = load_tensors_of(checkpoint / "model.safetensors")
    tensors = {n: tensors[n].to(torch.float16).contiguous() for n in encoder_names(config)}
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "weights.safetensors")
    (out / "config.json").write_text(json.dumps(config_to_json(config), indent=1) + "\n")
    n_bytes = (out / "weights.safetensors").stat().st_size
    print(f"{out}: {len(tensors)} tensors, {n_bytes / 1e6:.2f} MB, from {checkpoint.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build")
    command.add_argument("data", type=Path)
    command.add_argument("samples", type=Path)
    command = commands.add_parser("train")
    command.add_argument("samples", type=Path)
    command.add_argument("run", type=Path)
    command.add_argument("--steps", type=int, default=STEPS)
    command.add_argument("--minutes", type=float)
    command.add_argument("--evaluate", type=Path, action="append", default=[])
    command = commands.add_parser("ship")
    command.add_argument("run", type=Path)
    command.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "build":
        build(arguments.data, arguments.samples)
    elif arguments.command == "ship":
        ship(arguments.run, arguments.out)
    elif arguments.command == "train":
        train(
            arguments.samples,
            arguments.run,
            arguments.steps,
            arguments.minutes,
            arguments.evaluate,
        )


if __name__ == "__main__":
    main()
