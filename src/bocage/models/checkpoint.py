"""Strict loading of weights: every tensor that is needed, with its shape, or an error.

Only the tensors that are asked for are read from disk. What else may be in a file is a closed
list: the parts of pretraining (decoder, target encoder, heads, embedders of maps). Anything
unknown is an error, because a name that nothing matches is how random weights go unnoticed.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bocage.errors import ModelError
from bocage.sensors import MAPS

PREFIXES = ("", "model.")
"""What may stand before official names; wrapper classes and Lightning add ``model.``."""

TRAINING_PARTS = (
    "decoder.",
    "target_encoder.",
    "reconstructor.",
    "supervision_head.",
    "location_token_distillation_head.",
    "encoder.project_and_aggregate.",
)
"""Beginnings of names that only pretraining needs."""

_OLD_NAMES = re.compile(r"^encoder\.(register_bottleneck|perceiver)\.")
_DROPPED = re.compile(r"composite_encodings\.pos_embed$")
_MAP_TENSORS = re.compile(
    r"^encoder\.(patch_embeddings\.per_modality_embeddings|"
    r"composite_encodings\.per_modality_channel_embeddings)\."
    rf"({'|'.join(MAPS)}|sentinel2_l2a|sentinel1|landsat)(\.|$)"
)
_DAMAGED = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
)
"""What the two readers raise on files that are cut off or of another kind."""

_MARK = "blocks.0.norm1.weight"
"""A tensor of every encoder; it shows where the encoder's names begin."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What was read from a file of weights, and what was left."""

    source: str
    """File."""

    prefix: str
    """What stood before the official names."""

    matched: int
    """Tensors loaded; always all that the network has."""

    n_parameters: int
    """Numbers in them."""

    skipped: dict[str, int] = field(default_factory=dict)
    """Tensors left in the file, by part: they serve pretraining only."""

    def __str__(self) -> str:
        left = ", ".join(f"{count} of {part}" for part, count in self.skipped.items()) or "nothing"
        return (
            f"{self.matched} of {self.matched} tensors matched ({self.n_parameters:,} parameters) "
            f"from {self.source}; left unread: {left}"
        )


def load_tensors(
    path: Path, wanted: Mapping[str, torch.Size]
) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors named in ``wanted`` (official names, with shapes) from a .pth or .safetensors.

    Raises ModelError on a damaged file, on missing or unknown names, and on other shapes.
    """
    file_names, read = _open(path)
    names, prefix = _official_names(file_names, path)
    missing = sorted(set(wanted) - set(names))
    extra = {name: _part(name) for name in names if name not in wanted}
    unknown = sorted(name for name, part in extra.items() if part is None)
    if missing or unknown:
        raise ModelError(
            got=f"weights {path} with {_few('no', missing)}"
            f"{' and ' if missing and unknown else ''}{_few('unknown', unknown)}",
            expected=f"the {len(wanted)} tensors of this network",
            fix="use the weights of this release and size, with their own config.json",
        )
    tensors = {}
    for name, shape in wanted.items():
        tensor = read(names[name])
        if tensor.shape != shape:
            raise ModelError(
                got=f"{name} of shape {list(tensor.shape)} in {path}",
                expected=f"shape {list(shape)}: these are weights of another release or size",
                fix="load them under their own name or with their own config.json",
            )
        # Memory of its own: a file may be replaced while its model is in use.
        tensors[name] = tensor.to(torch.float32, copy=True)
    skipped = Counter(part for part in extra.values() if part is not None)
    report = LoadReport(
        source=str(path),
        prefix=prefix,
        matched=len(tensors),
        n_parameters=sum(tensor.numel() for tensor in tensors.values()),
        skipped=dict(skipped),
    )
    return tensors, report


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and bytes of fp32 tensors, sorted by name: the identity of the weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        values = tensors[name].detach().cpu().contiguous().numpy()
        digest.update(values.view(np.uint8).data)
    return digest.hexdigest()


def _official_names(names: list[str], path: Path) -> tuple[dict[str, str], str]:
    """Official name (encoder.…) to name in the file, and the prefix that was there.

    The encoder is where its first norm is; the other parts stand beside it.
    """
    for prefix in PREFIXES:
        if f"{prefix}encoder.{_MARK}" in names:
            beside, add = prefix, ""
            break
        if f"{prefix}{_MARK}" in names:
            beside, add = prefix, "encoder."
            break
    else:
        raise ModelError(
            got=f"weights {path} with {_few('tensors like', sorted(names))}",
            expected=f"an OlmoEarth encoder (encoder.{_MARK})",
            fix="pass the weights.pth that was published with the model",
        )
    official = {}
    for name in names:
        if not name.startswith(beside):
            raise ModelError(
                got=f"tensor {name} in {path}",
                expected=f"names that begin with {beside!r} like the others",
                fix="pass the state dict of the model alone",
            )
        plain = add + name.removeprefix(beside)
        if not _DROPPED.search(plain):
            official[_OLD_NAMES.sub("encoder.attention_pooler.", plain)] = name
    return official, beside + ("encoder." if not add else "")


def _part(name: str) -> str | None:
    """The training-only part a tensor belongs to, or None if it is unknown."""
    for part in TRAINING_PARTS:
        if name.startswith(part):
            return part.rstrip(".")
    return "encoder's maps" if _MAP_TENSORS.match(name) else None


def _few(word: str, names: list[str]) -> str:
    """Words like: no a, b, c and 5 more; nothing for no names."""
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{word} {', '.join(names[:3])}{more}"


def _open(path: Path) -> tuple[list[str], Callable[[str], Tensor]]:
    """Names in a file, and a function that reads one tensor of it."""
    try:
        if path.suffix == ".safetensors":
            slices: Any = safe_open(path, framework="pt")
            return list(slices.keys()), slices.get_tensor
        # Mapped: tensors that are not used are never read. (torch before 1.6 wrote no zip files.)
        mapped = zipfile.is_zipfile(path)
        loaded = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
        tensors = dict(_state_dict(loaded))
        return list(tensors), tensors.__getitem__
    except FileNotFoundError as error:
        raise ModelError(
            got=f"no weights at {path}",
            expected="a .pth or .safetensors file",
            fix="pass weights=PATH of an existing file, or weights=None for random weights",
        ) from error
    except _DAMAGED as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            got=f"unreadable weights {path} ({first_line})",
            expected="a complete .pth or .safetensors file of tensors",
            fix="download the file again",
        ) from error


def _state_dict(loaded: object) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a flat state dict, also inside a Lightning checkpoint."""
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded:
        raise ValueError("no state dict inside")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{name!r} is not a tensor")
        yield name, tensor
