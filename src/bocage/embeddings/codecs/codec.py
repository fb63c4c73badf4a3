"""What every codec is: fitted once per corpus, then float32 vectors to rows of codes and back.

A codec works on tables `[N, D]`; grids are tables of their cells (`compress.py`). One row of codes
is one vector, so codes can be filtered, sorted and cut like the table they came from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from bocage.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bocage.types import CodeArray, FloatArray, ValidArray


class Codec(ABC):
    """Codes of one kind: fit on training vectors only, encode, decode, count bytes.

    Subclasses implement `_fit`, `_encode`, `_decode` on checked arrays and name the arrays that
    they learn in `learned`; saving, checks, nodata and byte counts are shared.
    """

    distance: ClassVar[str | None] = None
    """"hamming" or "asymmetric" where distances can be read from codes; None where one decodes."""

    learned: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold fitted arrays; saved with the codec and counted in its bytes."""

    nodata: ClassVar[float | None] = None
    """Code of a vector without data (every entry of its row), or None: such vectors are refused."""

    def __init__(self, name: str, *, seed: int = 0) -> None:
        self.name = name
        """Name in the registry, for example "pca64-int8"."""
        self.seed = seed
        """Seed of every random choice, so that a codec can be made again."""
        self.dims = 0
        """D of the vectors it was fitted on; 0 before fitting."""
        self.fitted_on: dict[str, Any] = {}
        """What the training vectors were: model and number of rows."""

    # -- the four verbs ---------------------------------------------------------------------------

    def fit(self, x: FloatArray, *, model: str = "") -> Self:
        """Learn the codec from training vectors [N, D]; rows without data (NaN) are left out.

        Never fit on what is scored. `model` names the model of the vectors; `check_model` compares.
        """
        x = check_vectors(x)
        x = x[valid_rows(x)]
        if len(x) == 0:
            raise InputError(
                got="no valid vector to fit a codec on",
                expected="at least one vector without NaN",
                fix="pass a sample with data; rows of NaN are nodata",
            )
        self.dims = x.shape[1]
        self.fitted_on = {"model": model, "n_rows": len(x)}
        self._fit(x)
        return self

    def encode(self, x: FloatArray) -> CodeArray:
        """Turn vectors [N, D] into codes [N, width]; rows of NaN become `nodata` codes."""
        x = check_vectors(x, dims=self._fitted_dims())
        valid = valid_rows(x)
        if not valid.all():
            if self.nodata is None:
                raise InputError(
                    got=f"{int((~valid).sum())} of {len(x)} vectors without data (NaN)",
                    expected=f"finite vectors: codec {self.name} has no code for nodata",
                    fix="drop those rows and keep a valid mask, or use an int8 codec",
                )
            q = self._encode(np.where(valid[:, None], x, np.float32(0)))
            q[~valid] = self.nodata
            return q
        return self._encode(x)

    def decode(self, q: CodeArray) -> FloatArray:
        """Turn codes [N, width] back into vectors [N, D] float32; `nodata` rows become NaN."""
        self._fitted_dims()
        q = self.check_codes(q)
        x = self._decode(q)
        if self.nodata is not None and not np.isnan(self.nodata):
            x[(q[:, : self.code_width] == self.nodata).any(axis=1)] = np.nan
        return x

    def distances(self, queries: FloatArray, q: CodeArray) -> FloatArray:
        """Distances [Q, N] from real query vectors [Q, D] to codes, without decoding them."""
        del queries, q
        raise ConfigError(
            got=f"distances on codes asked of codec {self.name}",
            expected="a codec whose codes carry one: binary*, ternary, pq*, opq*, rq*, rabitq*",
            fix="decode the codes and compare the vectors",
        )

    def look(self, q: CodeArray) -> tuple[CodeArray, int]:
        """Packed bits of each code and how many, for views that count differing bits."""
        del q
        raise ConfigError(
            got=f"the bits of {self.name} codes",
            expected="binary* or balanced_pq*, whose codes say which side of the mean they are on",
            fix="build the index with code auto or binary_mean",
        )

    # -- what subclasses say ----------------------------------------------------------------------

    @property
    @abstractmethod
    def code_width(self) -> int:
        """Entries per row of codes."""

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Type of one entry of a row of codes."""
        return np.dtype(np.uint8)

    @abstractmethod
    def _fit(self, x: FloatArray) -> None: ...

    @abstractmethod
    def _encode(self, x: FloatArray) -> CodeArray: ...

    @abstractmethod
    def _decode(self, q: CodeArray) -> FloatArray: ...

    # -- shared -----------------------------------------------------------------------------------

    @property
    def n_bits(self) -> int:
        """Bits of a code that carry something; the rest of the last byte is padding."""
        return 8 * self.code_bytes

    @property
    def code_bytes(self) -> int:
        """Bytes of one vector's codes."""
        return self.code_width * self.code_dtype.itemsize

    def parameter_bytes(self) -> int:
        """Bytes of everything learned, stored once per corpus."""
        return sum(a.nbytes for a in self.arrays().values())

    def bytes_per_vector(self, n_vectors: int, *, container_bytes: int = 0) -> float:
        """True bytes per vector of a corpus: codes, plus its share of parameters and container."""
        n = max(n_vectors, 1)
        return self.code_bytes + (self.parameter_bytes() + container_bytes) / n

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Learned arrays by name, as saved."""
        return {name: np.asarray(getattr(self, name)) for name in self.learned}

    def restore(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Take back the arrays that `arrays` gave."""
        for name in self.learned:
            setattr(self, name, arrays[name])

    def check_codes(self, q: CodeArray) -> CodeArray:
        """Refuse codes of another type or width than this codec writes."""
        q = np.asarray(q)
        if q.ndim != 2 or q.dtype != self.code_dtype or q.shape[1] != self.code_width:
            raise InputError(
                got=f"codes of shape {q.shape} and type {q.dtype}",
                expected=f"[N, {self.code_width}] of {self.code_dtype} for codec {self.name}",
                fix="decode with the codec that was saved beside these codes",
            )
        return q

    def check_model(self, model: str) -> None:
        """Refuse to apply a codec to vectors of another model than it was fitted on."""
        mine = self.fitted_on.get("model", "")
        if mine and model and mine != model:
            raise InputError(
                got=f"vectors of {model}",
                expected=f"vectors of {mine}, which codec {self.name} was fitted on",
                fix="fit a codec on these vectors; the axes of two models have nothing in common",
            )

    def _fitted_dims(self) -> int:
        if self.dims == 0:
            raise ConfigError(
                got=f"codec {self.name} before it was fitted",
                expected="a fitted codec",
                fix="call fit(x) with training vectors, or load_codec(path)",
            )
        return self.dims


