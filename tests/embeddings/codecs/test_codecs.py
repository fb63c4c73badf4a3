"""Every codec: one contract, and each against something outside the house."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bocage.embeddings.codecs import codec_names, load_codec, make_codec, save_codec
from bocage.embeddings.codecs.bits import pack, pack_trits, packed_width, unpack, unpack_trits
from bocage.embeddings.codecs.lloyd_max import normal_codebook
from bocage.embeddings.codecs.rotation import haar_rotation
from bocage.errors import ConfigError, InputError, StoreError

FAISS = ("rabitq", "rabitq2", "rabitq4", "pq12", "opq12", "rq3", "balanced_pq12")
PLAIN = [n for n in codec_names() if "<" not in n and not n.startswith("rabitq")]
REDUCED = [
    f"{r}24-{q}" for r in ("pca", "svd", "rp", "select", "prefix") for q in ("int8", "binary")
]
NODATA = {
    *("float32", "float16", "fp8", "signed_power", "signed_power_gain", "rotated_int8"),
    *("int8", "int8_percentile", "int8_mse", "pca24-int8"),
}


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Clustered, not centered, correlated; train and test."""
    rng = np.random.default_rng(0)
    centers = rng.normal(0, 0.2, (30, 96)) + 0.1
    x = centers[rng.integers(0, 30, 3000)] + rng.normal(0, 0.08, (3000, 96))
    return x[:2500].astype(np.float32), x[2500:].astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("name", [*PLAIN, *REDUCED, *FAISS])
def test_contract(name: str, vectors, tmp_path: Path) -> None:
    if name in FAISS:
        pytest.importorskip("faiss")
    train, test = vectors
    codec = make_codec(name, seed=1).fit(train, model="some-model")
    q = codec.encode(test)
    assert q.shape == (len(test), codec.code_width)
    assert q.dtype == codec.code_dtype
    assert q[0].nbytes == codec.code_bytes
    # Codes do not depend on the company of a vector.
    alone = codec.encode(test[7:8])
    if name.startswith("rabitq"):  # carries float factors, whose last bit is the matrix product's
        np.testing.assert_array_equal(alone[:, :12], q[7:8, :12])
    else:
        np.testing.assert_array_equal(alone, q[7:8])
    save_codec(codec, tmp_path / "codec")
    again = load_codec(tmp_path / "codec")
    np.testing.assert_array_equal(again.encode(test), q)
    assert again.fitted_on == {"model": "some-model", "n_rows": len(train)}
    total = codec.bytes_per_vector(1000, container_bytes=500)
    assert total == pytest.approx(codec.code_bytes + (codec.parameter_bytes() + 500) / 1000)
    if name in ("rabitq2", "rabitq4"):
        with pytest.raises(ConfigError, match="sign bit"):
            codec.decode(q)
    else:
        x = codec.decode(q)
        assert x.shape == test.shape
        assert x.dtype == np.float32
        np.testing.assert_array_equal(again.decode(q), x)


@pytest.mark.parametrize("name", [*PLAIN, "pca24-int8"])
def test_nodata_is_kept_or_refused_never_mixed(name: str, vectors) -> None:
    train, test = vectors
    codec = make_codec(name).fit(train)
    x = test.copy()
    x[[3, 8]] = np.nan
    if name in NODATA:
        decoded = codec.decode(codec.encode(x))
        np.testing.assert_array_equal(np.isnan(decoded).all(axis=1), np.isnan(x).all(axis=1))
        assert np.isfinite(decoded[[0, 1, 2, 4]]).all()
    else:
        with pytest.raises(InputError, match="2 of 500 vectors without data"):
            codec.encode(x)
    x[5, 1] = np.nan
    with pytest.raises(InputError, match=r"first row 5"):
        codec.encode(x)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("float16", 0.999999), ("fp8", 0.9985), ("int8", 0.9999), ("int8_mse", 0.9999),
        ("signed_power_gain", 0.9998), ("per_pixel_scale", 0.9999), ("int4_mse", 0.995),
        ("lloyd8", 0.9999), ("lloyd4", 0.995), ("pca24-int8", 0.9),
    ],
)  # fmt: skip
def test_decoded_vectors_point_the_same_way(name: str, least: float, vectors) -> None:
    train, test = vectors
    codec = make_codec(name).fit(train)
    assert cosine(test, codec.decode(codec.encode(test))).mean() > least


