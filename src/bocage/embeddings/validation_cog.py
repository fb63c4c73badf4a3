"""Checks of GeoTIFFs of embeddings: COG structure, nodata, names, true overviews."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from bocage.embeddings.codecs import signed_power
from bocage.embeddings.cog_layout import (
    ALPHAEARTH_BANDS,
    FORMULA_TAG,
    QUANTIZATION_TAG,
    open_cog,
    open_quietly,
)
from bocage.embeddings.overviews import masked_means
from bocage.embeddings.validation import Finding, error, warning
from bocage.errors import BocageError
from bocage.types import FloatArray

_CHECKED_BANDS = 16
_CHECKED_CELLS = 32
_BLOCK_LIMIT = 512


def check_cog(uri: str) -> Iterator[Finding]:
    """All findings of a GeoTIFF."""
    try:
        open_cog(uri)
    except BocageError as problem:
        yield error(uri, problem.got, problem.fix)
        return
    with open_quietly(uri) as file:
        yield from _check_structure(uri, file)
        yield from _check_metadata(uri, file)
        factors = file.overviews(1)
        unit = file.descriptions == ALPHAEARTH_BANDS
    for level, factor in enumerate(factors):
        yield from _check_overview(uri, level, factor, unit=unit)


def _check_structure(uri: str, file: Any) -> Iterator[Finding]:
    if find_spec("rio_cogeo") is not None:
        from rio_cogeo.cogeo import cog_validate

        _, errors, warnings = cog_validate(uri, strict=False, quiet=True)
        for text in errors:
            yield error(uri, text, "write it again with export_cog")
        for text in warnings:
            yield warning(uri, text, "write it again with export_cog")
        return
    rows, cols = file.block_shapes[0]
    if cols >= file.width and rows < file.height:
        yield error(uri, "stored in strips, not in tiles", "write it again with export_cog")
    if max(file.height, file.width) > _BLOCK_LIMIT and not file.overviews(1):
        yield warning(uri, "no overviews", "write it again with export_cog")


def _check_metadata(uri: str, file: Any) -> Iterator[Finding]:
    tags, dtype = file.tags(), file.dtypes[0]
    if dtype == "int8" and file.nodata != signed_power.NODATA:
        yield error(uri, f"nodata {file.nodata} in int8", "set it to -128 (gdal_edit.py -a_nodata)")
    if dtype.startswith("float") and (file.nodata is None or not math.isnan(file.nodata)):
        yield warning(uri, f"nodata {file.nodata} in {dtype}", "set it to nan")
    names = [name or "" for name in file.descriptions]
    if not all(names) or len(set(names)) < len(names):
        yield warning(uri, "bands without names of their own", "name them E000, E001, ...")
    if dtype == "int8" and QUANTIZATION_TAG not in tags:
        yield warning(
            uri,
            f"no {QUANTIZATION_TAG} in the metadata",
            f"set {QUANTIZATION_TAG}=signed_power, if that is the rule",
        )
    if dtype == "int8" and QUANTIZATION_TAG in tags and FORMULA_TAG not in tags:
        yield warning(uri, "the formula of the codes is not stated", f"set {FORMULA_TAG}")


def _check_overview(uri: str, level: int, factor: int, *, unit: bool) -> Iterator[Finding]:
    """Recompute a piece of an overview from the full resolution, in value space."""
    from rasterio.windows import Window

    with open_quietly(uri, OVERVIEW_LEVEL=level) as file:
        bands = list(range(1, min(file.count, _CHECKED_BANDS if not unit else file.count) + 1))
        rows, cols = file.height, file.width
        side = max(1, min(_CHECKED_CELLS, rows, cols))
        # The middle, on whole cells of the full resolution.
        r, c = (rows - side) // 2, (cols - side) // 2
        stored = file.read(bands, window=Window(c, r, side, side))
    with open_quietly(uri) as file:
        h = min(side * factor, file.height - r * factor)
        w = min(side * factor, file.width - c * factor)
        if h < 1 or w < 1:
            return
        full = file.read(bands, window=Window(c * factor, r * factor, w, h))
    truth = masked_means(_real(full), [2**k for k in range(1, factor.bit_length())])[-1]
    stored = stored[:, : truth.shape[1], : truth.shape[2]]
    if unit:
        norm = np.sqrt((truth**2).sum(axis=0, keepdims=True))
        truth = truth / np.maximum(norm, np.float32(1e-12))
    seen, wanted = ~np.isnan(_real(stored)), ~np.isnan(truth)
    fix = "write it again with export_cog; GDAL's own overviews average codes"
    where = f"{uri} (overview {factor})"
    if (seen != wanted).any():
        yield error(where, "nodata is not where the full resolution has none", fix)
        return
    both = seen & wanted
    if not both.any():
        return
    if stored.dtype == np.int8:
        codes = np.sign(truth) * np.sqrt(np.abs(truth)) * signed_power.SCALE
        worst = float(np.abs(stored.astype(np.float32) - np.clip(codes, -127, 127))[both].max())
        wrong, shown = worst > 1.01, f"{worst:.1f} codes"
    else:
        worst = float(np.abs(stored - truth)[both].max())
        scale = float(np.abs(truth[both]).max())
        wrong, shown = worst > 1e-4 * max(scale, 1e-6), f"{worst:.3g}"
    if wrong:
        yield error(where, f"not the mean of real values (off by up to {shown})", fix)


def _real(values: Any) -> FloatArray:
    if values.dtype == np.int8:
        return signed_power.decode(np.ascontiguousarray(values))
    return np.asarray(values, np.float32)
