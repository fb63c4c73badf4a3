"""Chosen tokens alone give what the whole sequence gives, and rotations in one pass the same."""

from __future__ import annotations

import pytest
import torch

from bocage.models.config import PositionConfig
from bocage.models.encoder import Encoder
from bocage.models.patch_embedding import resize, resized_patches
from bocage.models.predictor import PretrainingModel
from bocage.models.releases import release_config
from bocage.models.rope import axial_frequencies, rope_angles, rotate, turn
from bocage.models.selection import RowGroup, row_groups, select
from bocage.sensors import MAPS, SENSORS

from .official import random_dates, random_values, randomize


def random_masks(config, n_samples: int, cells: int, n_times: int, share: float = 0.4):
    generator = torch.Generator().manual_seed(0)
    return {
        m: torch.rand(
            n_samples, cells, cells, n_times, len(config.band_sets[m]), generator=generator
        )
        < share
        for m in config.inputs
    }


@pytest.mark.parametrize("version", ["v1", "v1.1", "v1.2", "v1.3"])
@pytest.mark.parametrize("patch_size", [1, 4, 8])
def test_chosen_tokens_are_encoded_as_in_the_whole_sequence(version: str, patch_size: int) -> None:
    config = release_config(version, "nano")
    torch.manual_seed(0)
    model = PretrainingModel(config).eval()
    randomize(model, 0)
    cells, times = 3, 3
    values = random_values(config.inputs, (2, cells * patch_size, cells * patch_size, times))
    dates, masks = random_dates(2, times), random_masks(config, 2, cells, times)
    # Rows: both samples, and the first once more.
    sample = torch.tensor([1, 0, 1])
    selection = select({m: x[sample] for m, x in masks.items()}, sample)
    with torch.no_grad():
        expected = model.encoder(values, dates, patch_size, visible=masks)
        patches = {m: resized_patches(x, 8, patch_size) for m, x in values.items()}
        rows = model.encoder.encode_rows(patches, selection, dates, patch_size)
        dense = torch.cat([expected.tokens[m].flatten(1, -2) for m in config.inputs], dim=1)
        keep = torch.cat([masks[m].flatten(1) for m in config.inputs], dim=1)
        wanted = torch.cat([dense[b][keep[b]] for b in sample.tolist()])
        project = model.encoder.project_and_aggregate
        torch.testing.assert_close(rows.tokens, wanted, rtol=0, atol=2e-5)
        torch.testing.assert_close(project(rows), project(expected)[sample], rtol=0, atol=2e-5)
    assert selection.counts == tuple(keep[sample].sum(1).tolist())
    if expected.locations is not None:
        torch.testing.assert_close(
            rows.locations.student, expected.locations.student[sample], rtol=0, atol=2e-5
        )


def test_a_selection_knows_where_its_tokens_are() -> None:
    masks = {
        "sentinel2_l2a": torch.rand(3, 2, 4, 5, 2) < 0.5,
        "worldcover": torch.rand(3, 2, 4, 1, 1) < 0.5,
    }
    sample = torch.tensor([4, 7, 4])
    selection = select(masks, sample)
    # Row after row, token by token, as a loop finds them.
    found = [
        (r, sample[r].item(), (m, s), t if m in SENSORS else 5, i, j)
        for r in range(3)
        for m, x in masks.items()
        for i, j, t, s in x[r].nonzero().tolist()
    ]
    columns = (selection.row, selection.sample, selection.slot, selection.cell_row)
    row, own, slot, i = (c.tolist() for c in columns)
    sets = [selection.band_sets[k] for k in selection.set_number.tolist()]
    assert list(zip(row, own, sets, slot, i, selection.cell_col.tolist(), strict=True)) == found
    # The order for embedding, by band set, holds the same tokens.
    picked = [
        (r, b, (p.modality, p.band_set), t if p.modality in SENSORS else 5, i, j)
        for p in selection.picked
        for r, b, t, i, j in zip(
            *(x.tolist() for x in (p.row, p.sample, p.time, p.cell_row, p.cell_col)), strict=True
        )
    ]
    assert [picked[k] for k in selection.source.tolist()] == found
    assert {"worldcover"} == {m for m, _ in selection.band_sets} & set(MAPS)


def test_rows_of_equal_length_are_grouped() -> None:
    assert row_groups([2, 2, 3, 0], [5, 5, 5, 1]) == (
        RowGroup(n_rows=2, n_queries=2, n_read=5),
        RowGroup(n_rows=1, n_queries=3, n_read=5),
        RowGroup(n_rows=1, n_queries=0, n_read=1),
    )


@pytest.mark.parametrize("encoding", ["rope", "rope_3d_mixed"])
@pytest.mark.parametrize(("n_turned", "n"), [(1, 7), (2, 7), (2, 5000)])  # one piece, several
def test_turning_equals_rotating_in_value_and_gradient(
    encoding: str, n_turned: int, n: int
) -> None:
    config = PositionConfig(encoding=encoding)
    heads, width = 3, 16
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(n, config.n_coordinates, generator=generator)
    if config.learned:
        frequencies = torch.randn(config.n_coordinates, heads, width // 2, generator=generator)
        frequencies.requires_grad_()
    else:
        frequencies = axial_frequencies(config, width)
    x = torch.randn(n, 3, heads, width, generator=generator, requires_grad=True)
    # A gradient of the frequencies sums over all tokens: its size, and its rounding, stay alike.
    weights = torch.randn(3, n, heads, width, generator=generator) / (n / 7) ** 0.5

    ours = turn(x, positions, frequencies, n_turned)
    sum((w * part).sum() for w, part in zip(weights, ours, strict=True)).backward()
    inputs = [x] + ([frequencies] if config.learned else [])
    gradients = [p.grad.clone() for p in inputs]

    angles = rope_angles(positions[None], frequencies)  # [1, M, n, K]
    expected = [
        rotate(part.transpose(0, 1)[None], angles)[0].transpose(0, 1) if i < n_turned else part
        for i, part in enumerate(x.unbind(1))
    ]
    for part, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=1e-5)
    total = sum((w * part).sum() for w, part in zip(weights, expected, strict=True))
    for ours_gradient, other in zip(gradients, torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(ours_gradient, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch_size", [1, 3, 8])
def test_patches_are_cut_from_the_resized_image(patch_size: int) -> None:
    values = torch.rand(2, 2 * patch_size, 3 * patch_size, 4, 5)
    patches = resized_patches(values, 8, patch_size)
    images = resize(values.permute(0, 3, 4, 1, 2), 8, patch_size)  # [B, T, C, 8h, 8w]
    assert patches.shape == (2, 2, 3, 4, 8, 8, 5)
    for b, i, j, t in ((0, 0, 0, 0), (1, 1, 2, 3), (0, 1, 1, 2)):
        wanted = images[b, t, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].permute(1, 2, 0)
        torch.testing.assert_close(patches[b, i, j, t], wanted, rtol=0, atol=1e-6)


def test_stochastic_depth_is_random_without_a_plan_and_off_in_evaluation() -> None:
    encoder = Encoder(release_config("v1.2", "nano")).train()
    values, dates = random_values(("sentinel2_l2a",), (2, 8, 8, 2)), random_dates(2, 2)
    with torch.no_grad():
        first, second = (encoder(values, dates, 4).tokens["sentinel2_l2a"] for _ in range(2))
        assert not torch.equal(first, second)
        encoder.eval()
        first, second = (encoder(values, dates, 4).tokens["sentinel2_l2a"] for _ in range(2))
    assert torch.equal(first, second)
