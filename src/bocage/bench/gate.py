"""The equivalence gate: a fast row counts only if its answers are those of the official fp32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

FP32_MAX_ABS = 2e-5
MEAN_COSINE = {"bf16": 0.9995, "tf32": 0.9995, "int8": 0.999}
LOW_COSINE = {"bf16": 0.998, "tf32": 0.998}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The comparison of one output with the reference."""

    passed: bool
    max_abs: float
    mean_cosine: float
    low_cosine: float
    """1st percentile."""

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return (
            f"{verdict}: max abs {self.max_abs:.1e}, cosine mean {self.mean_cosine:.6f} "
            f"p1 {self.low_cosine:.6f}"
        )


def check_gate(reference: Tensor, x: Tensor, precision: str) -> Gate:
    """Compare vectors [..., D] with those of the official fp32 encoder."""
    reference, x = reference.float(), x.float()
    cosine = functional.cosine_similarity(reference, x, dim=-1).flatten()
    low = float(torch.from_numpy(cosine.cpu().numpy()).kthvalue(max(1, len(cosine) // 100)).values)
    max_abs, mean = float((reference - x).abs().max()), float(cosine.mean())
    passed = (
        max_abs <= FP32_MAX_ABS
        if precision == "fp32"
        else mean >= MEAN_COSINE[precision] and low >= LOW_COSINE.get(precision, -1.0)
    )
    return Gate(passed=passed, max_abs=max_abs, mean_cosine=mean, low_cosine=low)
