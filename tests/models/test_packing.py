"""Hidden tokens leave the sequence and come back as zeros."""

from __future__ import annotations

import torch

from bocage.models.packing import plan_packing


def test_tokens_keep_their_order_and_return_to_their_places() -> None:
    keep = torch.tensor([[False, True, True, False], [True, False, False, False]])
    x = torch.arange(1.0, 9.0).reshape(2, 4, 1)
    packing = plan_packing(keep)
    assert packing.pack(x)[0, :, 0].tolist() == [2, 3]
    assert packing.valid is not None
    assert packing.valid.tolist() == [[True, True], [True, False]]
    assert packing.unpack(packing.pack(x))[..., 0].tolist() == [[0, 2, 3, 0], [5, 0, 0, 0]]


def test_equal_counts_need_no_mask() -> None:
    packing = plan_packing(torch.tensor([[False, True], [True, False]]))
    assert packing.valid is None
    assert packing.key_valid is None


def test_no_attention_row_is_masked_as_a_whole() -> None:
    """A softmax over nothing is NaN in some attention kernels and 0 in others."""
    packing = plan_packing(torch.tensor([[True, True], [False, False]]))
    assert packing.key_valid is not None
    assert packing.key_valid.any(dim=1).all()
