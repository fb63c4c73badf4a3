"""What a sample must be, each refusal in one sentence."""

from dataclasses import replace

import numpy as np
import pytest

from bocage.errors import InputError
from bocage.pretrain.sample import check_sample, present_steps

from .sample_data import make_sample


def changed(**values):
    sample = make_sample(n_steps=3)
    return replace(sample, values={**sample.values, **values})


def test_a_good_sample_passes_as_it_is():
    sample = make_sample()
    assert check_sample(sample) is sample


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda: replace(make_sample(), values={}), "with no modality; expected at least one se"),
        (
            lambda: make_sample(sensors=(), maps=("worldcover",)),
            "sample 0 with worldcover; expected at least one sensor",
        ),
        (
            lambda: changed(sentinel1=np.zeros((32, 32, 2, 2), np.float32)),
            r"sentinel1 of shape \[32, 32, 2, 2\] in sample 0; expected \[32, 32, 3, 2\]",
        ),
        (
            lambda: changed(worldcover=np.zeros((32, 32, 3, 1), np.float32)),
            r"worldcover of shape \[32, 32, 3, 1\] in sample 0; expected \[32, 32, 1, 1\]",
        ),
        (
            lambda: changed(sentinel2_l2a=np.zeros((32, 30, 3, 12), np.float32)),
            r"sentinel2_l2a of shape \[32, 30, 3, 12\].*square",
        ),
        (
            lambda: make_sample(
                n_steps=2,
                sensors=("sentinel1",),
                absent=(("sentinel1", 0), ("sentinel1", 1)),
            ),
            "sample 0, in which all timesteps are missing",
        ),
        (
            lambda: replace(make_sample(n_steps=2), timestamps=np.array([[1, 12, 2020]] * 2)),
            r"timestamps \[1, 12, 2020\] in sample 0.*count months from 0",
        ),
        (
            lambda: replace(make_sample(), timestamps=np.zeros((13, 3), int)),
            r"timestamps of shape \[13, 3\].*cut longer series",
        ),
        (lambda: changed(naip=np.zeros((1, 1, 1, 1))), "modality 'naip'"),
    ],
)
def test_a_bad_sample_is_refused_in_one_sentence(sample, message):
    with pytest.raises(InputError, match=message):
        check_sample(sample())


def test_a_step_is_present_if_any_pixel_of_it_is():
    x = np.full((4, 4, 3, 2), np.nan)
    x[2, 1, 1, 0] = 5
    assert present_steps(x).tolist() == [False, True, False]
