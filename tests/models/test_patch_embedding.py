"""The resize is torch's antialiased bicubic one, written as matrices."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bocage.models.patch_embedding import resize, resize_matrix


@pytest.mark.parametrize("patch_size", range(1, 9))
@pytest.mark.parametrize("cells", [(1, 1), (2, 3), (16, 5)])
def test_resize_equals_the_antialiased_bicubic_filter(
    patch_size: int, cells: tuple[int, int]
) -> None:
    images = torch.rand(2, 3, cells[0] * patch_size, cells[1] * patch_size)
    expected = functional.interpolate(
        images, (8 * cells[0], 8 * cells[1]), mode="bicubic", antialias=True, align_corners=False
    )
    torch.testing.assert_close(resize(images, 8, patch_size), expected, rtol=0, atol=1e-6)


def test_resize_of_a_constant_is_constant_up_to_the_border() -> None:
    for patch_size in range(1, 9):
        rows = resize_matrix(4 * patch_size, 32).sum(dim=1)
        torch.testing.assert_close(rows, torch.ones(32))
