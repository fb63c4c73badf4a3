"""Is a single band set worse without band dropout and the pixel network? On samples at hand.

    python bench/naive_merge.py SAMPLES OUT --evaluate eurosat.npz [--steps 1500] [--seeds 2]

SAMPLES is the folder that `bench/bocage_nano.py build` wrote; the recipe is that of `bocage-nano`.
Prints one table of `bocage.pretrain.ablate` per seed: kNN and linear probe over spatial folds, the
difference to the first row and its 95 % interval.
"""

import argparse
from pathlib import Path

from bocage_nano import recipe_options

from bocage.pretrain.ablate import ablate, ablation_table
from bocage.pretrain.evaluation import read_evaluation_set
from bocage.pretrain.run_options import RunOptions
from bocage.pretrain.sources import open_samples

CHOICES = ("full", "no_band_dropout", "naive_merge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--evaluate", type=Path, action="append", required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[12536, 7])
    parser.add_argument("--choices", default=",".join(CHOICES))
    arguments = parser.parse_args()
    sets = tuple(read_evaluation_set(path) for path in arguments.evaluate)
    options = RunOptions(checkpoint_minutes=5, evaluation_sets=sets)
    data = open_samples([arguments.samples / f"{n}.zarr" for n in ("india", "world", "scene")])
    for seed in arguments.seeds:
        rows = ablate(
            tuple(arguments.choices.split(",")),
            data,
            arguments.out / f"seed-{seed}",
            options=options,
            **recipe_options(arguments.steps),
            seed=seed,
        )
        print(f"\nseed {seed}\n{ablation_table(rows, sets)}", flush=True)


if __name__ == "__main__":
    main()
