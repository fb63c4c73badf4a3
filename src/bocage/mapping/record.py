"""run.json: how an output was made, enough to make it again."""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bocage._version import __version__
from bocage.embeddings.atomic import write_file
from bocage.errors import ConfigError
from bocage.mapping.plan import EmbedPlan

_PACKAGES = ("numpy", "torch", "xarray", "zarr", "rasterio")


def path_of(out: Path) -> Path:
    """Where the record of an output lies: emb.zarr has emb.zarr.run.json beside it."""
    return out.with_name(f"{out.name}.run.json")


def read(out: Path) -> dict[str, Any] | None:
    """The record of an output, None if there is none."""
    path = path_of(out)
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def write(
    out: Path,
    plan: EmbedPlan,
    request: dict[str, Any] | None,
    *,
    valid_fraction: float,
    seconds: dict[str, float],
) -> Path:
    """Write the record beside the output, in one step."""
    content = {
        "bocage": __version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": plan.fingerprint,
        "request": request,
        "resolved": plan.identity,
        "output": {
            "shape_yx": list(plan.cell_grid.shape_yx),
            "dims": plan.dims,
            "years": list(plan.years),
            "valid_fraction": valid_fraction,
        },
        "seconds": seconds,
        "versions": {
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            **{name: found for name in _PACKAGES if (found := _version(name))},
        },
    }
    path = path_of(out)
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())
    return path


def read_request(path: Path) -> dict[str, Any]:
    """What the user asked for in an earlier run, from its run.json; for --config."""
    try:
        content = json.loads(path.read_text())
        request = content["request"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            got=f"--config {path} ({type(error).__name__})",
            expected="a run.json that bocage wrote",
            fix="pass the NAME.run.json beside an output",
        ) from error
    if not isinstance(request, dict):
        raise ConfigError(
            got=f"--config {path} of a run started from Python",
            expected="a run.json of a run started from the command line",
            fix="pass the options themselves",
        )
    return request


def _version(package: str) -> str | None:
    # Asking the installer's files takes 2 ms each, which a module at work answers at once.
    loaded = getattr(sys.modules.get(package), "__version__", None)
    try:
        return loaded or version(package)
    except PackageNotFoundError:
        return None
