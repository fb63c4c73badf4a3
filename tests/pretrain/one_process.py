"""One process of a run, started by the tests: arguments are its folder, release and options."""

from __future__ import annotations

import json
import sys

from bocage.pretrain.loop import pretrain
from bocage.pretrain.run_options import RunOptions
from tests.pretrain.training_samples import SamplesInMemory, small_recipe

if __name__ == "__main__":
    out, release, recipe, options = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:5])
    result = pretrain(
        small_recipe(release, **recipe),
        SamplesInMemory(),
        out,
        options=RunOptions(progress=False, workers=0, **options),
    )
    print(f"step {result.step}", flush=True)
