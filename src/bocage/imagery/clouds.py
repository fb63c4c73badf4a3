"""Cloud masks from the quality layers that come with the imagery.

Sources: Sentinel-2 L2A scene classification (ESA, Sentinel-2 Products Specification), Landsat
Collection 2 QA_PIXEL (USGS LSDS-1619), Collection 1 BQA (USGS LSDS-1873) and the BQA before it
(USGS LSDS-1329).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import ValidArray

SCL_UNUSABLE = (0, 1, 3, 8, 9, 10)
"""No data, saturated or defective, cloud shadow, cloud of medium and high probability, thin cirrus.

Dark areas (2), unclassified (7) and snow (11) stay: they are ground.
"""


def usable(layer: str, codes: NDArray[Any]) -> ValidArray:
    """True where a quality layer (SCL, QA_PIXEL, BQA) allows the pixel to be used."""
    codes = np.nan_to_num(codes, nan=0).astype(np.uint16)
    if layer == "SCL":
        table = np.ones(65536, dtype=bool)
        table[list(SCL_UNUSABLE)] = False
        return np.asarray(table[codes])
    if layer == "QA_PIXEL":
        # Bits 0 fill, 1 dilated cloud, 2 cirrus, 3 cloud, 4 cloud shadow.
        return np.asarray((codes & 0b1_1111) == 0)
    return _usable_bqa(codes)


def _usable_bqa(codes: NDArray[np.uint16]) -> ValidArray:
    fill = (codes & 1) > 0
    if (codes >> 13).any():
        # Pre-collection: two bits each of cirrus (12-13) and cloud (14-15), 3 = confident.
        cirrus, cloud = codes >> 12 & 3, codes >> 14 & 3
        return np.asarray(~(fill | (cirrus == 3) | (cloud == 3)))
    # Collection 1: cloud bit 4, shadow confidence 7-8, cirrus confidence 11-12.
    cloudy = (codes & 16) > 0
    return np.asarray(~(fill | cloudy | ((codes >> 7 & 3) == 3) | ((codes >> 11 & 3) == 3)))
