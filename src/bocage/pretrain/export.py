"""From a run to a model folder: the official layout, or safetensors.

``config.json`` and ``weights.pth`` are what the official package loads strictly; the same folder
goes into ``bocage.load_model``. Releases before v1.3 keep a whole copy of the untrained encoder as
target; it is made again from the seed of the run, since training needs its patch embedding alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bocage.embeddings.atomic import directory_in_place, write_file
from bocage.errors import ConfigError, ModelError
from bocage.models.checkpoint import weights_hash
from bocage.models.config import ModelConfig
from bocage.models.config_json import config_to_json
from bocage.models.predictor import PretrainingModel
from bocage.pretrain.checkpoint import (
    MODEL,
    latest_checkpoint,
    list_checkpoints,
    load_state,
    load_tensors_of,
)
from bocage.types import PathLike

FORMATS = ("official", "safetensors", "encoder")
"""official: weights.pth; safetensors: the same tensors; encoder: what embedding needs, no more."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
CARD = "export.json"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    folder: Path
    step: int
    n_tensors: int
    n_bytes: int
    weights_id: str
    """sha256 of the encoder's tensors, as ``load_model(folder).weights_id``."""


def export(
    run: PathLike,
    out: PathLike,
    *,
    format: str = "official",  # noqa: A002
    dtype: str = "fp32",
    step: int | None = None,
) -> Exported:
    """Write the newest (or the given) checkpoint of a run as a model folder.

    Works while the run goes on. ``format`` is one of FORMATS, ``dtype`` fp32 or fp16 (official
    files are fp32). Raises ModelError if there is no checkpoint, StoreError if ``out`` exists.
    """
    if format not in FORMATS or dtype not in DTYPES or (format == "official" and dtype != "fp32"):
        raise ConfigError(
            got=f"format {format!r} with dtype {dtype!r}",
            expected=f"one of {', '.join(FORMATS)}, with fp32, or fp16 for safetensors and encoder",
            fix="correct --format or --dtype",
        )
    from bocage.pretrain.recipe_record import read_record

    run, out = Path(run), Path(out)
    recipe = read_record(run)
    path = _find(run, step)
    state, tensors = load_state(path), load_tensors_of(path / MODEL)
    config = recipe.model
    if format == "encoder":
        wanted = [n for n in encoder_names(config) if n in tensors]
        tensors = {n: tensors[n] for n in wanted}
    else:
        tensors = official_tensors(config, tensors, seed=recipe.seed)
    encoder = {n: tensors[n].to(DTYPES[dtype]).float() for n in encoder_names(config)}
    weights_id = weights_hash(encoder)
    tensors = {n: x.to(DTYPES[dtype]).contiguous() for n, x in tensors.items()}
    with directory_in_place(out) as folder:
        write_file(folder / "config.json", _json(config_to_json(config)))
        if format == "official":
            torch.save(tensors, folder / "weights.pth")
        else:
            save_file(tensors, folder / "weights.safetensors")
        card = {"step": state["step"], "weights_id": weights_id, "dtype": dtype, "run": state}
        write_file(folder / CARD, _json(card))
    return Exported(
        folder=out,
        step=int(state["step"]),
        n_tensors=len(tensors),
        n_bytes=sum(p.stat().st_size for p in out.iterdir()),
        weights_id=weights_id,
    )


def encoder_names(config: ModelConfig) -> list[str]:
    """Names of the tensors that embedding needs."""
    from bocage.models.encoder import Encoder

    with torch.device("meta"):
        return [f"encoder.{name}" for name in Encoder(config).state_dict()]


def official_tensors(
    config: ModelConfig, tensors: Mapping[str, Tensor], *, seed: int
) -> dict[str, Tensor]:
    """The tensors of an official file of this network: no training heads, targets as released."""
    with torch.device("meta"):
        wanted = list(PretrainingModel(config).state_dict())
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ModelError(
            got=f"a checkpoint without {missing[0]} and {len(missing) - 1} other tensors",
            expected="the network that run.json describes",
            fix="export the run with the run.json it was trained with",
        )
    official = {name: tensors[name] for name in wanted}
    if config.projection_only_target:
        return official
    from bocage.pretrain.architecture import make_pretraining_model

    start = make_pretraining_model(config, seed).encoder.state_dict()
    for name, x in start.items():
        # The patch embedding is the one that was trained against (whitening may have changed it).
        official.setdefault(f"target_encoder.{name}", x)
    return official


def _find(run: Path, step: int | None) -> Path:
    path = latest_checkpoint(run)
    steps = [int(p.name.removeprefix("step_")) for p in list_checkpoints(run)]
    if path is None or (step is not None and step not in steps):
        raise ModelError(
            got=f"{run} with checkpoints {', '.join(map(str, steps)) or 'none'}",
            expected="a checkpoint" if step is None else f"one of step {step}",
            fix="pass the folder of a run that has saved one, and one of its steps",
        )
    return path if step is None else path.with_name(f"step_{step:08d}")


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
