"""Backbones of other libraries: timm and segmentation-models-pytorch, with any number of bands.

All dates and sensors of a crop are stacked to the channels of one image [B, T C, H, W]; missing
values are 0 after normalization. Both libraries need torchvision: the extra ``backbones``.

Axes: B batch, H W pixels, T dates, C bands of all sensors, K answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.errors import ConfigError, ModelError
from bocage.learn.finetune.config import FinetuneConfig
from bocage.learn.finetune.heads import HeadConfig
from bocage.learn.finetune.inputs import Inputs, Normalization
from bocage.learn.finetune.saved import Description
from bocage.learn.finetune.start import Start, target_moments
from bocage.learn.finetune.training_set import TrainingSet

MULTIPLE_PX = 32
"""Sides are padded to a multiple of this, which all encoders can halve five times."""


class ImageNetwork(nn.Module):
    """A network of images, from timm (one answer per crop) or smp (one per pixel)."""

    def __init__(self, model: nn.Module, *, dense: bool, encoder_prefix: str) -> None:
        super().__init__()
        self.model = model
        self.dense = dense
        self.encoder_prefix = encoder_prefix
        self.frozen = False

    def forward(self, inputs: Inputs) -> Tensor:
        """[B, K] or [B, H, W, K]."""
        # [B, H, W, T, C] to [B, T C, H, W], sensor after sensor
        stacked = [v.flatten(3).movedim(-1, 1) for v in inputs.values.values()]
        x = torch.cat(stacked, dim=1)
        rows, cols = x.shape[-2:]
        if not self.dense:
            return torch.Tensor(self.model(x))
        pad = [(-n) % MULTIPLE_PX for n in (rows, cols)]
        padded = functional.pad(x, (0, pad[1], 0, pad[0]), mode="replicate") if any(pad) else x
        answers: Tensor = self.model(padded)[..., :rows, :cols]
        return answers.movedim(1, -1)

    def train(self, mode: bool = True) -> ImageNetwork:
        """As usual; a resting encoder keeps its batch statistics."""
        super().train(mode)
        if self.frozen:
            for name, module in self.model.named_modules():
                if self._of_encoder(name):
                    module.eval()
        return self

    def freeze(self, frozen: bool) -> None:
        """Let the encoder rest, or learn again."""
        self.frozen = frozen
        for name, parameter in self.model.named_parameters():
            if self._of_encoder(name):
                parameter.requires_grad_(not frozen)
        self.train(self.training)

    def backbone_parameters(self) -> Iterator[tuple[int, nn.Parameter]]:
        """The encoder's parameters, all at one rate: its layers have no common order."""
        for name, parameter in self.model.named_parameters():
            if self._of_encoder(name):
                yield 0, parameter

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The others."""
        for name, parameter in self.model.named_parameters():
            if not self._of_encoder(name):
                yield parameter

    def _of_encoder(self, name: str) -> bool:
        if self.encoder_prefix:
            return name.startswith(self.encoder_prefix)
        head = self.model.get_classifier()  # type: ignore[operator]  # of every timm model
        heads = {n for n, m in self.model.named_modules() if m is head}
        return bool(name) and not any(name == h or name.startswith(f"{h}.") for h in heads)


def start_image(
    model: str, data: TrainingSet, config: FinetuneConfig, *, normalization: Normalization
) -> Start:
    """The network "timm:NAME" or "smp:ARCHITECTURE/ENCODER" for data, from random weights."""
    task = data.task
    if task.dense and task.label_px != 1:
        raise ConfigError(
            got=f"labels of {task.label_px} px for {model}",
            expected="a label for each pixel",
            fix="repeat the labels to the crop's resolution",
        )
    if config.recipe == "layer-decay":
        raise ConfigError(
            got=f"recipe layer-decay for {model}",
            expected="frozen-start or plain: its layers have no common order",
            fix="use --recipe plain",
        )
    if config.drop_timesteps > 0:
        raise ConfigError(
            got=f"drop_timesteps for {model}, whose dates are channels",
            expected="0",
            fix="leave out --drop-timesteps",
        )
    n_channels = data.n_timesteps * sum(len(bands) for bands in data.sensors.values())
    backbone = {
        "kind": "image",
        "name": model,
        "in_channels": n_channels,
        "n_outputs": task.n_outputs,
        "dense": task.dense,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_image(backbone)
    mean, std = target_moments(data)
    description = Description(
        name=model,
        task=task,
        patch_size=1 if task.dense else data.crop_px[0],
        features="image",
        query_px=1 if task.dense else data.crop_px[0],
        sensors=data.sensors,
        n_timesteps=data.n_timesteps,
        crop_px=data.crop_px[0],
        normalization=normalization,
        head=HeadConfig(width=1, n_outputs=task.n_outputs, dense=task.dense),
        backbone=backbone,
        target_mean=mean,
        target_std=std,
    )
    return Start(
        network=network,
        description=description,
        prepare=lambda arrays, stamps, _hides: prepare_image(arrays, stamps, normalization),
        weights_id=f"random:{config.seed}",
    )


def prepare_image(
    arrays: Mapping[str, Tensor], timestamps: Tensor, normalization: Normalization
) -> Inputs:
    """Normalized values with 0 where they are missing."""
    values = {
        name: torch.nan_to_num(normalization.apply(name, x.float()), nan=0.0)
        for name, x in arrays.items()
    }
    return Inputs(values=values, timestamps=timestamps)


def build_image(backbone: Mapping[str, Any]) -> ImageNetwork:
    """The network of a description, with random weights."""
    library, _, name = str(backbone["name"]).partition(":")
    channels, outputs = int(backbone["in_channels"]), int(backbone["n_outputs"])
    dense = bool(backbone["dense"])
    if (library == "smp") != dense:
        raise ConfigError(
            got=f"{backbone['name']} for {'labels per pixel' if dense else 'one label per crop'}",
            expected="smp:ARCHITECTURE/ENCODER per pixel, timm:NAME per crop",
            fix="use smp:Unet/resnet18" if dense else "use timm:resnet18",
        )
    try:
        if dense:
            import segmentation_models_pytorch as smp  # type: ignore[import-not-found,unused-ignore]

            architecture, _, encoder = name.partition("/")
            model = smp.create_model(
                architecture,
                encoder_name=encoder or "resnet18",
                encoder_weights=None,
                in_channels=channels,
                classes=outputs,
            )
            return ImageNetwork(model, dense=True, encoder_prefix="encoder.")
        import timm  # type: ignore[import-not-found,unused-ignore]

        model = timm.create_model(name, pretrained=False, in_chans=channels, num_classes=outputs)
        return ImageNetwork(model, dense=False, encoder_prefix="")
    except ImportError as error:
        raise ConfigError(
            got=f"{backbone['name']} without {error.name}",
            expected="timm and segmentation-models-pytorch",
            fix='install them with: pip install "bocage[backbones]"',
        ) from error
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            got=f"{backbone['name']} ({str(error).splitlines()[0][:160]})",
            expected="a name that the library knows",
            fix="see timm.list_models(), or smp.encoders.get_encoder_names()",
        ) from error
