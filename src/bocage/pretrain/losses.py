"""The losses between predicted and frozen tokens, and between two views of the same samples.

A prediction must find its own target among the other decoded tokens of the same sample and
modality. The scores of all pairs are the largest tensor of a training step, so they are made a few
samples at a time, and the gradient is taken before they are thrown away.

Axes: R rows (sample of one view), N decoded tokens of one modality, D width, P modalities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK_SCORES = 2**23
"""Scores that are in memory at once (32 MiB in fp32); a single row may need more."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Decoded tokens of one modality, row by row."""

    predictions: Tensor
    """Number of each prediction [R, N]."""

    targets: Tensor
    """Number of its target [R, N]."""

    counts: Tensor
    """Tokens used of each row [R]; beyond them the numbers mean nothing."""

    same_target: float | None = None
    """A negative whose own target has a larger cosine similarity to the anchor's is no negative."""

    def to(self, device: torch.device | str) -> Pairs:
        """The same on a device."""
        tensors = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("predictions", "targets", "counts")
        }
        return replace(self, **tensors)


def patch_discrimination(
    predictions: Tensor, targets: Tensor, pairs: Sequence[Pairs], *, temperature: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Loss [P, R] of each of P modalities and rows, and whether it counts [P, R].

    ``predictions`` [n, D] and ``targets`` [u, D]; no prediction stands in two of ``pairs``. Cross
    entropy of cosine similarities over ``temperature`` against the own target, among the tokens of
    the same row and modality, mean over them, times twice the temperature. A row without tokens
    does not count, nor does one of several tokens where any is left without negatives; such rows
    are 0. Gradients reach ``predictions`` alone. Computed in fp32.
    """
    losses, counted = _PatchDiscrimination.apply(  # type: ignore[no-untyped-call]
        predictions, targets, tuple(pairs), temperature
    )
    return losses, counted


class _PatchDiscrimination(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, predictions: Tensor, targets: Tensor, pairs: tuple[Pairs, ...], temperature: float
    ) -> tuple[Tensor, Tensor]:
        differentiate = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(predictions) if differentiate else None
        # Loss that each token's gradient belongs to.
        owner = torch.zeros(len(predictions), dtype=torch.long, device=predictions.device)
        found = []
        with torch.autocast(predictions.device.type, enabled=False):
            for number, pair in enumerate(pairs):
                n_rows, n_tokens = pair.predictions.shape
                chunk = max(CHUNK_SCORES // n_tokens**2, 1)
                for start in range(0, n_rows, chunk):
                    part = slice(start, min(start + chunk, n_rows))
                    slots = pair.predictions[part]
                    used = torch.arange(n_tokens, device=slots.device) < pair.counts[part][:, None]
                    losses, counted, by_prediction = _rows(
                        predictions[slots].float(),
                        targets[pair.targets[part]].float(),
                        used,
                        (temperature, pair.same_target, differentiate),
                    )
                    found.append((losses, counted))
                    if gradient is not None and by_prediction is not None:
                        gradient[slots[used]] = by_prediction[used].to(gradient.dtype)
                    rows = torch.arange(part.start, part.stop, device=slots.device)
                    rows = rows + number * n_rows
                    owner[slots[used]] = rows[:, None].expand_as(slots)[used]
        losses, counted = (
            torch.cat(x).unflatten(0, (len(pairs), -1)) for x in zip(*found, strict=True)
        )
        ctx.mark_non_differentiable(counted)
        if gradient is not None:
            ctx.save_for_backward(gradient, owner)
        return losses, counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradient, owner = ctx.saved_tensors
        scale = by_loss.flatten()[owner][:, None].to(gradient.dtype)
        return gradient * scale, None, None, None


def _rows(
    predictions: Tensor, targets: Tensor, used: Tensor, options: tuple[float, float | None, bool]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses [R], counted rows [R] and gradient [R, N, D] of tokens [R, N, D], ``used`` [R, N]."""
    temperature, same_target, differentiate = options
    counts = used.sum(1)
    lengths = predictions.norm(dim=-1, keepdim=True).clamp_(min=1e-12)
    predictions = predictions / lengths
    targets = functional.normalize(targets, dim=-1)
    scores = torch.bmm(predictions, targets.mT).div_(temperature)
    counted = counts > 0
    if same_target is None:
        out = (~used[:, None]).repeat(1, used.shape[1], 1)
    else:
        out = torch.bmm(targets, targets.mT) > same_target
        out |= ~used[:, None]
    out.diagonal(dim1=1, dim2=2).fill_(False)  # also of padding, so that every row has a score
    scores.masked_fill_(out, -torch.inf)
    if same_target is not None:
        alone = (~out).sum(-1) <= 1
        counted = counted & ~((alone & used).any(1) & (counts > 1))
    del out
    own = scores.diagonal(dim1=1, dim2=2)
    losses = (scores.logsumexp(-1) - own).masked_fill_(~used, 0.0)
    weight = 2 * temperature / counts.clamp(min=1) * counted  # [R]
    gradient = None
    if differentiate:
        # The derivative by the scores is softmax minus one-hot; then through the normalization.
        by_score = torch.softmax(scores, dim=-1, out=scores)
        by_score.diagonal(dim1=1, dim2=2).sub_(1.0)
        by_score.mul_((weight[:, None] * used / temperature)[..., None])
        by_cosine = torch.bmm(by_score, targets)
        along = (by_cosine * predictions).sum(-1, keepdim=True)
        gradient = by_cosine.sub_(predictions.mul_(along)).div_(lengths)
    return losses.sum(1) * weight, counted, gradient


def mean_of_counted(losses: Tensor, counted: Tensor) -> Tensor:
    """Mean of the losses [..., B] that count over the last axis; 0 where none does."""
    return (losses * counted).sum(-1) / counted.sum(-1).clamp(min=1)


def info_nce(queries: Tensor, keys: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Cross entropy that finds each sample's second view [B, D] by its first, in one direction."""
    with torch.autocast(queries.device.type, enabled=False):
        a = functional.normalize(queries.float(), dim=-1)
        b = functional.normalize(keys.float(), dim=-1)
        own = torch.arange(len(a), device=a.device)
        return functional.cross_entropy(a @ b.T / temperature, own)
