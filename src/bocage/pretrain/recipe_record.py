"""run.json: the recipe of a run as it was resolved, the data, and the versions that ran it.

A run goes on only with the recipe and the data that began it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bocage._version import __version__
from bocage.difference import describe_difference
from bocage.embeddings.atomic import naming_failures, write_file
from bocage.errors import ConfigError, ModelError
from bocage.learn.predict.record import versions_of
from bocage.models.config import ModelConfig
from bocage.models.config_json import config_to_json, parse_config
from bocage.pretrain.checkpoint import list_checkpoints
from bocage.pretrain.recipe import Recipe
from bocage.pretrain.sample import Samples

FILE = "run.json"
_PACKAGES = ("numpy", "torch", "safetensors", "zarr", "h5py")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What an export needs to know of a run."""

    model: ModelConfig
    seed: int
    """Of the initial weights."""

    content: Mapping[str, Any]
    """The whole file."""


def data_identity(data: Samples) -> dict[str, Any]:
    """What tells two collections of samples apart, wherever they lie."""
    digest = hashlib.sha256()
    for index in range(len(data)):
        digest.update(data.sample_id(index).encode() + b"\n")
    return {
        "n_samples": len(data),
        "modalities": list(data.modalities),
        "size_px": data.size_px,
        "max_steps": data.max_steps,
        "ids_sha256": digest.hexdigest(),
    }


def begin_record(run: Path, recipe: Recipe, data: Mapping[str, Any]) -> None:
    """Write the record of a new run, or refuse to go on with another recipe or other data."""
    wanted = {"recipe": recipe.to_json(), "data": dict(data)}
    path = run / FILE
    if path.exists():
        content = _read(path)
        begun = {name: content.get(name) or {} for name in wanted}
        difference = describe_difference(
            {**begun["recipe"], "data": begun["data"]}, {**wanted["recipe"], "data": wanted["data"]}
        )
        if difference and list_checkpoints(run):
            raise ConfigError(
                got=f"{run}, which was begun with {difference}",
                expected="the recipe and data of the run",
                fix="use the same options to go on, or another --out for a new run",
            )
        if not difference:
            return
        # Nothing was saved yet: the run begins anew.
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(
            got=f"{run}, which is not a run and not empty",
            expected="a new folder, or one of an earlier run",
            fix="choose another --out",
        )
    content = {
        "bocage": __version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config_to_json(recipe.model),
        **wanted,
        "versions": {
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            **versions_of(_PACKAGES),
        },
    }
    with naming_failures(run):
        run.mkdir(parents=True, exist_ok=True)
    _write(path, content)


def add_to_record(run: Path, **facts: Any) -> None:
    """Add what is known at the end: steps, energy, seconds."""
    _write(run / FILE, {**_read(run / FILE), **facts})


def read_record(run: Path) -> RunRecord:
    """The record of a run; ModelError if the folder is not one."""
    content = _read(run / FILE)
    try:
        return RunRecord(
            model=parse_config(content["config"], where=str(run / FILE)),
            seed=int(content["recipe"]["seed"]),
            content=content,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _no_run(run, error) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _no_run(path.parent, error) from error
    return dict(content)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _no_run(run: Path, error: Exception) -> ModelError:
    return ModelError(
        got=f"{run} without a readable {FILE} ({type(error).__name__})",
        expected="the folder of a pretraining run",
        fix="pass the --out of bocage pretrain run",
    )
