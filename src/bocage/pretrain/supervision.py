"""Map supervision of v1.3: location tokens must tell what the maps say at each pixel.

A linear head per map predicts 8 x 8 values per location, which are resized to the pixels of the
crop. Class codes are compared in the map's own units: values reach the network scaled by mean and
deviation, and comparing those with code / 100, as a public development version did, takes the
WorldCover codes 90, 95 and 100 for one class.

Axes: R rows, K rows with a map, r_h r_w location queries, H W pixels, C outputs, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.pretrain.modalities import MODALITIES

CELLS = 8
"""Values that each location predicts along a side."""


@dataclass(frozen=True, kw_only=True)
class MapTask:
    """How one map is predicted."""

    kind: str
    """classes (cross entropy), values (absolute difference, in normalized units) or yes_no
    (binary cross entropy of each band, positives weighted up to the negatives)."""

    n_outputs: int
    weight: float
    """Of the loss: entropies are about ten times larger than the differences."""

    codes: tuple[int, ...] = ()
    """Class codes in the map's own units; pixels of other codes are not asked."""


WORLDCOVER = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
"""Tree, shrub, grass, crop, built-up, bare, snow, water, wetland, mangrove, moss (ESA 2021)."""

CDL = (
    *(*range(1, 7), *range(10, 15), *range(21, 40), *range(41, 62), *range(63, 73)),
    *(*range(74, 78), *range(81, 84), 87, 88, 92, 111, 112, *range(121, 125), 131),
    *(141, 142, 143, 152, 176, 190, 195, *range(204, 251), 254),
)
"""Crops and land cover of the USDA Cropland Data Layer, without background (0)."""

MAP_TASKS: dict[str, MapTask] = {
    "worldcover": MapTask(kind="classes", n_outputs=len(WORLDCOVER), weight=0.1, codes=WORLDCOVER),
    "srtm": MapTask(kind="values", n_outputs=1, weight=1.0),
    "openstreetmap_raster": MapTask(kind="yes_no", n_outputs=30, weight=0.1),
    "wri_canopy_height_map": MapTask(kind="values", n_outputs=1, weight=1.0),
    "cdl": MapTask(kind="classes", n_outputs=len(CDL), weight=0.1, codes=CDL),
    "worldcereal": MapTask(kind="yes_no", n_outputs=8, weight=0.1),
}
"""Tasks and weights of v1.3."""


class SupervisionHead(nn.Module):
    """One linear layer per map; in a checkpoint under ``supervision_head.``, never exported."""

    def __init__(self, width: int, maps: tuple[str, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {m: nn.Linear(width, MAP_TASKS[m].n_outputs * CELLS**2) for m in maps}
        )

    def forward(self, locations: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predictions [K, C, 8 r_h, 8 r_w] per map from location tokens [R, r_h, r_w, D]."""
        predictions = {}
        for name, own in rows.items():
            x = self.heads[name](locations[own])
            x = x.unflatten(-1, (CELLS, CELLS, -1)).permute(0, 5, 1, 3, 2, 4)
            predictions[name] = x.flatten(4, 5).flatten(2, 3)
        return predictions


def supervision_loss(name: str, predictions: Tensor, values: Tensor, present: Tensor) -> Tensor:
    """Mean loss over the pixels of one map that have data; 0 if none has.

    ``predictions`` [K, C, any, any] are resized to ``values`` [K, H, W, bands] (normalized) with
    ``present`` [K, H, W].
    """
    task = MAP_TASKS[name]
    with torch.autocast(predictions.device.type, enabled=False):
        x = functional.interpolate(
            predictions.float(), values.shape[1:3], mode="bilinear", align_corners=False
        )
        if task.kind == "classes":
            target = class_numbers(name, values[..., 0]).masked_fill(~present, -1)
            loss = functional.cross_entropy(x, target, ignore_index=-1, reduction="sum")
            return loss / (target >= 0).sum().clamp(min=1)
        x, values = x.permute(0, 2, 3, 1)[present], values[present]  # [pixels, C]
        if not len(x):
            return x.sum()
        if task.kind == "values":
            return functional.l1_loss(x, values)
        yes = (values > 0.5).float()
        share = yes.mean(dim=0)
        # A band without any positive has nothing to weight.
        weight = torch.where(share > 0, (1 - share) / share.clamp(min=1e-9), 1.0)
        return functional.binary_cross_entropy_with_logits(x, yes, pos_weight=weight)


def class_numbers(name: str, values: Tensor) -> Tensor:
    """Number of each pixel's class in the task's codes, from normalized values; -1 for others."""
    layer, codes = MODALITIES[name], MAP_TASKS[name].codes
    table = torch.full((256,), -1, dtype=torch.long)
    table[list(codes)] = torch.arange(len(codes))
    code = values.double() * (layer.high[0] - layer.low[0]) + layer.low[0]
    whole = code.round()
    known = ((code - whole).abs() < 0.05) & (whole >= 0) & (whole <= 255)
    numbers = table.to(values.device)[whole.clamp(0, 255).long()]
    return numbers.masked_fill(~known, -1)
