"""What tests of the engine share: pairs of encoders, and how near they must be."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.latent_mim import LatentMIM
from torch import Tensor
from torch.nn import functional

from bocage.models import native
from bocage.models.encoder import Encoder
from bocage.models.engine import FastEncoder, fast_encoder
from bocage.models.releases import release_config

from ..official import official_model, our_encoder

NO_KERNELS = native.why_unavailable()
needs_kernels = pytest.mark.skipif(NO_KERNELS is not None, reason=str(NO_KERNELS))

FP32_MAX_ABS = 2e-5
BF16_MEAN_COSINE, BF16_LOW_COSINE = 0.9995, 0.998


@lru_cache(maxsize=8)
def pair(version: str, size: str) -> tuple[Encoder, LatentMIM]:
    official = official_model(version, size)
    return our_encoder(official, release_config(version, size)), official


@lru_cache(maxsize=16)
def engine(version: str, size: str, precision: str) -> FastEncoder:
    found = fast_encoder(pair(version, size)[0], precision=precision)
    assert found is not None
    assert "AMX" in found.description
    return found


def check_gate(official: Tensor, ours: Tensor, precision: str) -> None:
    """The bounds of the equivalence gate, on tokens [..., D]."""
    if precision == "fp32":
        assert (official - ours).abs().max() <= FP32_MAX_ABS
        return
    cosine = functional.cosine_similarity(official, ours, dim=-1).flatten()
    assert cosine.mean() >= BF16_MEAN_COSINE
    assert cosine.quantile(0.01) >= BF16_LOW_COSINE


def logs_of_two_processes(code: str, cache: Path) -> list[str]:
    """What ``code`` prints in one process and then in another, with a cache of their own."""
    environment = {**os.environ, "BOCAGE_CACHE": str(cache)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    command = [sys.executable, "-c", code]
    return [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