def test_int8_affine_error_is_at_most_half_a_step(vectors) -> None:
    train, _ = vectors
    codec = make_codec("int8").fit(train)
    step = (train.max(axis=0) - train.min(axis=0)) / 254
    error = np.abs(codec.decode(codec.encode(train)) - train)
    assert (error <= step / 2 + 1e-6).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_mse_ranges_are_the_best_of_a_fine_search(bits: int) -> None:
    x = np.random.default_rng(0).laplace(0, 1, (5000, 3)).astype(np.float32)  # heavy tails
    codec = make_codec(f"int{bits}_mse").fit(x)
    mine = np.square(codec.decode(codec.encode(x)) - x).mean(axis=0)
    top = 2**bits - 1
    best = np.full(3, np.inf)
    for factor in np.linspace(0.05, 1, 400):
        low, high = factor * x.min(axis=0), factor * x.max(axis=0)
        step = (high - low) / top
        y = low + step * np.clip(np.rint((x - low) / step), 0, top)
        best = np.minimum(best, np.square(y - x).mean(axis=0))
    assert (mine < 1.03 * best).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_percentile_ranges_do_not_follow_an_outlier(bits: int, vectors) -> None:
    train, test = vectors
    train = train.copy()
    train[0] *= 20

    def error(name: str) -> float:
        codec = make_codec(name).fit(train)
        return float(np.square(codec.decode(codec.encode(test)) - test).mean())

    assert error(f"int{bits}_percentile") < 0.5 * error(f"int{bits}")


def test_fp8_is_the_format_of_ml_dtypes(vectors) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    train, test = vectors
    codec = make_codec("fp8").fit(train)
    scale = np.float32(448) / np.abs(train).max()
    expected = np.clip(test * scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(codec.encode(test), expected.view(np.uint8))
    # Half an ulp of 3 mantissa bits is 1/16; the shortcut without rounding reaches 1/8.
    big = np.abs(test) > np.abs(train).max() / 448
    error = np.abs(codec.decode(codec.encode(test)) - test)[big] / np.abs(test)[big]
    assert error.max() <= 1 / 16 + 1e-5


def test_per_pixel_scale_is_the_rule_of_tessera(vectors) -> None:
    _, test = vectors
    codec = make_codec("per_pixel_scale").fit(test)
    q = codec.encode(test)
    scale = np.ascontiguousarray(q[:, -4:]).view("<f4")
    np.testing.assert_allclose(scale[:, 0], np.abs(test).max(axis=1) / 127, rtol=1e-6)
    np.testing.assert_array_equal(codec.decode(q), q[:, :-4].astype(np.float32) * scale)


def test_lloyd_max_codebooks_are_those_of_max_1960() -> None:
    # Table I of Max (1960), "Quantizing for minimum distortion", positive half.
    published = {
        1: [0.7980],
        2: [0.4528, 1.510],
        3: [0.2451, 0.7560, 1.344, 2.152],
        4: [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733],
    }
    for bits, values in published.items():
        half = normal_codebook(bits)[2 ** (bits - 1) :]
        np.testing.assert_allclose(half, values, rtol=5e-4)
    for bits in (1, 2, 3, 4):
        x = np.random.default_rng(0).normal(size=200_000)
        book = normal_codebook(bits)
        nearest = book[np.abs(x[:, None] - book).argmin(axis=1)]
        # Distortions of the same table: 0.3634, 0.1175, 0.03454, 0.009497.
        expected = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}[bits]
        assert np.square(x - nearest).mean() == pytest.approx(expected, rel=0.02)


def test_rotation_with_a_codebook_beats_rotation_with_min_max(vectors) -> None:
    train, test = vectors
    for bits in (2, 3, 4):
        errors = {}
        for name in (f"lloyd{bits}", f"rotated_int{bits}"):
            codec = make_codec(name).fit(train)
            errors[name] = np.square(codec.decode(codec.encode(test)) - test).mean()
        assert errors[f"lloyd{bits}"] < 0.8 * errors[f"rotated_int{bits}"]


