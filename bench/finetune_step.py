"""One fine-tuning step of ours beside the official encoder with the same head in plain PyTorch.

    python bench/finetune_step.py --size tiny --repeats 5

Batch 16, Sentinel-2, 4 dates, 32 px, patch size 4, ten classes per pixel, AdamW. Both start from
the same weights without stochastic depth, see the same batches, and must reach the same losses;
steps are interleaved in one process and the medians compared. ``--precision bf16`` is autocast for
both. ``--side official`` takes its steps alone: our step tells the C library to keep freed memory,
which the other feels in the same process.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn
from torch.nn import functional

from bocage.bench.peer import official_encoder, official_sample, with_weights_of
from bocage.learn.classes import make_classes
from bocage.learn.finetune import FinetuneConfig, Task
from bocage.learn.finetune.inputs import Inputs
from bocage.learn.finetune.losses import Loss
from bocage.learn.finetune.network import make_token_network
from bocage.learn.finetune.rates import make_optimizer
from bocage.models.releases import release_config

BATCH, TIMES, SIZE_PX, PATCH, CLASSES = 16, 4, 32, 4, 10


def main() -> None:  # noqa: PLR0915 - one script
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="nano", choices=["nano", "tiny", "base"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--side", default="both", choices=["both", "official", "bocage"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    half = arguments.precision == "bf16"

    official = official_encoder("v1.2", arguments.size)
    config = release_config("v1.2", arguments.size)
    task = Task(
        kind="segmentation", classes=make_classes([str(i) for i in range(CLASSES)]), label_px=1
    )
    ours, _ = make_token_network(
        with_weights_of(official, config), task, patch_size=PATCH, sensors={"sentinel2_l2a": 12}
    )
    head = copy.deepcopy(ours.head.linear)
    x = {"sentinel2_l2a": torch.rand(BATCH, SIZE_PX, SIZE_PX, TIMES, 12)}
    stamps = torch.tensor(
        [[(1, (3 * t + b) % 12, 2022) for t in range(TIMES)] for b in range(BATCH)]
    )
    labels = torch.randint(0, CLASSES, (BATCH, SIZE_PX, SIZE_PX))

    options = {"lr": 1e-4, "weight_decay": 0.01}
    peer = torch.optim.AdamW([*official.parameters(), *head.parameters()], **options)
    own = make_optimizer(ours, FinetuneConfig(recipe="plain", **options))
    loss = Loss(task)

    def official_step() -> float:
        peer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            sample = official_sample(x, stamps)
            tokens = official(sample, patch_size=PATCH, fast_pass=True)["tokens_and_masks"]
            z = head(tokens.sentinel2_l2a.mean(dim=(3, 4)))
            z = z.unflatten(-1, (CLASSES, PATCH, PATCH)).permute(0, 3, 1, 4, 2, 5)
            z = z.reshape(BATCH, CLASSES, SIZE_PX, SIZE_PX)
        value = functional.cross_entropy(z.float(), labels)
        value.backward()
        peer.step()
        return float(value.detach())

    inputs = Inputs(values=x, timestamps=stamps)

    def our_step() -> float:
        own.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            answers = ours(inputs)
        value = loss.total(answers, labels) / loss.weight(labels)
        value.backward()
        own.step()
        return float(value.detach())

    for module in (official, ours):  # gradients and the same answers: no stochastic depth
        module.eval()
        assert isinstance(module, nn.Module)
    steps = {"official": official_step, "bocage": our_step}
    if arguments.side != "both":
        steps = {arguments.side: steps[arguments.side]}
    times: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(arguments.repeats + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            losses[name].append(step())
            if repeat:  # the first is a warm-up
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"v1.2 {arguments.size}, {arguments.precision}, {arguments.threads} threads")
    for name, seconds in medians.items():
        print(
            f"{name:9s} {seconds * 1000:7.0f} ms  {1 / seconds:6.2f} steps/s, "
            f"fastest {min(times[name]) * 1000:.0f} ms"
        )
    if len(steps) == 1:
        return
    worst = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    print(
        f"ratio of medians {medians['official'] / medians['bocage']:.2f}, "
        f"worst of {arguments.repeats} pairs {min(ratios):.2f}"
    )
    print(f"losses differ by at most {worst:.1e} over {len(losses['bocage'])} steps")
    assert worst < (2e-2 if half else 1e-4), losses


if __name__ == "__main__":
    main()
