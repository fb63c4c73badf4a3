"""What a run begins with: a network for the data, and how crops become its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bocage.errors import ConfigError, InputError
from bocage.learn.finetune.batches import Prepare
from bocage.learn.finetune.config import FinetuneConfig
from bocage.learn.finetune.inputs import (
    Inputs,
    Normalization,
    from_moments,
    prepare_inputs,
    pretraining_normalization,
)
from bocage.learn.finetune.network import Network, make_token_network
from bocage.learn.finetune.saved import HEAD_FILE, Description, build_saved, read_description
from bocage.learn.finetune.training_set import TrainingSet
from bocage.models.encoder import Encoder
from bocage.models.load import load_model
from bocage.models.model import Model
from bocage.sensors import SENSORS
from bocage.types import PathLike

IMAGE_PREFIXES = ("timm:", "smp:")


@dataclass(frozen=True, kw_only=True)
class Start:
    """A network before the first step."""

    network: Network
    description: Description
    prepare: Prepare
    weights_id: str

    @property
    def module(self) -> nn.Module:
        """The network as torch sees it."""
        module: Any = self.network
        assert isinstance(module, nn.Module)
        return module


def start(
    model: Model | PathLike, data: TrainingSet, config: FinetuneConfig, *, weights: Any = "hub"
) -> Start:
    """The network that ``config`` asks for, on data.

    ``model``: a loaded model, a name or folder for ``load_model``, a folder of an earlier
    fine-tuning (its head goes on too), or another library's backbone as "timm:resnet18",
    "smp:Unet/resnet18", "smp:DeepLabV3Plus/resnet50", "smp:Segformer/mit_b0".
    """
    if isinstance(model, str) and model.startswith(IMAGE_PREFIXES):
        from bocage.learn.finetune.backbones import start_image

        return start_image(model, data, config, normalization=_normalization(data, config))
    _check_shape(data, config)
    if isinstance(model, Model):
        name, encoder, weights_id = model.name, _copy(model.encoder), model.weights_id
    elif (Path(model) / HEAD_FILE).exists():
        return _go_on(Path(model), data, config)
    else:
        loaded = load_model(model, weights=weights, compile=False)
        name, encoder, weights_id = loaded.name, loaded.encoder, loaded.weights_id
    unread = [s for s in data.sensors if s not in encoder.config.inputs]
    if unread:
        raise InputError(
            got=f"{', '.join(unread)} in {data.source}",
            expected=f"{', '.join(encoder.config.inputs)}, which {name} reads",
            fix='leave it out, or use a backbone for any bands such as "smp:Unet/resnet18"',
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network, head = make_token_network(
            encoder,
            data.task,
            patch_size=config.patch_size,
            sensors={s: len(bands) for s, bands in data.sensors.items()},
            head=config.head,
            features=config.features,
        )
    _set_drop_path(encoder, config.drop_path)
    mean, std = target_moments(data)
    description = Description(
        name=name,
        task=data.task,
        patch_size=config.patch_size,
        features=network.features,
        query_px=network.query_px,
        sensors=data.sensors,
        n_timesteps=data.n_timesteps,
        crop_px=data.crop_px[0],
        normalization=_normalization(data, config),
        head=head,
        backbone={"kind": "olmoearth", "name": name, "weights_id": weights_id},
        target_mean=mean,
        target_std=std,
    )
    return Start(
        network=network,
        description=description,
        prepare=_prepare(encoder, description),
        weights_id=weights_id,
    )


def target_moments(data: TrainingSet) -> tuple[float, float]:
    """Mean and standard deviation of the training targets; 0 and 1 for classes."""
    if data.task.kind != "regression":
        return 0.0, 1.0
    y = data.labelled("train").astype("float64")
    if float(y.std()) == 0:
        raise InputError(
            got=f"training targets that are all {float(y[0]):g}",
            expected="targets that differ",
            fix="check the column of the target, or change the split",
        )
    return float(y.mean()), float(y.std())


def _go_on(folder: Path, data: TrainingSet, config: FinetuneConfig) -> Start:
    """Begin with the encoder and head of an earlier run."""
    description, weights_id = read_description(folder)
    if description.backbone["kind"] != "olmoearth":
        raise ConfigError(
            got=f"{folder} of {description.name} to begin with",
            expected="an OlmoEarth network",
            fix=f"use --model {description.name} to begin anew",
        )
    network = build_saved(folder, description)
    mine, theirs = data.task, description.task
    names = [[c.name for c in task.classes] for task in (mine, theirs)]
    if (mine.kind, mine.label_px) != (theirs.kind, theirs.label_px) or names[0] != names[1]:
        raise ConfigError(
            got=f"a head for {theirs.kind} of {len(names[1])} classes "
            f"({', '.join(names[1][:6])}) in {folder}, data for {mine.kind} of {len(names[0])} "
            f"({', '.join(names[0][:6])})",
            expected="the same task and classes",
            fix=f"use --model {folder} --new-head to keep the encoder and begin a new head",
        )
    if dict(description.sensors) != data.sensors or description.patch_size != config.patch_size:
        raise ConfigError(
            got=f"{folder} for {', '.join(description.sensors)}, patch size "
            f"{description.patch_size}",
            expected=f"{', '.join(data.sensors)}, patch size {config.patch_size}",
            fix="use the same sensors and --patch-size, or --new-head",
        )
    _set_drop_path(network.backbone, config.drop_path)
    return Start(
        network=network,
        description=description,
        prepare=_prepare(network.backbone, description),
        weights_id=weights_id,
    )


def _prepare(encoder: Encoder, description: Description) -> Prepare:
    def prepare(arrays: Mapping[str, Tensor], timestamps: Tensor, hides: bool) -> Inputs:
        return prepare_inputs(
            arrays,
            timestamps,
            encoder.config,
            patch_size=description.patch_size,
            normalization=description.normalization,
            with_visible=hides,
        )

    return prepare


def _normalization(data: TrainingSet, config: FinetuneConfig) -> Normalization:
    if config.normalization == "pretraining":
        unknown = [s for s in data.sensors if s not in SENSORS]
        if not unknown:
            return pretraining_normalization(tuple(data.sensors))
        raise ConfigError(
            got=f"pretraining statistics for {', '.join(unknown)}",
            expected=f"one of {', '.join(SENSORS)}",
            fix="use --normalization dataset",
        )
    return from_moments(*data.moments(), source="dataset")


def _check_shape(data: TrainingSet, config: FinetuneConfig) -> None:
    rows, cols = data.crop_px
    if rows % config.patch_size or cols % config.patch_size:
        raise InputError(
            got=f"crops of {rows} x {cols} px with patch size {config.patch_size}",
            expected="sides that are multiples of the patch size",
            fix="choose another --patch-size, or make crops of another size",
        )


def _set_drop_path(encoder: Encoder, share: float) -> None:
    for block in encoder.blocks:
        setattr(block, "drop_path", share)  # noqa: B010 - a number, not a tensor of the module


def _copy(encoder: Encoder) -> Encoder:
    """The caller's model stays as it is."""
    import copy

    return copy.deepcopy(encoder)
