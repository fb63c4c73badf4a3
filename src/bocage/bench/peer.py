"""The official package in the same process, as its own evaluations run it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from bocage.errors import ConfigError
from bocage.models.config import ModelConfig
from bocage.models.encoder import Encoder
from bocage.sensors import SENSORS

Forward = Callable[[], Tensor]


def official_encoder(version: str, size: str, seed: int = 0) -> Any:
    """The encoder of the official package with random weights; ConfigError if not installed."""
    try:
        from olmoearth_pretrain_minimal import (  # type: ignore[import-untyped]
            OlmoEarthPretrain_v1,
        )
        from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn import (  # type: ignore[import-untyped]
            flexi_vit,
        )
    except ImportError as error:
        raise ConfigError(
            got="a benchmark against the official package, which is not installed",
            expected="olmoearth-pretrain-minimal",
            fix="pip install olmoearth-pretrain-minimal, or run without peer",
        ) from error
    # The package joins and splits sensors in the order of a set, which may differ between the two.
    flexi_vit.get_modalities_to_process = lambda available, supported: [
        name for name in supported if name in available
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OlmoEarthPretrain_v1(size, version, supported_modality_names=list(SENSORS))
    return model.model.encoder.eval()


def with_weights_of(official: Any, config: ModelConfig) -> Encoder:
    """Our encoder with the official one's weights."""
    with torch.device("meta"):
        encoder = Encoder(config)
    weights = official.state_dict()
    encoder.load_state_dict({n: weights[n].clone() for n in encoder.state_dict()}, assign=True)
    return encoder.eval()


def official_sample(values: dict[str, Tensor], timestamps: Tensor) -> Any:
    """A complete sample, nothing masked."""
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import (  # type: ignore[import-untyped]
        MaskedOlmoEarthSample,
    )

    parts: dict[str, Tensor] = {"timestamps": timestamps}
    for name, x in values.items():
        parts[name] = x
        parts[f"{name}_mask"] = x.new_zeros(*x.shape[:4], 3)
    return MaskedOlmoEarthSample(**parts)


def official_forward(
    official: Any,
    values: dict[str, Tensor],
    timestamps: Tensor,
    patch_size: int,
    precision: str,
    *,
    mean: bool = False,
) -> Forward:
    """The call to time: the fast path without masks, then the map [B, h, w, D].

    The map is the mean, or the student of v1.3 unless ``mean``. bf16 is autocast, the package's
    documented way.
    """
    sample = official_sample(values, timestamps)
    device = timestamps.device.type

    def forward() -> Tensor:
        half = precision == "bf16"
        with torch.autocast(device, torch.bfloat16) if half else nullcontext():
            output = official(sample, patch_size=patch_size, fast_pass=True)
            student: Tensor | None = output.get("student_location_tokens")
            if student is not None and not mean:
                return student.float()
            tokens = output["tokens_and_masks"]
            means = [getattr(tokens, name).mean(dim=(3, 4)) for name in values]
            return torch.stack(means).mean(dim=0)

    return forward
