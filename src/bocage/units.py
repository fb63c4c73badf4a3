"""Do values look like a sensor's product units? The commonest silent mistake of users, made loud.

The models see ``(x - mean) / std`` of product units, so reflectance 0..1, an 8-bit stretch, linear
radar power or a forgotten offset give embeddings that look fine and mean nothing. ``check_units``
samples pixels at fixed positions and judges by quantiles, so a few odd pixels do not matter.

The +1000 offset of Sentinel-2 baseline 04.00 is told from darkness: vegetation, water and shade
are dark in some band, and with the offset nothing is darker than about 1000. Desert, snow and
cloud have no dark pixels either way; for them the check can only warn.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageWarning, InputError
from bocage.sensors import LANDSAT, SENTINEL2_L2A
from bocage.sensors import sensor as sensor_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import ValidArray

_SAMPLE_PIXELS = 16_384
"""Enough for 1 % quantiles of a dozen bands, and about a millisecond."""

_NODATA_CODES = (-99999.0, -32768.0, -9999.0)

_S2 = {name: index for index, name in enumerate(SENTINEL2_L2A.band_names)}
_L8 = {name: index for index, name in enumerate(LANDSAT.band_names)}


def check_units(
    sensor: str, x: NDArray[Any], *, where: str = "", offset_settled: bool = False
) -> None:
    """Stop when values cannot be the sensor's product units, and say what they look like instead.

    ``x`` is [..., C] in the band order of ``sensors.py``; NaN is ignored, as are all-NaN bands.
    ``where`` names the values for the user (a file, a date). ``offset_settled`` says that metadata
    or the user decided about the Sentinel-2 offset: then doubt is silent and evidence a warning.

    Raises InputError when the evidence is strong; warns with BocageWarning when it is not.
    Large arrays are sampled at fixed positions: the same array always gives the same answer.
    """
    table = sensor_table(sensor)
    x = np.asarray(x)
    at = f" in {where}" if where else ""
    if x.ndim == 0 or x.shape[-1] != len(table.bands):
        raise InputError(
            got=f"{sensor} values of shape {x.shape}{at}",
            expected=f"{len(table.bands)} bands on the last axis ({' '.join(table.band_names)})",
            fix="pass the bands in this order, NaN where one is missing",
        )
    pixels = _with_data(sample_pixels(x))
    if pixels.size == 0:
        return
    _check_nodata_codes(table.title, pixels, at)
    if sensor == "sentinel2_l2a":
        _check_sentinel2(pixels, at, offset_settled=offset_settled)
    elif sensor == "sentinel1":
        _check_sentinel1(pixels, at)
    else:
        _check_landsat(pixels, at)


def sample_pixels(x: NDArray[Any], count: int = _SAMPLE_PIXELS) -> NDArray[np.float32]:
    """At most ``count`` pixels [n, C] of [..., C], evenly spread, always the same ones."""
    lead = x.shape[:-1]
    total = int(np.prod(lead, dtype=np.int64))
    if total <= count:
        return x.reshape(total, x.shape[-1]).astype(np.float32)
    # A golden-ratio walk does not fall in step with image rows as a fixed stride would.
    flat = ((np.arange(count) + 0.5) * 0.6180339887498949 % 1.0 * total).astype(np.int64)
    flat.sort()
    return x[np.unravel_index(flat, lead)].astype(np.float32)


def _with_data(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The pixels that have a value in any band."""
    finite = np.isfinite(pixels)
    return pixels if finite.all() else pixels[finite.any(axis=-1)]


def _quantile(values: NDArray[np.float32], q: float) -> float:
    values = values[np.isfinite(values)]
    return float(np.quantile(values, q)) if values.size else float("nan")


def _quantiles(values: NDArray[np.float32], shares: tuple[float, ...]) -> list[float]:
    """Several quantiles of the finite values in the time of one."""
    finite = np.isfinite(values)
    values = values.ravel() if finite.all() else values[finite]
    return [float(q) for q in np.quantile(values, np.array(shares, values.dtype))]


def _span(pixels: NDArray[np.float32]) -> str:
    """The middle 98 % of the values, as a person would read it off a histogram."""
    return f"mostly {_quantile(pixels, 0.01):.4g} to {_quantile(pixels, 0.99):.4g}"


def _check_nodata_codes(title: str, pixels: NDArray[np.float32], at: str) -> None:
    # The least and the greatest value tell most of it, in one pass instead of four.
    least, greatest = np.fmin.reduce(pixels, axis=None), np.fmax.reduce(pixels, axis=None)
    if np.isinf(least) or np.isinf(greatest):
        raise InputError(
            got=f"infinite {title} values{at}",
            expected="finite values, NaN where there is no data",
            fix="replace infinities with NaN",
        )
    for code in _NODATA_CODES:
        if least <= code and (pixels == code).any():
            raise InputError(
                got=f"the nodata code {code:.0f} among the {title} values{at}",
                expected="NaN where there is no data",
                fix="replace the code with NaN, or let open_stack read the file (it does so)",
            )


