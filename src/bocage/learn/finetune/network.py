"""A backbone and a head as one network to train.

Axes: B batch, H W pixels, h w cells of features, T timesteps, C bands, S band sets, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from bocage.errors import ConfigError
from bocage.learn.finetune.heads import Features, Head, HeadConfig, make_head
from bocage.learn.finetune.inputs import Inputs
from bocage.learn.finetune.task import Task
from bocage.models.encoder import Encoder, EncoderOutput

FEATURES = ("auto", "pooled", "locations")


class Network(Protocol):
    """What the training loop needs of a network, which is an ``nn.Module`` too."""

    def __call__(self, inputs: Inputs) -> Tensor:
        """Answers [B, K] per crop or [B, h, w, K] per cell of labels."""

    def freeze(self, frozen: bool) -> None:
        """Let the backbone rest, or learn again."""

    def backbone_parameters(self) -> Iterator[tuple[int, nn.Parameter]]:
        """Parameters of the backbone with their distance from its end in layers (0: full rate)."""

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The others."""


class TokenNetwork(nn.Module):
    """An OlmoEarth encoder with a head on its features."""

    def __init__(
        self, encoder: Encoder, head: HeadConfig, *, patch_size: int, features: str, query_px: int
    ) -> None:
        """``query_px``: side of a cell of features, the patch size unless location tokens are."""
        super().__init__()
        self.backbone: Encoder = encoder
        self.head: Head = make_head(head)
        self.patch_size = patch_size
        self.features = features
        self.query_px = query_px
        self.frozen = False
        self.with_image = head.kind == "unet"

    def forward(self, inputs: Inputs) -> Tensor:
        """See ``Network``."""
        answers: Tensor = self.head(self.read(inputs))
        return answers

    def read(self, inputs: Inputs) -> Features:
        """Features of the backbone; without gradients while it is frozen."""
        with self._gradients():
            learns = torch.is_grad_enabled()
            encode = self.backbone.encode_for_training if learns else self.backbone
            output = encode(
                inputs.values,
                inputs.timestamps,
                self.patch_size,
                visible=inputs.visible,
                location_query_patch_size=None if self.features == "pooled" else self.query_px,
            )
            grid, seen = pool(output)
            if self.features == "locations":
                if output.locations is None:
                    raise ConfigError(
                        got="features locations of a model without location tokens",
                        expected="a v1.3 model",
                        fix="use --features pooled",
                    )
                grid = output.locations.tokens
                per_patch = grid.shape[1] // seen.shape[1]
                seen = seen.repeat_interleave(per_patch, 1).repeat_interleave(per_patch, 2)
        return Features(grid=grid, seen=seen, image=image_of(inputs) if self.with_image else None)

    def train(self, mode: bool = True) -> TokenNetwork:
        """As usual; a resting backbone gives the same features every time."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def freeze(self, frozen: bool) -> None:
        """See ``Network``."""
        self.frozen = frozen
        self.train(self.training)

    def _gradients(self) -> AbstractContextManager[object]:
        return torch.no_grad() if self.frozen else nullcontext()

    def backbone_parameters(self) -> Iterator[tuple[int, nn.Parameter]]:
        """See ``Network``: block i of L is L - i layers away, what stands before it L."""
        n_blocks = len(self.backbone.blocks)
        for name, parameter in self.backbone.named_parameters():
            if not parameter.requires_grad:
                continue  # tables that no release trains
            part, _, rest = name.partition(".")
            if part == "blocks":
                yield n_blocks - int(rest.split(".")[0]), parameter
            else:
                yield 0 if part in {"norm", "attention_pooler"} else n_blocks, parameter

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """See ``Network``."""
        return self.head.parameters()


def pool(output: EncoderOutput) -> tuple[Tensor, Tensor]:
    """Mean over dates and band sets, then over sensors, [B, h, w, D], and which cells saw data.

    As ``Encoded.pooled``, with zeros instead of NaN, whose gradient is NaN everywhere.
    """
    means, has = [], []
    for name, x in output.tokens.items():
        keep = output.visible[name][..., None]
        count = keep.sum(dim=(3, 4))  # [B, h, w, 1]
        means.append((x.float() * keep).sum(dim=(3, 4)) / count.clamp(min=1))
        has.append(count > 0)
    weight = torch.stack(has).float()
    n_sensors = weight.sum(dim=0)
    return (torch.stack(means) * weight).sum(dim=0) / n_sensors.clamp(min=1), n_sensors[..., 0] > 0


def image_of(inputs: Inputs) -> Tensor:
    """Mean over the dates with data of all bands, [B, H, W, C]; zeros where there is none."""
    images = []
    for name, x in inputs.values.items():
        if inputs.visible is None:
            images.append(x.mean(dim=3))
            continue
        seen = inputs.visible[name].any(dim=-1)  # [B, h, w, T]
        p = x.shape[1] // seen.shape[1]
        keep = seen.repeat_interleave(p, 1).repeat_interleave(p, 2)[..., None].to(x.dtype)
        images.append((x * keep).sum(dim=3) / keep.sum(dim=3).clamp(min=1))
    return torch.cat(images, dim=-1)


def choose_features(encoder: Encoder, features: str) -> str:
    """Location tokens where the model has them (v1.3), otherwise pooled tokens."""
    if features == "student":
        raise ConfigError(
            got="features student",
            expected="pooled or locations: the gradient of the student stops before the encoder",
            fix="use --features locations",
        )
    if features not in FEATURES:
        raise ConfigError(
            got=f"features {features!r}",
            expected=f"one of {', '.join(FEATURES)}",
            fix="leave out --features",
        )
    has_locations = encoder.config.pooler is not None
    if features == "auto":
        return "locations" if has_locations else "pooled"
    if features == "locations" and not has_locations:
        raise ConfigError(
            got=f"features locations for a {encoder.config.release} model",
            expected="a v1.3 model",
            fix="leave out --features",
        )
    return features


def make_token_network(
    encoder: Encoder,
    task: Task,
    *,
    patch_size: int,
    sensors: dict[str, int],
    head: str = "linear",
    features: str = "auto",
) -> tuple[TokenNetwork, HeadConfig]:
    """The network for a task; ``sensors`` are names with their number of bands.

    With location tokens the features have the resolution of the labels (down to one pixel);
    pooled features have one cell per patch, which a dense head opens.
    """
    features = choose_features(encoder, features)
    label_px = task.label_px or patch_size
    if patch_size % label_px:
        raise ConfigError(
            got=f"labels of {label_px} px with patch size {patch_size}",
            expected="a patch size that holds whole labels",
            fix=f"use --patch-size {label_px}" if label_px <= 8 else "resample the labels",
        )
    query_px = label_px if features == "locations" and task.dense else patch_size
    config = HeadConfig(
        kind=head,
        width=encoder.config.width
        if features == "pooled" or encoder.config.pooler is None
        else encoder.config.pooler.width,
        n_outputs=task.n_outputs,
        dense=task.dense,
        cells_per_feature=query_px // label_px if task.dense else 1,
        pixels_per_cell=label_px,
        n_bands=sum(sensors.values()),
    )
    network = TokenNetwork(
        encoder, config, patch_size=patch_size, features=features, query_px=query_px
    )
    return network, config
