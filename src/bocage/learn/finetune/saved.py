"""A fine-tuned network in a folder, and back.

config.json is the backbone as its library describes it, weights.safetensors its weights:
``bocage.load_model(folder)`` reads these two as well. head.safetensors holds the head, and
head.json the task, classes, patch size, sensors, dates and normalization.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from bocage._version import __version__
from bocage.embeddings.atomic import write_file
from bocage.errors import ModelError
from bocage.learn.finetune.finetuned import Finetuned, FinetunedImage
from bocage.learn.finetune.heads import HeadConfig
from bocage.learn.finetune.inputs import Normalization
from bocage.learn.finetune.network import TokenNetwork
from bocage.learn.finetune.task import Task
from bocage.models.checkpoint import weights_hash
from bocage.models.config_json import config_to_json, read_config
from bocage.models.load import read_encoder
from bocage.types import PathLike

HEAD_FILE, HEAD_WEIGHTS = "head.json", "head.safetensors"
CONFIG_FILE, WEIGHTS = "config.json", "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What head.json says: everything about a fine-tuned network but its weights."""

    name: str
    """For people: the model it grew from."""

    task: Task
    patch_size: int
    features: str
    """pooled or locations for our encoders; image for others."""

    query_px: int
    """Side of a cell of features in pixels."""

    sensors: Mapping[str, tuple[str, ...]]
    """Bands of each sensor, in order."""

    n_timesteps: int
    crop_px: int
    """Side of the crops of training; windows of about this size serve best."""

    normalization: Normalization
    head: HeadConfig
    backbone: Mapping[str, Any]
    """kind "olmoearth", or what another backbone needs to be built again."""

    target_mean: float = 0.0
    """Regression: the network says (value - mean) / std."""

    target_std: float = 1.0

    @property
    def cell_px(self) -> int:
        """Side of an answer on a map, in pixels of the imagery."""
        return self.task.label_px or self.query_px

    def to_json(self) -> dict[str, Any]:
        """As head.json keeps it."""
        return {
            **self.task.to_json(),
            "name": self.name,
            "patch_size": self.patch_size,
            "cell_px": self.cell_px,
            "features": self.features,
            "query_px": self.query_px,
            "sensors": {name: list(bands) for name, bands in self.sensors.items()},
            "n_timesteps": self.n_timesteps,
            "crop_px": self.crop_px,
            "normalization": self.normalization.to_json(),
            "target": {"mean": self.target_mean, "std": self.target_std},
            "head": self.head.to_json(),
            "backbone": dict(self.backbone),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Description:
        """The opposite of ``to_json``."""
        return cls(
            name=raw["name"],
            task=Task.from_json(raw),
            patch_size=raw["patch_size"],
            features=raw["features"],
            query_px=raw["query_px"],
            sensors={name: tuple(bands) for name, bands in raw["sensors"].items()},
            n_timesteps=raw["n_timesteps"],
            crop_px=raw["crop_px"],
            normalization=Normalization.from_json(raw["normalization"]),
            head=HeadConfig.from_json(raw["head"]),
            backbone=raw["backbone"],
            target_mean=raw["target"]["mean"],
            target_std=raw["target"]["std"],
        )


def save_finetuned(folder: Path, network: nn.Module, description: Description) -> None:
    """Write a network; each file is whole or absent, head.json comes last."""
    backbone, head = _split(network)
    if isinstance(network, TokenNetwork):
        config = config_to_json(network.backbone.config)
    else:
        config = dict(description.backbone)
    write_file(folder / CONFIG_FILE, _json(config))
    write_file(folder / WEIGHTS, save(backbone))
    head_bytes = save(head)
    write_file(folder / HEAD_WEIGHTS, head_bytes)
    tensors = backbone | {f"head.{n}": x for n, x in head.items()}
    content = {
        "bocage": __version__,
        # Batch norms count their batches in a single number.
        "weights_id": weights_hash(
            {n: x.reshape(-1) if x.ndim == 0 else x for n, x in tensors.items()}
        ),
        "head_sha256": hashlib.sha256(head_bytes).hexdigest(),
        **description.to_json(),
    }
    write_file(folder / HEAD_FILE, _json(content))


def restore(folder: Path, network: nn.Module) -> None:
    """Give a network of the same kind the weights of a folder."""
    files = (folder / WEIGHTS, folder / HEAD_WEIGHTS)
    if isinstance(network, TokenNetwork):
        _fill(network.backbone, files[0], prefix="encoder.")
        _fill(network.head, files[1])
    else:
        _fill(network, files[0])


def _split(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What goes to weights.safetensors, and what to head.safetensors (ours only)."""
    if not isinstance(network, TokenNetwork):
        return _tensors(network), {}
    backbone = {f"encoder.{name}": x for name, x in _tensors(network.backbone).items()}
    return backbone, _tensors(network.head)


def load_finetuned(
    folder: PathLike,
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    compile: bool | str = "auto",  # noqa: A002
) -> Finetuned | FinetunedImage:
    """Load what ``finetune`` wrote, ready for ``predict``.

    Raises ModelError if a file is missing, damaged, or belongs to another run.
    """
    folder = Path(folder)
    description, weights_id = read_description(folder)
    name = f"{folder.resolve().name} ({description.name})"
    if description.backbone["kind"] != "olmoearth":
        from bocage.learn.finetune.backbones import build_image

        image = build_image(description.backbone)
        _fill(image, folder / WEIGHTS)
        return FinetunedImage(image, description, name=name, weights_id=weights_id, device=device)
    return Finetuned(
        build_saved(folder, description),
        description,
        name=name,
        weights_id=weights_id,
        device=device,
        precision=precision,
        compile=compile,
    )


def read_description(folder: Path) -> tuple[Description, str]:
    """What head.json says, and the hash of all weights."""
    path = folder / HEAD_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = Description.from_json(raw)
        weights_id, head_sha = str(raw["weights_id"]), str(raw["head_sha256"])
        head_bytes = (folder / HEAD_WEIGHTS).read_bytes()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            got=f"{folder} ({type(error).__name__}: {error})",
            expected=f"a folder that bocage finetune wrote, with {HEAD_FILE} and {HEAD_WEIGHTS}",
            fix="pass the folder given to bocage finetune --out",
        ) from error
    if hashlib.sha256(head_bytes).hexdigest() != head_sha:
        raise ModelError(
            got=f"{folder / HEAD_WEIGHTS} that does not belong to {HEAD_FILE}",
            expected="files of one run",
            fix="run bocage finetune again with the same --out; it goes on where it stopped",
        )
    return found, weights_id


def build_saved(folder: Path, description: Description) -> TokenNetwork:
    """The network of a folder with its weights."""
    encoder, _, _ = read_encoder(read_config(folder / CONFIG_FILE), folder / WEIGHTS)
    network = TokenNetwork(
        encoder,
        description.head,
        patch_size=description.patch_size,
        features=description.features,
        query_px=description.query_px,
    )
    _fill(network.head, folder / HEAD_WEIGHTS)
    return network


def _fill(module: nn.Module, path: Path, *, prefix: str = "") -> None:
    try:
        tensors = {n.removeprefix(prefix): x for n, x in load(path.read_bytes()).items()}
        module.load_state_dict(tensors, strict=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            got=f"{path} ({first})",
            expected="the weights that head.json describes",
            fix="run bocage finetune again with the same --out",
        ) from error


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {n: x.detach().cpu().contiguous() for n, x in module.state_dict().items()}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