def _check_sentinel2(pixels: NDArray[np.float32], at: str, *, offset_settled: bool) -> None:
    lowest, low, middle, high = _quantiles(pixels, (0.001, 0.05, 0.5, 0.999))
    expected = "surface reflectance x 10000 (dark 0 to 500, bright 10000)"
    if high <= 0 and lowest >= 0:
        return  # Nothing but zeros: padding, not a unit.
    if high <= 3.0:
        raise InputError(
            got=f"Sentinel-2 values{at} {_span(pixels)}, which look like reflectance 0..1",
            expected=expected,
            fix="multiply by 10000: open_stack(scale=10000) or --scale 10000",
        )
    if high <= 255:
        _judge_8_bit(pixels, at, expected)
    if middle > 20_000:
        raise InputError(
            got=f"Sentinel-2 values{at} {_span(pixels)}, far brighter than any surface",
            expected=expected,
            fix="pass digital numbers as delivered, or scale= (--scale) to bring them there",
        )
    if low < -300:
        raise InputError(
            got=f"Sentinel-2 values{at} {_span(pixels)}, which look like an offset removed twice",
            expected=expected,
            fix="leave the values as they are: open_stack(offset=0) or --offset 0",
        )
    _check_offset(pixels, at, expected, settled=offset_settled)


def _judge_8_bit(pixels: NDArray[np.float32], at: str, expected: str) -> None:
    integers = bool(np.all(pixels[np.isfinite(pixels)] % 1 == 0))
    # Clear deep water may stay under 255 in all bands, but is near zero beyond the green.
    beyond_green = pixels[:, [i for name, i in _S2.items() if name not in ("B01", "B02", "B03")]]
    typical = _quantile(beyond_green, 0.5)
    if not typical < 60 and _quantile(pixels, 0.99) > 120:
        looks = "an 8-bit stretch (uint8 picture)" if integers else "a stretch to 0..255"
        raise InputError(
            got=f"Sentinel-2 values{at} {_span(pixels)}, which look like {looks}",
            expected=expected,
            fix="use the original bands: a stretch cannot be undone without its limits",
        )
    warnings.warn(
        f"Sentinel-2 values{at} {_span(pixels)}: dark water, or values that are not reflectance "
        "x 10000; if not water, the embeddings will mean nothing",
        BocageWarning,
        stacklevel=5,
    )


def _check_offset(pixels: NDArray[np.float32], at: str, expected: str, *, settled: bool) -> None:
    """Error on strong evidence of the +1000 offset, warning on weak, silence otherwise."""
    evidence = offset_evidence(pixels)
    if evidence == "none" or (evidence == "weak" and settled):
        return
    floor = _quantile(np.nanmin(pixels, axis=-1), 0.01)
    if evidence == "strong" and not settled:
        raise InputError(
            got=f"Sentinel-2 values{at} with nothing darker than {floor:.0f}, which look like the "
            "+1000 offset of processing baseline 04.00 left in",
            expected=expected,
            fix="remove it: open_stack(offset=-1000) or --offset -1000 (or pass 0 to keep it)",
        )
    warnings.warn(
        f"Sentinel-2 values{at} have nothing darker than {floor:.0f}: bright desert, snow or "
        "cloud, or the +1000 offset of processing baseline 04.00 left in, which would shift every "
        "embedding; if the product is of January 2022 or later pass offset=-1000, else offset=0",
        BocageWarning,
        stacklevel=5,
    )