def has_look(codec: Codec) -> bool:
    """Whether views can be made from the codes of a codec alone."""
    return type(codec).look is not Codec.look


def check_vectors(x: FloatArray, *, dims: int | None = None) -> FloatArray:
    """Return `x` as contiguous float32 [N, D]; refuse other shapes, dimensions and infinities."""
    try:
        x = np.ascontiguousarray(x, dtype=np.float32)
    except ValueError as error:  # ragged lists
        raise InputError(
            got="vectors of mixed dimensions",
            expected="one dimension for all",
            fix="split the table by model; vectors of two models cannot share a corpus",
        ) from error
    if x.ndim != 2 or x.shape[1] == 0:
        raise InputError(
            got=f"an array of shape {x.shape}",
            expected="vectors [N, D]",
            fix="reshape a grid [D, y, x] with x.reshape(D, -1).T",
        )
    if dims is not None and x.shape[1] != dims:
        raise InputError(
            got=f"vectors of {x.shape[1]} dimensions",
            expected=f"{dims} dimensions, as the codec was fitted on",
            fix="use the codec of this corpus, or fit a new one",
        )
    return x


def valid_rows(x: FloatArray) -> ValidArray:
    """Rows that hold data; refuse rows that are partly NaN or infinite."""
    # One sum per row finds NaN and infinity in a single fast pass.
    with np.errstate(invalid="ignore", over="ignore"):
        suspect = ~np.isfinite(np.einsum("nd->n", x))
    valid: ValidArray = np.ones(len(x), np.bool_)
    if not suspect.any():
        return valid
    rows = np.flatnonzero(suspect)
    nan = np.isnan(x[rows])
    if np.isinf(x[rows]).any() or (nan.any(axis=1) & ~nan.all(axis=1)).any():
        bad = rows[np.isinf(x[rows]).any(axis=1) | (nan.any(axis=1) & ~nan.all(axis=1))]
        raise InputError(
            got=f"NaN or infinity inside {len(bad)} vectors (first row {int(bad[0])})",
            expected="finite vectors, or vectors of NaN only for nodata",
            fix="drop them, or set the whole vector to NaN where there is no data",
        )
    valid[rows[nan.all(axis=1)]] = False
    return valid


def row_blocks(n_rows: int, width: int, *, n_values: int = 1 << 18) -> Iterator[slice]:
    """Cut rows into blocks of about `n_values` values, so that scratch arrays stay in cache."""
    step = max(1, n_values // max(width, 1))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def training_sample(x: FloatArray, n_rows: int, seed: int) -> FloatArray:
    """At most `n_rows` rows, drawn without replacement and with a fixed seed."""
    if len(x) <= n_rows:
        return x
    chosen = np.random.default_rng(seed).choice(len(x), n_rows, replace=False)
    sample: FloatArray = x[np.sort(chosen)]
    return sample
