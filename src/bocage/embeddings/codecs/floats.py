"""Codecs that keep a number per dimension and learn at most one scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bocage.embeddings.codecs import signed_power
from bocage.embeddings.codecs.codec import Codec, row_blocks, training_sample
from bocage.errors import ConfigError

if TYPE_CHECKING:
    from bocage.types import CodeArray, FloatArray


class Float32(Codec):
    """The vectors as they are; the baseline of every comparison."""

    nodata: ClassVar[float | None] = float("nan")

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return self.dims

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Type of one entry."""
        return np.dtype(np.float32)

    def _fit(self, x: FloatArray) -> None: ...

    def _encode(self, x: FloatArray) -> CodeArray:
        return x.astype(self.code_dtype)

    def _decode(self, q: CodeArray) -> FloatArray:
        return q.astype(np.float32)


class Float16(Float32):
    """Half precision: 11 significant bits, values up to 65,504."""

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Type of one entry."""
        return np.dtype(np.float16)

    def _encode(self, x: FloatArray) -> CodeArray:
        return np.clip(x, -65504, 65504).astype(np.float16)


class Float8(Codec):
    """True fp8 (E4M3, round to nearest even) after one scale that maps the largest value to 448."""

    learned: ClassVar[tuple[str, ...]] = ("scale",)
    nodata: ClassVar[float | None] = 0x7F  # NaN in E4M3

    scale: FloatArray

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return self.dims

    def _fit(self, x: FloatArray) -> None:
        peak = float(np.abs(x).max())
        self.scale = np.array([448 / peak if peak > 0 else 1], np.float32)

    def _encode(self, x: FloatArray) -> CodeArray:
        scaled = np.clip(x * self.scale[0], -448, 448)
        q: CodeArray = scaled.astype(_e4m3()).view(np.uint8)
        return q

    def _decode(self, q: CodeArray) -> FloatArray:
        values: FloatArray = q.view(_e4m3()).astype(np.float32) / self.scale[0]
        return values


class SignedPower(Codec):
    """The public archives' int8: signed square root, no parameters (signed_power.py)."""

    nodata: ClassVar[float | None] = signed_power.NODATA

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return self.dims

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Type of one entry."""
        return np.dtype(np.int8)

    def _fit(self, x: FloatArray) -> None: ...

    def _encode(self, x: FloatArray) -> CodeArray:
        return signed_power.encode(x)

    def _decode(self, q: CodeArray) -> FloatArray:
        return signed_power.decode(q)


class SignedPowerGain(SignedPower):
    """Signed-power int8 after one gain for the corpus, so that its range is used.

    The public rule has steps for coordinates of magnitude near one. Unit vectors of 1,024
    dimensions have 0.03 and come back at cosine 0.9997; unnormalized tokens above one are clipped.
    One scalar mends both and leaves every cosine as it was.
    """

    learned: ClassVar[tuple[str, ...]] = ("gain",)

    gain: FloatArray

    def _fit(self, x: FloatArray) -> None:
        self.gain = np.array([fit_gain(x)], np.float32)

    def _encode(self, x: FloatArray) -> CodeArray:
        q = np.empty(x.shape, np.int8)
        for rows in row_blocks(len(x), x.shape[1]):
            signed_power.encode(x[rows] * self.gain[0], out=q[rows])
        return q

    def _decode(self, q: CodeArray) -> FloatArray:
        x = signed_power.decode(q)
        x /= self.gain[0]
        return x


def fit_gain(x: FloatArray) -> float:
    """Gain for signed-power codes with the least mean and worst-case angle on a sample.

    A large gain gives fine steps and clips the largest coordinates; tried are gains that put the
    largest magnitude, or one of four high percentiles, at one.
    """
    x = training_sample(x, 4096, 0)
    magnitude = np.abs(x)
    peaks = np.unique(np.quantile(magnitude, [0.99, 0.999, 0.9999, 0.99999, 1.0]))
    best, least = 1.0, np.inf
    for peak in peaks[peaks > 0]:
        y = signed_power.decode(signed_power.encode(x * np.float32(1 / peak)))
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        away = 1 - np.einsum("nd,nd->n", x, y) / np.maximum(lengths, 1e-30)
        # The worst row counts as much as ten average ones: no vector may be spoilt.
        loss = float(away.mean() + away.max() / 10)
        if loss < least:
            best, least = float(1 / peak), loss
    return best


class PerVectorScale(Codec):
    """int8 with one float32 scale per vector, as TESSERA stores pixels: D + 4 bytes."""

    nodata: ClassVar[float | None] = None

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return self.dims + 4

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Type of one entry."""
        return np.dtype(np.int8)

    def _fit(self, x: FloatArray) -> None: ...

    def _encode(self, x: FloatArray) -> CodeArray:
        scale = np.abs(x).max(axis=1) / np.float32(127)
        divisor = np.where(scale > 0, scale, 1)[:, None]
        q = np.empty((len(x), self.dims + 4), np.int8)
        q[:, : self.dims] = np.rint(x / divisor)
        q[:, self.dims :] = scale.astype("<f4")[:, None].view(np.int8)
        return q

    def _decode(self, q: CodeArray) -> FloatArray:
        scale = np.ascontiguousarray(q[:, self.dims :]).view("<f4")
        x: FloatArray = q[:, : self.dims].astype(np.float32) * scale
        return x


def _e4m3() -> Any:
    try:
        from ml_dtypes import float8_e4m3fn
    except ImportError as error:
        raise ConfigError(
            got="codec fp8 without the package ml-dtypes",
            expected="ml-dtypes, which knows the fp8 number format",
            fix='pip install "bocage[search]"',
        ) from error
    return float8_e4m3fn
