"""Map supervision compares with what the map says, pixel by pixel, and with nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bocage.pretrain.modalities import normalize
from bocage.pretrain.supervision import (
    CDL,
    MAP_TASKS,
    WORLDCOVER,
    SupervisionHead,
    class_numbers,
    supervision_loss,
)


@pytest.mark.parametrize("name", ["worldcover", "cdl"])
def test_every_class_code_survives_the_normalization(name: str) -> None:
    """Also 90, 95 and 100 of WorldCover, which a comparison of scaled values takes for one."""
    codes = MAP_TASKS[name].codes
    every = np.arange(256, dtype=np.float32)
    numbers = class_numbers(name, torch.from_numpy(normalize(name, every[:, None])[:, 0])).tolist()
    assert numbers == [codes.index(c) if c in codes else -1 for c in range(256)]
    # Filled with 0 where the map is missing: no code of WorldCover, background of CDL.
    assert int(class_numbers(name, torch.zeros(1))) == -1


def test_class_tables_are_the_published_ones() -> None:
    assert len(WORLDCOVER) == 11
    assert list(CDL) == sorted(set(CDL))
    assert {1, 5, 24, 176, 254} <= set(CDL)  # corn, soybeans, winter wheat, grass, barley/soybeans
    assert not {0, 7, 255} & set(CDL)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(list(MAP_TASKS)))
def test_losses_equal_a_loop_over_pixels(seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    task = MAP_TASKS[name]
    shape = (2, 3, 4)
    present = torch.from_numpy(rng.random(shape) < 0.7)
    logits = torch.from_numpy(rng.normal(size=(2, task.n_outputs, 3, 4)).astype(np.float32))
    bands = task.n_outputs if task.kind == "yes_no" else 1
    if task.kind == "classes":
        raw = rng.choice([*task.codes[:5], 0, 7], (*shape, 1))
    elif task.kind == "values":
        raw = rng.uniform(0, 30, (*shape, 1))
    else:
        high = 1 if name == "openstreetmap_raster" else 100
        raw = high * (rng.random((*shape, bands)) < 0.3)
    values = torch.from_numpy(normalize(name, raw))
    loss = supervision_loss(name, logits, values, present)

    terms = []
    pixels = [p for p in np.ndindex(shape) if present[p]]
    share = {c: np.mean([raw[(*p, c)] > 0 for p in pixels]) if pixels else 0 for c in range(bands)}
    for b, i, j in pixels:
        x = logits[b, :, i, j].double().numpy()
        if task.kind == "classes":
            code = int(raw[b, i, j, 0])
            if code in task.codes:
                terms.append(np.log(np.exp(x).sum()) - x[task.codes.index(code)])
        elif task.kind == "values":
            terms.append(abs(x[0] - float(values[b, i, j, 0])))
        else:
            for c in range(bands):
                weight = (1 - share[c]) / share[c] if share[c] > 0 else 1.0
                yes = raw[b, i, j, c] > 0
                terms.append(weight * np.log1p(np.exp(-x[c])) if yes else np.log1p(np.exp(x[c])))
    expected = float(np.mean(terms)) if terms else 0.0
    assert float(loss) == pytest.approx(expected, abs=1e-4, rel=1e-4)


def test_each_location_predicts_its_own_pixels() -> None:
    head = SupervisionHead(4, ("srtm",))
    locations = torch.zeros(1, 2, 3, 4)
    before = head(locations, {"srtm": torch.tensor([0])})["srtm"]
    locations[0, 1, 2] = 1.0
    after = head(locations, {"srtm": torch.tensor([0])})["srtm"]
    assert before.shape == (1, 1, 16, 24)
    changed = (before != after)[0, 0].nonzero()
    assert changed.min(0).values.tolist() == [8, 16]
    assert changed.max(0).values.tolist() == [15, 23]
    # Row after row within a location, as the layer's outputs are numbered.
    cell = after[0, 0, 8:, 16:].flatten()
    torch.testing.assert_close(cell, head.heads["srtm"](locations[0, 1, 2]))


def test_a_linear_surface_is_met_exactly_at_another_resolution() -> None:
    """Predictions on a grid of 8 per location are resized to the pixels of the crop."""
    fine = (torch.arange(16) + 0.5) / 16
    coarse = (torch.arange(8) + 0.5) / 8
    predictions = fine[None, None, None, :].expand(1, 1, 16, 16)
    values = coarse[None, None, :, None].expand(1, 8, 8, 1)
    present = torch.ones(1, 8, 8, dtype=torch.bool)
    assert float(supervision_loss("srtm", predictions, values, present)) < 1e-6
