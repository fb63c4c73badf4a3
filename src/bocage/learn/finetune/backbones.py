"""Backbones of other libraries: timm and segmentation-models-pytorch, with any number of bands.

All dates and sensors of a crop are stacked to the channels of one image: [B, T C, H, W].
"""

from __future__ import annotations
