"""Codecs by name: `make_codec("pca64-int8")`, and codecs on disk.

A name is a quantizer, or a reducer with its dimensions, a hyphen and a quantizer. Any reducer goes
with any quantizer. `codec_names()` lists the quantizers; sizes of balanced_pq, pq, opq and rq are
bytes per vector and free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs.affine import Affine, RotatedAffine
from bocage.embeddings.codecs.balanced import BalancedProduct
from bocage.embeddings.codecs.binary import Binary, IterativeQuantization, Ternary
from bocage.embeddings.codecs.floats import (
    Float8,
    Float16,
    Float32,
    PerVectorScale,
    SignedPower,
    SignedPowerGain,
)
from bocage.embeddings.codecs.levels import Levels
from bocage.embeddings.codecs.lloyd_max import LloydMax
from bocage.embeddings.codecs.product import FaissCodec
from bocage.embeddings.codecs.reduced import Reduced
from bocage.embeddings.codecs.reducers import REDUCERS
from bocage.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from bocage.embeddings.codecs.codec import Codec
    from bocage.types import PathLike

VERSION = 1
"""Version of the saved form; a reader refuses higher ones."""

_Factory = Callable[[str, int], "Codec"]


def _affine(bits: int, value_range: str) -> _Factory:
    return lambda name, seed: Affine(name, bits=bits, value_range=value_range, seed=seed)


def _rotated(bits: int) -> _Factory:
    return lambda name, seed: RotatedAffine(name, bits=bits, seed=seed)


def _lloyd(bits: int) -> _Factory:
    return lambda name, seed: LloydMax(name, bits=bits, seed=seed)


def _rabitq(bits: int) -> _Factory:
    return lambda name, seed: FaissCodec(name, kind="rabitq", size=bits, seed=seed)


def _binary(rule: str) -> _Factory:
    return lambda name, seed: Binary(name, rule=rule, seed=seed)


_QUANTIZERS: dict[str, _Factory] = {
    "float32": lambda name, seed: Float32(name, seed=seed),
    "float16": lambda name, seed: Float16(name, seed=seed),
    "fp8": lambda name, seed: Float8(name, seed=seed),
    "signed_power": lambda name, seed: SignedPower(name, seed=seed),
    "signed_power_gain": lambda name, seed: SignedPowerGain(name, seed=seed),
    "per_pixel_scale": lambda name, seed: PerVectorScale(name, seed=seed),
    **{
        f"int{bits}{suffix}": _affine(bits, value_range)
        for bits in (8, 4, 3, 2)
        for suffix, value_range in (("", "minmax"), ("_percentile", "percentile"), ("_mse", "mse"))
    },
    "binary": _binary("sign"),
    "binary_mean": _binary("mean"),
    "binary_median": _binary("median"),
    "binary_itq": lambda name, seed: IterativeQuantization(name, seed=seed),
    "binary_levels": lambda name, seed: Levels(name, seed=seed),
    "binary_levels2": lambda name, seed: Levels(name, bits_per_dim=2, seed=seed),
    "ternary": lambda name, seed: Ternary(name, seed=seed),
    **{f"rotated_int{bits}": _rotated(bits) for bits in (8, 4, 3, 2)},
    **{f"lloyd{bits}": _lloyd(bits) for bits in (8, 4, 3, 2, 1)},
    "rabitq": _rabitq(1),
    "rabitq2": _rabitq(2),
    "rabitq4": _rabitq(4),
}

_SIZED = re.compile(r"(balanced_pq|pq|opq|rq)(\d+)")
_REDUCED = re.compile(rf"({'|'.join(REDUCERS)})(\d+)-(.+)")


def codec_names() -> list[str]:
    """Every quantizer by name; product quantizers take bytes per vector, as in pq64."""
    return [*_QUANTIZERS, "balanced_pq<bytes>", "pq<bytes>", "opq<bytes>", "rq<bytes>"]


def make_codec(name: str, *, seed: int = 0) -> Codec:
    """Make an unfitted codec from its name, such as int8, pca64-int8 or pq32."""
    if name in _QUANTIZERS:
        return _QUANTIZERS[name](name, seed)
    if sized := _SIZED.fullmatch(name):
        kind, size = sized[1], int(sized[2])
        if size > 0 and kind == "balanced_pq":
            return BalancedProduct(name, size=size, seed=seed)
        if size > 0:
            return FaissCodec(name, kind=kind, size=size, seed=seed)
    if reduced := _REDUCED.fullmatch(name):
        reducer, d = REDUCERS[reduced[1]], int(reduced[2])
        if d > 0:
            return Reduced(
                name, reducer(d, seed=seed), make_codec(reduced[3], seed=seed), seed=seed
            )
    raise ConfigError(
        got=f"codec {name!r}",
        expected=f"one of {', '.join(codec_names())}, or {'|'.join(REDUCERS)}<dims>-<one of them>",
        fix="for example int8, pca64-int8, prefix64-signed_power, binary_mean, pq64",
    )


def save_codec(codec: Codec, path: PathLike) -> None:
    """Write a fitted codec beside its data, as codec.json and codec.npz."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "codec.npz", **codec.arrays())  # type: ignore[arg-type]
    (folder / "codec.json").write_text(json.dumps(describe(codec), indent=2) + "\n")


def describe(codec: Codec) -> dict[str, Any]:
    """What identifies a codec, as JSON values."""
    return {
        "version": VERSION,
        "codec": codec.name,
        "seed": codec.seed,
        "dims": codec.dims,
        "fitted_on": codec.fitted_on,
        "code": {
            "dtype": str(codec.code_dtype),
            "width": codec.code_width,
            "bytes": codec.code_bytes,
            "bits": codec.n_bits,
        },
        "parameter_bytes": codec.parameter_bytes(),
    }


def load_codec(path: PathLike) -> Codec:
    """Read a codec that `save_codec` wrote."""
    folder = Path(path)
    try:
        described = json.loads((folder / "codec.json").read_text())
        with np.load(folder / "codec.npz", allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise StoreError(
            got=f"no readable codec in {folder} ({error})",
            expected="codec.json and codec.npz, as save_codec writes them",
            fix="copy both files from where the data came from, or fit the codec again",
        ) from error
    return restore_codec(described, arrays, where=str(folder))


def restore_codec(
    described: dict[str, Any], arrays: dict[str, np.ndarray[Any, Any]], *, where: str
) -> Codec:
    """Make a fitted codec from its description and arrays, wherever they were stored."""
    if described.get("version", 0) > VERSION:
        raise StoreError(
            got=f"codec version {described['version']} in {where}",
            expected=f"version {VERSION} or lower",
            fix="upgrade bocage",
        )
    try:
        codec = make_codec(described["codec"], seed=int(described["seed"]))
        codec.dims = int(described["dims"])
        codec.fitted_on = dict(described.get("fitted_on", {}))
        codec.restore(arrays)
    except KeyError as error:
        raise StoreError(
            got=f"a codec without {error} in {where}",
            expected="the fields and arrays that save_codec writes",
            fix="fit the codec again",
        ) from error
    return codec
