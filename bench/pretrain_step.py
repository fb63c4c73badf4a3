"""A training step beside the same step built from the modules of the official package.

    OMP_NUM_THREADS=2 python bench/pretrain_step.py --size nano [--release v1.2] [--batch 16]

Same weights, batches, masks, dropped bands, losses, clipping and optimizer; the two take turns. For
the official side masks and dropped bands are made before the clock starts, targets are computed
once for both views, and the loss is ours; our own time holds all of that. Stochastic depth is off
on both sides, because its draws could not be the same. The losses of the first step must agree to
1e-5 and those of the last to 1e-3, or nothing is printed. With --data STORE the answer is how long
a run waits for its batches instead.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.utils import unpack_encoder_output
from tests.models.official import official_model, official_sample
from tests.pretrain.batches import random_batch

from bocage.pretrain.architecture import make_pretraining_model
from bocage.pretrain.distributed import Group
from bocage.pretrain.losses import Pairs, info_nce, mean_of_counted, patch_discrimination
from bocage.pretrain.masking import Role, mask
from bocage.pretrain.objective import Objective
from bocage.pretrain.optimizer import make_optimizer
from bocage.pretrain.recipe import make_recipe
from bocage.pretrain.training_step import MicroBatchLoss, seed_of, take_step
from bocage.sensors import MAPS, SENSORS

# Patch size, patches per side, timesteps: what the token budget of v1.2 gives.
SHAPES = {
    "all": [(1, 5, 12), (4, 6, 9), (8, 4, 12), (2, 10, 2), (6, 3, 12)],
    "sentinel2": [(1, 12, 1), (4, 6, 1), (8, 8, 1), (2, 10, 1), (5, 12, 1)],
}
MODALITIES = {"all": (*SENSORS, *MAPS), "sentinel2": ("sentinel2_l2a",)}
SEED = 1


class Official:
    """One step as the official train module does it, view after view."""

    def __init__(self, recipe, precision):
        self.model = official_model(recipe.release, recipe.size).train()
        for block in self.model.encoder.blocks:
            block.drop_path = torch.nn.Identity()
        for part in self.model.encoder.patch_embeddings.modules():
            if hasattr(part, "band_dropout_rate"):
                part.band_dropout_rate = 0.0  # the same dropped bands come with the batch
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.recipe, self.bf16 = recipe, precision == "bf16"

    def prepare(self, batch, plan, step):
        """Masked samples of both views, as the official loader hands them over."""
        objective, back, n = self.recipe.objective, plan.order.argsort(), len(batch.ids)
        generator = torch.Generator().manual_seed(seed_of(SEED, step, 0))
        views = []
        for view in range(objective.n_views):
            roles = mask(batch.present, objective.masking, generator, ids=batch.ids)
            seen = dict(batch.values)
            for m, keep in (plan.band_keep or {}).items():
                seen[m] = seen[m] * keep[back[view * n : (view + 1) * n]][:, None, None, None]
            p = batch.patch_size
            masks = {
                f"{m}_mask": r.long().repeat_interleave(p, 1).repeat_interleave(p, 2)
                for m, r in roles.items()
            }
            views.append((official_sample(seen, batch.timestamps)._replace(**masks), roles))
        return official_sample(batch.values, batch.timestamps), views, batch

    def step(self, prepared):
        sample, views, batch = prepared
        objective = self.recipe.objective
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                targets = self.model.target_encoder(
                    sample,
                    patch_size=batch.patch_size,
                    token_exit_cfg=dict.fromkeys(batch.values, 0),
                )["tokens_and_masks"]
            total, pooled = 0.0, []
            for masked, roles in views:
                encoded = self.model.encoder(masked, patch_size=batch.patch_size)
                latent, projected, context = unpack_encoder_output(encoded)
                decoded = self.model.decoder(
                    latent, timestamps=batch.timestamps, patch_size=batch.patch_size, **context
                )
                pooled.append(projected)
                for m, r in roles.items():
                    total = total + self._discriminate(
                        getattr(decoded, m), getattr(targets, m), r == Role.DECODE, m
                    ) / len(views)
            if objective.contrastive_weight:
                total = total + objective.contrastive_weight * info_nce(*pooled)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(total.detach())

    def _discriminate(self, predictions, targets, decode, modality):
        decode = decode.flatten(1)
        counts = decode.sum(1)
        width = max(int(counts.max()), 1)
        order = decode.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
        index = order[..., None].expand(-1, -1, predictions.shape[-1])
        numbers = torch.arange(order.numel()).view(order.shape)
        pairs = Pairs(
            predictions=numbers,
            targets=numbers,
            counts=counts,
            same_target=self.recipe.objective.same_target if modality in MAPS else None,
        )
        losses, counted = patch_discrimination(
            predictions.flatten(1, -2).gather(1, index).flatten(0, 1),
            targets.flatten(1, -2).gather(1, index).flatten(0, 1),
            [pairs],
        )
        return mean_of_counted(losses[0], counted[0])


class Ours:
    def __init__(self, recipe, weights):
        model = make_pretraining_model(recipe.model, recipe.seed, recipe.objective)
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
        self.recipe = recipe
        self.module = MicroBatchLoss(
            model, Objective(recipe.objective), precision=recipe.precision, sharded=False
        ).train()
        self.optimizer = make_optimizer(model, recipe.optimizer)
        self.group = Group(device=torch.device("cpu"))

    def step(self, batch, step):
        result = take_step(
            self.module,
            self.optimizer,
            batch,
            step=step,
            seed=SEED,
            micro_batch_size=len(batch.ids),
            clip_norm=1.0,
            group=self.group,
        )
        return result.loss


def compare(options):
    release, size, data = options.release, options.size, options.modalities
    precision, n_batch, repeats = options.precision, options.batch, options.repeats
    recipe = make_recipe(
        release, size, batch_size=n_batch, precision=precision, architecture={"drop_path": 0.0}
    )
    official = Official(recipe, precision)
    ours = Ours(recipe, official.model.state_dict())
    objective = Objective(recipe.objective)
    step, rows, agreed = 0, [], []
    for patch_size, side, times in SHAPES[data]:
        batch = random_batch(
            recipe.model,
            n_samples=n_batch,
            cells=side,
            patch_size=patch_size,
            n_times=times,
            modalities=MODALITIES[data],
            missing=0.2 if data == "all" else 0.0,  # a sample must have something to encode
            seed=patch_size,
        )
        took = [[], []]
        for i in range(repeats + 1):
            step += 1
            generator = torch.Generator().manual_seed(seed_of(SEED, step, 0))
            plan = objective.plan(recipe.model, batch, generator)
            prepared = official.prepare(batch, plan, step)
            losses = [0.0, 0.0]
            for side_of in (0, 1) if i % 2 else (1, 0):
                started = time.perf_counter()
                losses[side_of] = ours.step(batch, step) if side_of else official.step(prepared)
                if i:  # the first of each shape warms up
                    took[side_of].append(time.perf_counter() - started)
            agreed.append(abs(losses[0] - losses[1]))
        tokens = sum(p[0].numel() for p in batch.present.values())
        rows.append((patch_size, side, times, tokens, *map(statistics.median, took)))
    limits = (1e-5, 1e-3) if precision == "fp32" else (3e-2, 3e-2)
    if agreed[0] > limits[0] or agreed[-1] > limits[1]:
        sys.exit(f"losses differ by {agreed[0]:.2g} at first and {agreed[-1]:.2g} at last")
    print(
        f"{release} {size}, {data}, {precision}, batch {n_batch}, {torch.get_num_threads()} "
        f"threads, median of {repeats}; losses differ by {agreed[0]:.1g} at first, "
        f"{agreed[-1]:.1g} at last"
    )
    print(
        "| patch | side | T | tokens | official s | ours s | times |\n|---|---|---|---|---|---|---|"
    )
    for p, side, times, tokens, a, b in rows:
        print(f"| {p} | {side} | {times} | {tokens} | {a:.3f} | {b:.3f} | {a / b:.2f} |")
    a, b = (sum(row[i] for row in rows) for i in (4, 5))
    print(f"| all | | | | {a:.3f} | {b:.3f} | {a / b:.2f} |\n", flush=True)


def loading(path, size, n_batch, seconds, workers):
    """Share of the step time that a real run waits for data."""
    import tempfile

    from bocage.pretrain.loop import pretrain
    from bocage.pretrain.run_options import RunOptions

    recipe = make_recipe("v1.2", size, batch_size=n_batch, precision="fp32", steps=100_000)
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(progress=False, workers=workers, max_minutes=seconds / 60)
        result = pretrain(recipe, path, Path(folder) / "run", options=options)
    print(
        f"{path}: {result.step} steps of {n_batch}, {result.steps_per_s:.2f} steps/s, "
        f"{100 * result.loading_share:.2f} % of the time waiting for data ({workers} workers)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", default="v1.2")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--modalities", default="all", choices=list(MODALITIES))
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", help="store of samples: measure the waiting instead")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--workers", type=int, default=1)
    a = parser.parse_args()
    if a.data:
        loading(a.data, a.size, a.batch, a.seconds, a.workers)
    else:
        compare(a)


if __name__ == "__main__":
    main()