def test_haar_rotations_are_orthogonal_seeded_and_not_sign_biased() -> None:
    r = haar_rotation(64, 3)
    np.testing.assert_allclose(r @ r.T, np.eye(64), atol=1e-5)
    np.testing.assert_array_equal(r, haar_rotation(64, 3))
    assert not np.array_equal(r, haar_rotation(64, 4))
    # LAPACK's Q has entries of one sign on the diagonal; Haar has none.
    signs = [np.sign(haar_rotation(8, s)[0, 0]) for s in range(60)]
    assert 15 < sum(s > 0 for s in signs) < 45


def test_binary_bits_and_hamming_distances(vectors) -> None:
    train, test = vectors
    for name, threshold in [
        ("binary", np.zeros(96)),
        ("binary_mean", train.mean(axis=0)),
        ("binary_median", np.median(train, axis=0)),
    ]:
        codec = make_codec(name).fit(train)
        bits = np.unpackbits(codec.encode(test), axis=1)
        assert (bits == (test > threshold)).mean() > 0.9999
        faiss = pytest.importorskip("faiss")
        index = faiss.IndexBinaryFlat(96)
        index.add(codec.encode(test))
        expected, rows = index.search(codec.encode(test[:9]), len(test))
        mine = codec.distances(test[:9], codec.encode(test))
        np.testing.assert_array_equal(np.take_along_axis(mine, rows, axis=1), expected)


def test_itq_reconstructs_better_than_mean_thresholds(vectors) -> None:
    train, test = vectors
    error = {}
    for name in ("binary_mean", "binary_itq"):
        codec = make_codec(name).fit(train)
        error[name] = np.square(codec.decode(codec.encode(test)) - test).mean()
    assert error["binary_itq"] < error["binary_mean"]


def test_levels_follow_distances_where_the_spectrum_falls() -> None:
    rng = np.random.default_rng(0)
    spread = 1 / np.arange(1, 65)
    turn = haar_rotation(64, 0)
    x = ((rng.normal(size=(3000, 64)) * spread) @ turn + 2).astype(np.float32)
    exact = np.linalg.norm(x[:50, None] - x[None], axis=2)
    agreement = {}
    for name in ("binary_mean", "binary_levels", "binary_levels2"):
        codec = make_codec(name).fit(x)
        apart = codec.distances(x[:50], codec.encode(x))
        agreement[name] = np.corrcoef(exact.ravel(), apart.ravel())[0, 1]
    assert (codec.code_bytes, codec.n_bits) == (16, 128)
    assert (
        agreement["binary_levels2"] > agreement["binary_levels"] > agreement["binary_mean"] + 0.02
    )


def test_levels_of_one_axis_are_exact_counts_of_steps() -> None:
    x = np.zeros((1000, 8), np.float32)
    x[:, 3] = np.linspace(0, 1, 1000)
    codec = make_codec("binary_levels2").fit(x)  # all 16 bits go to the one axis that varies
    apart = codec.distances(x[[100]], codec.encode(x))[0]
    expected = np.abs(x[:, 3] - x[100, 3]) / codec.step[0]
    inner = slice(10, 990)  # the outermost percent is not cut
    assert np.abs(apart - expected)[inner].max() <= 1
    assert np.abs(codec.decode(codec.encode(x)) - x)[inner].max() <= codec.step[0] / 2 + 1e-6


def test_pca_equals_scikit_learn(vectors) -> None:
    sklearn = pytest.importorskip("sklearn.decomposition")
    train, test = vectors
    codec = make_codec("pca24-float32").fit(train)
    reference = sklearn.PCA(24, svd_solver="full").fit(train)
    expected = reference.inverse_transform(reference.transform(test))
    np.testing.assert_allclose(codec.decode(codec.encode(test)), expected, atol=2e-4)
    codec = make_codec("svd24-float32").fit(train)
    reference = sklearn.TruncatedSVD(24, algorithm="arpack").fit(train)
    expected = reference.inverse_transform(reference.transform(test))
    np.testing.assert_allclose(codec.decode(codec.encode(test)), expected, atol=2e-4)


def test_prefix_and_selection_keep_numbers_as_they_are(vectors) -> None:
    train, test = vectors
    q = make_codec("prefix24-float32").fit(train).encode(test)
    np.testing.assert_array_equal(q, test[:, :24])
    q = make_codec("select24-float32").fit(train).encode(test)
    chosen = np.sort(np.argsort(-train.var(axis=0))[:24])
    np.testing.assert_array_equal(q, test[:, chosen])


