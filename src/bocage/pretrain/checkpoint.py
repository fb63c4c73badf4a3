"""Checkpoints that are either whole or absent, without pickle.

A folder per checkpoint: ``model.safetensors``, ``optimizer.safetensors`` and ``state.json``. It is
written beside its place and renamed, so a killed run never leaves half of one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bocage.embeddings.atomic import PARTIAL_SUFFIX, directory_in_place, flush_to_disk
from bocage.errors import ModelError

FOLDER = "checkpoints"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_NAME = re.compile(r"step_(\d{8})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped."""

    step: int
    """Updates done."""

    model: Mapping[str, Tensor]
    """State of the network by name."""

    optimizer: Mapping[str, Tensor]
    """State of the optimizer, see optimizer_tensors."""

    state: Mapping[str, Any]
    """What else is counted: samples seen, hours, kWh."""


def save_checkpoint(run: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write a checkpoint of a run and delete all but the newest ``keep``."""
    root = run / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(f".*{PARTIAL_SUFFIX}"):  # of a run that was killed while writing
        shutil.rmtree(leftover, ignore_errors=True)
    path = root / f"step_{checkpoint.step:08d}"
    if not path.exists():
        with directory_in_place(path) as folder:
            save_file(_plain(checkpoint.model), folder / MODEL)
            save_file(_plain(checkpoint.optimizer), folder / OPTIMIZER)
            (folder / STATE).write_text(
                json.dumps({"step": checkpoint.step, **checkpoint.state}, indent=1)
            )
            for name in (MODEL, OPTIMIZER, STATE):
                flush_to_disk(folder / name)
    for old in list_checkpoints(run)[:-keep]:
        # A kill in the middle of deleting must not leave half a checkpoint under its name.
        doomed = old.with_name(f".{old.name}{PARTIAL_SUFFIX}")
        old.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return path


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [p for p in (run / FOLDER).glob("step_*") if _NAME.fullmatch(p.name)]
    return sorted(found)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, None if there is none yet."""
    return next(reversed(list_checkpoints(run)), None)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; ModelError names the damaged file."""
    return Checkpoint(
        state=(state := load_state(path)),
        step=int(state["step"]),
        model=load_tensors_of(path / MODEL),
        optimizer=load_tensors_of(path / OPTIMIZER),
    )


def load_state(path: Path) -> dict[str, Any]:
    """The counts of a checkpoint, without its tensors."""
    try:
        state = json.loads((path / STATE).read_text())
        int(state["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path / STATE, error) from error
    return dict(state)


def load_tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of one file of a checkpoint."""
    try:
        # In memory of its own: the file may be deleted while the run goes on.
        return {name: x.clone() for name, x in load_file(path).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        got=f"unreadable {path} ({(str(error).splitlines() or [''])[0][:160]})",
        expected="a checkpoint of bocage pretrain run",
        fix=f"delete the folder {path.parent} to go on from the checkpoint before it",
    )
