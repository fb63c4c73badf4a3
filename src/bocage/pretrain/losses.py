"""The losses between predicted and frozen tokens, and between two views of the same samples.

A prediction must find its own target among the other decoded tokens of the same sample and
modality. The scores of all pairs are the largest tensor of a training step, so they are made a few
samples at a time, and the gradient is taken before they are thrown away.

Axes: R rows (sample of one view), N decoded tokens of one modality, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK_SCORES = 2**23
"""Scores that are in memory at once (32 MiB in fp32); a single row may need more."""


def patch_discrimination(
    predictions: Tensor,
    targets: Tensor,
    counts: Tensor,
    *,
    temperature: float = 0.1,
    same_target: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss [R] of each row and whether it counts [R], of tokens [R, N, D] with ``counts`` [R] used.

    Cross entropy of cosine similarities over ``temperature`` against the own target, mean over the
    tokens of a row, times twice the temperature. With ``same_target`` a negative whose own target
    has a larger cosine similarity to the anchor's is no negative; a row of several tokens where any
    is left without negatives does not count, nor does a row without tokens. Not counted rows are 0.
    Gradients reach ``predictions`` alone. Computed in fp32.
    """
    if predictions.shape[1] == 0:
        zeros = predictions.flatten(1).sum(1).float()
        return zeros, torch.zeros_like(zeros, dtype=torch.bool)
    losses, counted = _PatchDiscrimination.apply(
        predictions, targets, counts.to(predictions.device), (temperature, same_target)
    )
    return losses, counted


class _PatchDiscrimination(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        predictions: Tensor,
        targets: Tensor,
        counts: Tensor,
        options: tuple[float, float | None],
    ) -> tuple[Tensor, Tensor]:
        n_rows, n_tokens, _ = predictions.shape
        chunk = max(CHUNK_SCORES // n_tokens**2, 1)
        gradient = torch.empty_like(predictions) if ctx.needs_input_grad[0] else None
        parts = []
        with torch.autocast(predictions.device.type, enabled=False):
            for start in range(0, n_rows, chunk):
                part = slice(start, start + chunk)
                parts.append(
                    _rows(
                        predictions[part].float(),
                        targets[part].float(),
                        counts[part],
                        None if gradient is None else gradient[part],
                        options,
                    )
                )
        losses, counted = (torch.cat(x) for x in zip(*parts, strict=True))
        ctx.mark_non_differentiable(counted)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses, counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * by_loss[:, None, None].to(gradient.dtype), None, None, None


def _rows(
    predictions: Tensor,
    targets: Tensor,
    counts: Tensor,
    gradient: Tensor | None,
    options: tuple[float, float | None],
) -> tuple[Tensor, Tensor]:
    """Losses and counted rows of some rows; fills ``gradient`` if there is one."""
    temperature, same_target = options
    lengths = predictions.norm(dim=-1, keepdim=True).clamp_(min=1e-12)
    predictions = predictions / lengths
    targets = functional.normalize(targets, dim=-1)
    used = torch.arange(predictions.shape[1], device=counts.device) < counts[:, None]  # [R, N]
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
    if gradient is not None:
        # The derivative by the scores is softmax minus one-hot; then through the normalization.
        by_score = torch.softmax(scores, dim=-1, out=scores)
        by_score.diagonal(dim1=1, dim2=2).sub_(1.0)
        by_score.mul_((weight[:, None] * used / temperature)[..., None])
        by_cosine = torch.bmm(by_score, targets)
        along = (by_cosine * predictions).sum(-1, keepdim=True)
        gradient.copy_(by_cosine.sub_(predictions * along).div_(lengths))
    return losses.sum(1) * weight, counted


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
