"""A network with one answer per crop makes a map: crop beside crop, each of one class."""

from itertools import product

import numpy as np
import pytest
import rasterio
import torch

from bocage import open_stack
from bocage.learn.classes import make_classes
from bocage.learn.finetune.finetuned import FinetunedImage
from bocage.learn.finetune.heads import HeadConfig
from bocage.learn.finetune.inputs import Normalization
from bocage.learn.finetune.saved import Description
from bocage.learn.finetune.task import Task
from bocage.learn.predict import predict
from bocage.sensors import SENTINEL2_L2A
from tests.learn.finetune.scenes import SHAPE_YX, write_scene


class Brighter(torch.nn.Module):
    """Whether the near infrared of a whole crop is above 2,000 in the mean."""

    def forward(self, inputs):
        near = inputs.values["sentinel2_l2a"][..., 3].mean(dim=(1, 2, 3))
        return torch.stack([2000 - near, near - 2000], dim=-1)


def network(crop_px):
    names = SENTINEL2_L2A.band_names
    zeros, ones = ({"sentinel2_l2a": (v,) * 12} for v in (0.0, 1.0))
    description = Description(
        name="brighter",
        task=Task(kind="classification", classes=make_classes({10: "dark", 20: "bright"})),
        patch_size=crop_px,
        features="image",
        query_px=crop_px,
        sensors={"sentinel2_l2a": names},
        n_timesteps=1,
        crop_px=crop_px,
        normalization=Normalization(low=zeros, width=ones, source="dataset"),
        head=HeadConfig(width=1, n_outputs=2, dense=False),
        backbone={},
    )
    return FinetunedImage(Brighter(), description, name="brighter", weights_id="brighter:1")


@pytest.mark.parametrize(("crop_px", "cell_px"), [(32, 8), (12, 6), (40, 8)])
def test_every_crop_of_the_map_has_the_answer_of_its_crop(tmp_path, crop_px, cell_px):
    stack = open_stack(write_scene(tmp_path / "scene"))
    predict(stack, network(crop_px), out=tmp_path / "map.tif", embed={"window_px": 16})
    with rasterio.open(tmp_path / "map.tif") as file:
        found = file.read(1)
        assert file.transform.a == 10 * cell_px
    shape = [-(-n // cell_px) * cell_px for n in SHAPE_YX]
    near = np.full(shape, np.nan)
    near[: SHAPE_YX[0], : SHAPE_YX[1]] = stack["sentinel2_l2a"].values[0, 3]
    expected = np.full(shape, 255)
    n_crops = np.zeros(shape)
    # The last crop of a row ends with the scene; where it overlaps another they share a cell.
    for r, c in product(*([*range(0, n - crop_px, crop_px), n - crop_px] for n in shape)):
        crop = slice(r, r + crop_px), slice(c, c + crop_px)
        mean = np.nan_to_num(near[crop]).sum() / crop_px**2  # what is missing counts as 0
        expected[crop] = 20 if mean > 2000 else 10
        n_crops[crop] += 1
    cells = np.isfinite(near).reshape(shape[0] // cell_px, cell_px, -1, cell_px).any((1, 3))
    expected, n_crops = (x[::cell_px, ::cell_px] for x in (expected, n_crops))
    np.testing.assert_array_equal(found == 255, ~cells)
    alone = cells & (n_crops == 1)
    assert alone.mean() > 0.7 and set(expected[alone]) == {10, 20}
    np.testing.assert_array_equal(found[alone], expected[alone])
