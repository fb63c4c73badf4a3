"""The official package as the truth: its models with random weights, driven like ours."""

from __future__ import annotations

import numpy as np
import torch
from olmoearth_pretrain_minimal import OlmoEarthPretrain_v1
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn import flexi_vit
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.latent_mim import LatentMIM
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.config import Config
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import MaskedOlmoEarthSample

from bocage.models.config import ModelConfig
from bocage.models.config_json import config_to_json
from bocage.models.encoder import Encoder
from bocage.models.model import Model
from bocage.models.releases import release_config
from bocage.sensors import SENSORS

TOLERANCE = 2e-5


def _stable_order(available: list[str], supported: list[str]) -> list[str]:
    return [name for name in supported if name in available]


# The package orders modalities by iterating over sets, once to join the tokens and once to split
# them. Python's hash seed may give the two a different order (seed 122 on Python 3.11: 55 of 67
# comparisons fail), and then the tokens of one sensor come back under the name of another. A fixed
# order changes nothing else.
flexi_vit.get_modalities_to_process = _stable_order
ALL_SENSORS = tuple(SENSORS)


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Zeros and ones of a fresh model (biases, norms, channel embeddings) would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            flat = "bias" in name or "norm" in name or "channel_embeddings" in name
            if flat or name.endswith("mask_token"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def official_model(version: str, size: str, seed: int = 0) -> LatentMIM:
    """A published architecture of the official package, or v1.3 at another size."""
    torch.manual_seed(seed)
    if (version, size) in {("v1.3", "nano"), ("v1.3", "tiny")}:
        raw = config_to_json(release_config(version, size))
        model = Config.from_dict(raw["model"]).build()
    else:
        model = OlmoEarthPretrain_v1(size, version).model
    randomize(model, seed)
    return model.eval()


def our_encoder(official: LatentMIM, config: ModelConfig) -> Encoder:
    """Our encoder with the official encoder's weights."""
    with torch.device("meta"):
        encoder = Encoder(config)
    weights = official.encoder.state_dict()
    encoder.load_state_dict({n: weights[n] for n in encoder.state_dict()}, assign=True)
    return encoder.eval()


def our_model(official: LatentMIM, config: ModelConfig) -> Model:
    return Model(our_encoder(official, config), name="test", weights_id="test")


def random_values(
    sensors: tuple[str, ...], shape_bhwt: tuple[int, int, int, int], seed: int = 0
) -> dict[str, torch.Tensor]:
    """Normalized values [B, H, W, T, C] in the range that real imagery has."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(*shape_bhwt, len(SENSORS[name].bands), generator=generator)
        for name in sensors
    }


def random_dates(n_batch: int, n_times: int, seed: int = 0) -> torch.Tensor:
    """Stamps [B, T, 3]: real, uneven dates over several years, other ones for each sample."""
    rng = np.random.default_rng(seed)
    days = np.sort(rng.choice(2000, (n_batch, n_times), replace=False), axis=1)
    dates = np.datetime64("2018-01-01") + days
    months = dates.astype("datetime64[M]")
    years = dates.astype("datetime64[Y]")
    stamps = [(dates - months).astype(int) + 1, months.astype(int) % 12, years.astype(int) + 1970]
    return torch.from_numpy(np.stack(stamps, axis=-1))


def official_sample(
    values: dict[str, torch.Tensor],
    timestamps: torch.Tensor,
    visible_pixels: dict[str, torch.Tensor] | None = None,
) -> MaskedOlmoEarthSample:
    """A sample with masks [B, H, W, T, S]: 0 where visible, 3 (missing) elsewhere."""
    parts: dict[str, torch.Tensor] = {"timestamps": timestamps}
    for name, x in values.items():
        parts[name] = x
        # Any last size will do as long as it holds the band sets.
        mask = torch.zeros(*x.shape[:4], max(x.shape[-1], 3), dtype=torch.long)
        if visible_pixels is not None:
            mask[~visible_pixels[name]] = 3
        parts[f"{name}_mask"] = mask
    return MaskedOlmoEarthSample(**parts)


def max_difference(ours: dict[str, torch.Tensor], theirs: object) -> float:
    return max(float((x - getattr(theirs, name)).abs().max()) for name, x in ours.items())
