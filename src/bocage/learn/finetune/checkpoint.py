"""The state of a run in one file, whole or absent, so that a killed run goes on to the same end.

Weights, buffers and the optimizer's moments are tensors of a .safetensors file; everything else is
JSON in its header. Nothing random needs to be kept: each step draws from its own number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bocage.embeddings.atomic import write_file
from bocage.errors import ConfigError, StoreError

STATE_FILE = "state.safetensors"


def write_state(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Keep the run as it is."""
    tensors = {f"network.{n}": x.detach().cpu() for n, x in network.state_dict().items()}
    names = {id(p): n for n, p in network.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, x in state.items():
            tensors[f"optimizer.{key}.{names[id(parameter)]}"] = x.detach().cpu()
    # Copies: safetensors refuses tensors that share memory.
    packed = {n: x.clone().contiguous() for n, x in tensors.items()}
    write_file(folder / STATE_FILE, save(packed, metadata={"bocage": json.dumps(progress)}))


def read_progress(folder: Path) -> dict[str, Any] | None:
    """How far the run of a folder got; None if there is none."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            found: dict[str, Any] = json.loads(file.metadata()["bocage"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return found


def read_state(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put network and optimizer where the run of a folder stood."""
    path = folder / STATE_FILE
    parameters = dict(network.named_parameters())
    own: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                part, _, rest = name.partition(".")
                if part == "network":
                    own[rest] = file.get_tensor(name)
                    continue
                key, _, parameter = rest.partition(".")
                x = file.get_tensor(name)
                p = parameters[parameter]
                # AdamW keeps its count of steps on the CPU.
                optimizer.state[p][key] = x if key == "step" else x.to(p.device)
        network.load_state_dict(own, strict=True)
    except (SafetensorError, OSError, RuntimeError, KeyError) as error:
        raise _damaged(path, error) from error


def check_identity(folder: Path, mine: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse to go on with other settings or data than the run of a folder began with."""
    different = [
        f"{name} {found.get(name)!r}, now {value!r}"
        for name, value in mine.items()
        if found.get(name) != value
    ]
    if different:
        raise ConfigError(
            got=f"{folder} with a run of other settings ({'; '.join(different[:4])})",
            expected="the same settings and data to go on, or a new folder",
            fix="choose another --out, or delete the folder",
        )


def _damaged(path: Path, error: Exception) -> StoreError:
    first = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return StoreError(
        got=f"{path} that cannot be read ({first})",
        expected="the state of a fine-tuning run",
        fix="delete the file to train from the beginning",
    )