def offset_evidence(pixels: NDArray[np.float32]) -> str:
    """Evidence that [n, 12] Sentinel-2 values carry the +1000 offset: "none", "weak" or "strong".

    Strong needs an unclouded darkness that bottoms out at 1000: vegetation (a NIR minus red of
    0.15 or more, which no offset changes) whose darkest band is never below 1000, or dark pixels
    (water, shade) that lie at 1000 in infrared bands at once. Measured on the real tiles of the
    test data: strong on none of 243 offset-free tiles; see tests/test_units.py.
    """
    bands = np.ascontiguousarray(pixels.T)  # a fifth of the time: neighbours are one band's
    finite = np.isfinite(bands)
    present: ValidArray = np.asarray(finite.any(axis=1))
    if present.sum() < 3:
        return "none"  # Two bands or fewer say too little about darkness.
    # All-zero pixels are nodata that nobody masked.
    use: ValidArray = finite[present].all(axis=0) & (bands[present] != 0).any(axis=0)
    if use.sum() < 64:
        return "none"
    bands = bands if use.all() else bands[:, use]
    darkest = bands[present].min(axis=0)
    floor = float(np.quantile(darkest, 0.01))
    if floor < 850 or float(np.quantile(darkest, 0.002)) < 600:
        return "none"
    enough = max(64, len(darkest) // 200)
    vegetation: ValidArray = np.greater(bands[_S2["B08"]] - bands[_S2["B04"]], 1500)
    if vegetation.sum() >= enough:
        low, middle = (float(q) for q in np.quantile(darkest[vegetation], [0.1, 0.5]))
        # Above 1900 it is cloud over vegetation, which adds its own brightness.
        if low >= 1000 and middle < 1900:
            return "strong"
    infrared = [i for name in ("B08", "B8A", "B11", "B12") if bool(present[i := _S2[name]])]
    if len(infrared) >= 2:
        dark = ((bands[infrared] > 850) & (bands[infrared] < 1150)).all(axis=0)
        if dark.sum() >= enough:
            return "strong"
    return "weak" if 950 <= floor < 2000 else "none"


def lacks_offset(x: NDArray[Any]) -> bool:
    """Whether [..., 12] Sentinel-2 values are too dark in places to carry the +1000 offset."""
    bands = np.ascontiguousarray(sample_pixels(np.asarray(x)).T)
    use: ValidArray = np.isfinite(bands).any(axis=0) & (np.nan_to_num(bands) != 0).any(axis=0)
    darkest = np.fmin.reduce(bands, axis=0)[use]
    return len(darkest) >= 64 and float(np.quantile(darkest, 0.01)) < 850


def _check_sentinel1(pixels: NDArray[np.float32], at: str) -> None:
    expected = "gamma0 in decibels (about -35 to +5)"
    low, middle, high = (_quantile(pixels, q) for q in (0.001, 0.5, 0.99))
    if low >= 0 and middle > 0:
        if middle < 5:
            looks = "linear power or amplitude"
            fix = (
                'convert 10*log10(power): open_stack(scale="db") or --scale db '
                '(amplitude: scale="db20", 20*log10)'
            )
        else:
            looks = "amplitude digital numbers"
            fix = (
                'convert to calibrated decibels, e.g. scale="db20" with the product\'s offset '
                "(WorldCereal: --scale db20 --offset -83)"
            )
        raise InputError(
            got=f"Sentinel-1 values{at} {_span(pixels)}, which look like {looks}, not decibels",
            expected=expected,
            fix=fix,
        )
    if low < -120 or high > 60 or middle > 10:
        raise InputError(
            got=f"Sentinel-1 values{at} {_span(pixels)}, outside any radar backscatter in decibels",
            expected=expected,
            fix="undo the product's scaling: open_stack(scale=...) or --scale (dB x 100: 0.01)",
        )


def _check_landsat(pixels: NDArray[np.float32], at: str) -> None:
    expected = "Landsat 8/9 Level-1 digital numbers (dark 5000 to 7000, bright 30000)"
    high = _quantile(pixels, 0.999)
    if high <= 0:
        return
    reflective = pixels[:, [i for name, i in _L8.items() if name not in ("B9", "B10", "B11")]]
    bright = _quantile(reflective, 0.95) if np.isfinite(reflective).any() else float("nan")
    if high <= 3.0 or bright <= 3.0:
        raise InputError(
            got=f"Landsat values{at} {_span(pixels)}, which look like reflectance 0..1",
            expected=expected,
            fix="pass the Level-1 file, or undo its calibration: "
            "open_stack(scale=50000, offset=5000) or --scale 50000 --offset 5000",
        )
    if high <= 255:
        raise InputError(
            got=f"Landsat values{at} {_span(pixels)}, which look like 8-bit numbers "
            "(Landsat 4-7 or a stretch)",
            expected=expected,
            fix="pass Landsat 8/9 Collection 2 Level-1; the models never saw 8-bit Landsat",
        )
    if bright < 4500:
        raise InputError(
            got=f"Landsat values{at} {_span(pixels)}, which look like reflectance x 10000",
            expected=expected,
            fix="pass the Level-1 file, or undo its calibration: "
            "open_stack(scale=5, offset=5000) or --scale 5 --offset 5000",
        )
    if high > 70_000 or _quantile(pixels, 0.01) < -1000:
        raise InputError(
            got=f"Landsat values{at} {_span(pixels)}, outside 16-bit digital numbers",
            expected=expected,
            fix="pass digital numbers as delivered, or scale= (--scale) to bring them there",
        )
    _warn_landsat_level_2(pixels, at)


def _warn_landsat_level_2(pixels: NDArray[np.float32], at: str) -> None:
    """Surface reflectance numbers of Level-2 start at 7273 and come without B8, B9 and B11."""
    only_level_1 = [_L8[name] for name in ("B8", "B9", "B11")]
    if np.isfinite(pixels[:, only_level_1]).any():
        return
    visible = pixels[:, [_L8["B2"], _L8["B3"], _L8["B4"]]]
    if np.isfinite(visible).any() and _quantile(visible, 0.01) >= 7000:
        warnings.warn(
            f"Landsat values{at} start at {_quantile(visible, 0.01):.0f} and lack B8, B9 and B11: "
            "they look like Level-2 surface reflectance, but the models were trained on Level-1, "
            "so the embeddings will be off",
            BocageWarning,
            stacklevel=5,
        )
