"""``load_model``: from a name or a folder to a model that is ready to encode."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path

import torch

from bocage.errors import ModelError
from bocage.memory import share_one_arena
from bocage.models.bundled import BUNDLED, bundled_folder, notice
from bocage.models.checkpoint import LoadReport, load_tensors, weights_hash
from bocage.models.config import ModelConfig
from bocage.models.config_json import read_config
from bocage.models.encoder import Encoder
from bocage.models.hub import hub_file
from bocage.models.model import Model
from bocage.models.predictor import PretrainingModel
from bocage.models.releases import RELEASES, find_release
from bocage.types import PathLike

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("weights.safetensors", "model.safetensors", "weights.pth")
CONFIG_FILE = "config.json"


def load_model(
    name: PathLike,
    *,
    weights: PathLike | None = "hub",
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    compile: bool | str = "auto",  # noqa: A002
    seed: int = 0,
) -> Model:
    """Load an OlmoEarth encoder by name, by Hugging Face id, or from a folder.

    ``name``: ``olmoearth-v1.2-tiny``, ``allenai/OlmoEarth-v1_2-Tiny``, ``bocage-nano`` (the small
    demonstration model inside this package, Sentinel-2 alone), or a folder that holds
    ``config.json`` and ``weights.pth`` (or ``.safetensors``); write ``./NAME`` for a folder that is
    called like a published model. ``weights``: ``"hub"`` takes the
    official file (for a folder: the file in it), a path takes that file, None takes random
    weights from ``seed``. ``precision``: ``"fp32"``, ``"bf16"`` (weights too; norms, softmax and
    rotations stay fp32), ``"int8"`` (base and larger, CPUs with AMX), or ``"auto"``: the
    fastest that passes its gate here.
    ``compile``: ``"auto"`` builds the fast engine where there is a compiler, True insists on it,
    False runs the plain encoder; ``model.engine.description`` says what was picked and why.

    Only the encoder is read and kept. ``model.load_report`` says what matched. Raises ModelError
    if anything is missing, unknown, of another shape, damaged or unreachable.
    """
    share_one_arena()
    release = find_release(name) if isinstance(name, str) else None
    bundled = bundled_folder(name) if isinstance(name, str) else None
    folder = bundled or Path(name)
    if release is not None:
        config, title = release.config, release.name
    elif folder.is_dir():
        config, title = read_config(folder / CONFIG_FILE), folder.resolve().name
    else:
        raise _unknown_model(name)
    if weights is None:
        logger.warning("%s has random weights: its embeddings mean nothing", title)
        return Model(
            random_encoder(config, seed),
            name=title,
            weights_id=f"random:{seed}",
            device=device,
            precision=precision,
            compile=compile,
        )
    if str(weights) != "hub":
        path = Path(weights)
        path = weights_in(path) if path.is_dir() else path
    elif release is None:
        path = weights_in(folder)
    else:
        config = read_config(hub_file(release.hub_id, CONFIG_FILE))
        path = hub_file(release.hub_id, "weights.pth")
        logger.info(
            "official weights of %s are under the OlmoEarth Artifact License, which excludes "
            "military and extractive uses",
            release.hub_id,
        )
    if bundled is not None and str(weights) == "hub":
        logger.warning("%s", notice(title))
    encoder, weights_id, report = read_encoder(config, path)
    logger.info("%s: %s", title, report)
    return Model(
        encoder,
        name=title,
        weights_id=weights_id,
        load_report=report,
        device=device,
        precision=precision,
        compile=compile,
    )


def random_encoder(config: ModelConfig, seed: int) -> Encoder:
    """An encoder initialized as for pretraining; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(config)


def read_encoder(config: ModelConfig, path: Path) -> tuple[Encoder, str, LoadReport]:
    """The encoder with the weights of a file, their sha256, and what was matched."""
    with torch.device("meta"):
        encoder = Encoder(config)  # shapes and names without memory
    tensors, report = _fill(encoder, path, prefix="encoder.")
    return encoder, weights_hash(tensors), report


def read_pretraining_model(config: ModelConfig, path: Path) -> tuple[PretrainingModel, LoadReport]:
    """Encoder, predictor and targets with the weights of a file, to go on with pretraining."""
    with torch.device("meta"):
        model = PretrainingModel(config)
    _, report = _fill(model, path, prefix="")
    return model, report


def _fill(
    module: torch.nn.Module, path: Path, *, prefix: str
) -> tuple[dict[str, torch.Tensor], LoadReport]:
    """Put the tensors of a file in the place of the shapes of a module on the meta device."""
    trainable = {name: p.requires_grad for name, p in module.named_parameters()}
    wanted = {prefix + name: x.shape for name, x in module.state_dict().items()}
    tensors, report = load_tensors(path, wanted)
    module.load_state_dict(
        {name.removeprefix(prefix): x for name, x in tensors.items()}, strict=True, assign=True
    )
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trainable[name])
    return tensors, report


def weights_in(folder: Path) -> Path:
    """The one file of weights in a folder."""
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ModelError(
            got=f"{folder} with weight files: {names}",
            expected=f"exactly one of {', '.join(WEIGHT_FILES)}",
            fix="pass weights=PATH of the file to use, or weights=None for random weights",
        )
    return found[0]


def _unknown_model(name: PathLike) -> ModelError:
    near = difflib.get_close_matches(str(name).lower(), [*RELEASES, *BUNDLED], n=1, cutoff=0.6)
    return ModelError(
        got=f"model {str(name)!r}, which is neither a known name nor an existing folder",
        expected=f"one of {', '.join([*RELEASES, *BUNDLED])}, or a folder with config.json "
        "and weights",
        fix=f"did you mean {near[0]}?" if near else "check the spelling or the path",
    )
