"""Signed-power int8 against the published golden vectors and the formula in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bocage.embeddings.codecs.signed_power import NODATA, decode, encode
from bocage.errors import InputError

GOLDEN_ENCODE = {
    0.0: 0, 1e-5: 0, 1e-4: 1, 0.01: 13, 0.0884: 38,
    0.25: 64, 0.5: 90, 1.0: 127, -0.25: -64, -1.0: -127,
}  # fmt: skip
# The two smallest are published with four digits, cut off: 6.15148e-05 appears as 6.151e-05.
GOLDEN_DECODE = {64: 0.25196463, 100: 0.61514802, 127: 0.99217224}
GOLDEN_DECODE_FOUR_DIGITS = {1: 6.151e-05, -1: -6.151e-05, 2: 2.4606e-04}


def test_encode_matches_the_published_golden_vectors() -> None:
    x = np.array(list(GOLDEN_ENCODE), np.float32)
    assert encode(x).tolist() == list(GOLDEN_ENCODE.values())


def test_decode_matches_the_published_golden_vectors() -> None:
    q = np.array(list(GOLDEN_DECODE), np.int8)
    np.testing.assert_allclose(decode(q), list(GOLDEN_DECODE.values()), rtol=1e-7)
    small = decode(np.array(list(GOLDEN_DECODE_FOUR_DIGITS), np.int8))
    np.testing.assert_allclose(small, list(GOLDEN_DECODE_FOUR_DIGITS.values()), rtol=1e-4)


def test_every_code_decodes_and_encodes_to_itself_and_nodata_is_nan() -> None:
    q = np.arange(-128, 128).astype(np.int8)
    x = decode(q)
    assert np.isnan(x[0])
    assert np.isfinite(x[1:]).all()
    np.testing.assert_array_equal(encode(x), q)
    assert encode(np.array([np.nan], np.float32))[0] == NODATA


@given(hnp.arrays(np.float32, st.integers(0, 200), elements=st.floats(-2, 2, width=32)))
def test_encode_equals_the_formula_in_float64(x: np.ndarray) -> None:
    exact = np.clip(np.sign(x) * np.sqrt(np.abs(x.astype(np.float64))) * 127.5, -127, 127)
    # float32 may round a tie to the other neighbor; nothing may be further than half a code away.
    assert (np.abs(encode(x) - exact) <= 0.5 + 1e-4).all()


def test_blocks_layouts_and_out_give_the_same_codes() -> None:
    x = np.random.default_rng(0).normal(0, 0.2, (3, 500, 150)).astype(np.float32)  # > 3 blocks
    x[1, 2, 3] = np.nan
    q = encode(x)
    parts = np.concatenate([encode(row) for row in x.reshape(-1, 150)])
    np.testing.assert_array_equal(q.reshape(-1), parts)
    np.testing.assert_array_equal(encode(x.transpose(2, 0, 1)), q.transpose(2, 0, 1))
    out = np.empty(x.shape, np.int8)
    assert encode(x, out=out) is out
    np.testing.assert_array_equal(decode(q.transpose(2, 0, 1)), decode(q).transpose(2, 0, 1))


def test_infinity_clips_and_never_becomes_nodata() -> None:
    assert encode(np.array([np.inf, -np.inf], np.float32)).tolist() == [127, -127]


def test_codes_of_another_type_are_refused() -> None:
    with pytest.raises(InputError, match="uint8"):
        decode(np.zeros(3, np.uint8))
    with pytest.raises(InputError, match="out of shape"):
        encode(np.zeros(3, np.float32), out=np.zeros(4, np.int8))
