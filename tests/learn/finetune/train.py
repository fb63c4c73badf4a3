"""One run in a process of its own, for tests that kill it or start several."""

import json
import sys

import torch

from bocage.learn.finetune import FinetuneConfig, finetune
from bocage.models import load_model
from tests.learn.finetune.crops import crops

if __name__ == "__main__":
    out, options = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    model = load_model("olmoearth-v1.2-nano", weights=None, compile=False)
    data = crops(options.pop("task", "segmentation"), n=options.pop("n", 24))
    finetune(data, model, out=out, config=FinetuneConfig(**options))
