"""The int8 rules of public embedding stores, found by the name that the store gives.

    signed_power, signed_square   sign(q) * (|q| / 127.5) ** 2, -128 is nodata
                                  (OlmoEarth, AlphaEarth)
    per_pixel_scale               q * scales[y, x], nodata where the scale is NaN or infinite
                                  (TESSERA)
    linear                        q * scale + offset, nodata as stated

Two public documents describe AlphaEarth's codes as linear, which would read 0.25 as 0.5; an unknown
rule is refused, because every guess gives plausible numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bocage.embeddings.codecs import signed_power
from bocage.errors import StoreError
from bocage.types import FloatArray

_SIGNED_POWER = {"signed_power", "signed_square"}


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How stored numbers become real values."""

    method: str
    """signed_power, per_pixel_scale, linear, or none for floating point."""

    scale: float = 1.0
    """Of the linear rule; and what our own stores divided values by before signed_power."""

    offset: float = 0.0
    """Of the linear rule."""

    nodata: float | None = None
    """Stored value that means no data, besides NaN."""

    scales_array: str | None = None
    """Name of the array of per-pixel scales."""

    def decode(self, q: NDArray[Any], scales: NDArray[Any] | None = None) -> FloatArray:
        """Real values of stored numbers [T, D, y, x], NaN where there is no data."""
        if self.method == "signed_power":
            x = signed_power.decode(np.ascontiguousarray(q))
            return x if self.scale == 1 else np.multiply(x, np.float32(self.scale), out=x)
        x = q.astype(np.float32)
        if self.method == "per_pixel_scale":
            if scales is None:
                raise ValueError("per_pixel_scale needs the scales of the same pixels")
            usable = np.where(np.isfinite(scales), scales, np.nan).astype(np.float32)
            x *= usable
        elif self.method == "linear":
            x *= np.float32(self.scale)
            x += np.float32(self.offset)
        if self.nodata is not None:
            x[q == self.nodata] = np.nan
        return x


def quantization_of(
    attributes: Mapping[str, Any], dtype: np.dtype[Any], fill: float | None, where: str
) -> Quantization:
    """The rule a store declares under geoemb:quantization; StoreError if there is none we know."""
    if dtype.kind == "f":
        return Quantization(method="none", nodata=_finite(fill) if fill else None)
    stated = attributes.get("geoemb:quantization")
    if not isinstance(stated, Mapping) or "method" not in stated:
        raise StoreError(
            got=f"{where} with {dtype} codes and no quantization rule",
            expected="geoemb:quantization with a method",
            fix="ask the producer for the rule; a guess would give wrong values silently",
        )
    method = str(stated["method"])
    nodata = stated.get("nodata", fill)
    scale = stated.get("scale")
    scale = scale if isinstance(scale, Mapping) else {}
    if method in _SIGNED_POWER and dtype == np.int8:
        _check_power(stated, where)
        return Quantization(method="signed_power", nodata=signed_power.NODATA)
    if method == "per_pixel_scale":
        name = str(scale.get("array_name", "scales"))
        # Nodata is in the scales; the fill value 0 of the codes is a real value.
        return Quantization(method=method, scales_array=name)
    if method == "linear" and "scale" in scale:
        return Quantization(
            method=method,
            scale=float(scale["scale"]),
            offset=float(scale.get("offset", 0.0)),
            nodata=_finite(nodata),
        )
    raise StoreError(
        got=f"{where} quantized by {method!r} in {dtype}",
        expected="signed_power (int8), per_pixel_scale or linear with a scale",
        fix="dequantize it with the producer's own tool and store float32",
    )


def own_scale(provenance: Mapping[str, Any], quantization: Quantization) -> Quantization:
    """The rule with the scale that our own attributes state; other producers' have none."""
    if quantization.method != "signed_power" or "value_scale" not in provenance:
        return quantization
    return replace(quantization, scale=float(provenance["value_scale"]))


def _check_power(stated: Mapping[str, Any], where: str) -> None:
    power = stated.get("power")
    # Written either as the exponent of quantizing or as that of dequantizing.
    if power is not None and float(power) not in {0.5, 2.0}:
        raise StoreError(
            got=f"{where} with signed power {power}",
            expected="the square-root rule (power 0.5)",
            fix="dequantize it with the producer's own tool and store float32",
        )


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(float(value)) else None