@pytest.mark.parametrize(
    ("name", "least"), [("pq12", 0.95), ("opq12", 0.95), ("rabitq", 0.9), ("rabitq4", 0.99)]
)
def test_faiss_distances_are_those_of_a_faiss_index(name: str, least: float, vectors) -> None:
    pytest.importorskip("faiss")
    train, test = vectors
    codec = make_codec(name).fit(train)
    q = codec.encode(test)
    exact = np.square(train[:5, None] - test[None]).sum(axis=2)
    estimated = codec.distances(train[:5], q)
    assert np.corrcoef(exact.ravel(), estimated.ravel())[0, 1] > least
    distance, rows = codec.index_of(q).search(train[:5], 4)
    np.testing.assert_allclose(np.take_along_axis(estimated, rows, axis=1), distance)


@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_packing_is_undone_exactly(bits: int, dims: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**bits, (5, dims), dtype=np.uint8)
    packed = pack(values, bits)
    assert packed.shape == (5, packed_width(dims, bits))
    np.testing.assert_array_equal(unpack(packed, bits, dims), values)
    trits = rng.integers(0, 3, (5, dims), dtype=np.uint8)
    np.testing.assert_array_equal(unpack_trits(pack_trits(trits), dims), trits)


# -- bad input ---------------------------------------------------------------------------------


def test_wrong_dimensions_models_and_codes_are_refused(vectors) -> None:
    train, test = vectors
    codec = make_codec("int8").fit(train, model="olmoearth-v1.2-nano")
    with pytest.raises(InputError, match="vectors of 64 dimensions"):
        codec.encode(test[:, :64])
    with pytest.raises(InputError, match="which codec int8 was fitted on"):
        codec.check_model("clay-v1.5")
    codec.check_model("olmoearth-v1.2-nano")
    with pytest.raises(InputError, match="uint8"):
        codec.decode(codec.encode(test).view(np.uint8))
    with pytest.raises(InputError, match=r"\[N, 96\]"):
        codec.decode(codec.encode(test)[:, :50])
    with pytest.raises(InputError, match=r"\[N, D\]"):
        codec.encode(test[0])
    with pytest.raises(InputError, match="mixed dimensions"):
        codec.encode([[1.0, 2.0], [1.0]])
    with pytest.raises(InputError, match="NaN or infinity"):
        codec.encode(np.where(np.arange(96) == 5, np.inf, test))


def test_unusable_names_and_unfitted_codecs_say_the_fix(vectors, tmp_path: Path) -> None:
    train, _ = vectors
    for name in ("int9", "pca64", "pca0-int8", "zip", "pq0", "pca64-zip"):
        with pytest.raises(ConfigError, match="for example int8"):
            make_codec(name)
    with pytest.raises(ConfigError, match="call fit"):
        make_codec("int8").encode(train)
    with pytest.raises(InputError, match="at most 96"):
        make_codec("pca200-int8").fit(train)
    with pytest.raises(InputError, match="use pq6"):
        pytest.importorskip("faiss")
        make_codec("pq7").fit(train)
    with pytest.raises(InputError, match="no valid vector"):
        make_codec("int8").fit(train * np.nan)
    with pytest.raises(ConfigError, match="decode the codes"):
        make_codec("int8").fit(train).distances(train, train)
    with pytest.raises(StoreError, match="no readable codec"):
        load_codec(tmp_path)


def test_a_codec_of_a_newer_version_is_refused(vectors, tmp_path: Path) -> None:
    train, _ = vectors
    save_codec(make_codec("int8").fit(train), tmp_path)
    described = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps({**described, "version": 99}))
    with pytest.raises(StoreError, match="upgrade bocage"):
        load_codec(tmp_path)


def test_constant_dimensions_survive(vectors) -> None:
    train, test = vectors
    train, test = train.copy(), test.copy()
    train[:, 4] = test[:, 4] = 0.25
    for name in ("int8", "int2_mse", "binary_mean", "lloyd4", "ternary", "pca24-int8"):
        codec = make_codec(name).fit(train)
        assert np.isfinite(codec.decode(codec.encode(test))).all()
