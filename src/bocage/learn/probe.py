"""A probe: what was learnt on frozen embeddings, and what it may be used on."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from bocage.errors import InputError, StoreError
from bocage.learn.classes import LabelClass, classes_from_json, classes_to_json
from bocage.learn.estimators import Estimator, make_estimator
from bocage.learn.labels import Task

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from bocage.learn.sample import Samples
    from bocage.types import FloatArray, PathLike

FORMAT = "bocage-probe"
VERSION = 1

PROBE_FILE = "probe.json"
ARRAYS_FILE = "arrays.npz"


@dataclass(frozen=True, kw_only=True)
class FittedOn:
    """The embeddings that a probe understands."""

    dims: int
    model: str = ""
    patch_size: int = 0
    """0 where it is not known."""

    weights_id: str = ""
    codec: str = ""
    sensors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fitted estimator with its classes and the embeddings it belongs to."""

    estimator: Estimator = field(repr=False)
    """Its arrays are too long to print."""

    method: str
    setting: Mapping[str, float]
    task: Task
    classes: tuple[LabelClass, ...]
    embedding: FittedOn
    target: str = "label"
    n_samples: int = 0
    scores: Mapping[str, Any] = field(default_factory=dict)
    """Cross-validated."""

    confusion: tuple[tuple[int, ...], ...] = ()
    """Cross-validated samples [true class][predicted class]: what the areas of a map are judged
    by; empty where classes do not exclude each other."""

    def predict_proba(self, x: FloatArray) -> FloatArray:
        """Probabilities of the classes [n, C] float32, or of each label for multilabel.

        Rows with a value that is not finite give NaN.
        """
        if self.task == "regression":
            raise InputError(
                got="probabilities of a probe of numbers",
                expected="a probe of classes",
                fix="use predict()",
            )
        return self._scores(x)

    def predict(self, x: FloatArray) -> NDArray[Any]:
        """Class values int64 [n], flags bool [n, C] (probability 0.5), or numbers float32 [n].

        Rows must be finite, except for numbers, where they give NaN.
        """
        scores = self._scores(x)
        if self.task == "regression":
            return scores[:, 0]
        if not np.isfinite(scores).all():
            raise InputError(
                got=f"{int((~np.isfinite(scores).all(axis=1)).sum())} rows without data",
                expected="finite embeddings",
                fix="leave these rows out, or use predict_proba, which gives NaN for them",
            )
        if self.task == "multilabel":
            return np.asarray(scores > 0.5)
        values = np.array([c.value for c in self.classes], np.int64)
        return np.asarray(values[scores.argmax(axis=1)])

    def check(self, embeddings: xr.DataArray) -> None:
        """InputError if these embeddings are not of the kind the probe was fitted on."""
        attrs, own = embeddings.attrs, self.embedding
        found = FittedOn(
            dims=embeddings.sizes["band"],
            model=str(attrs.get("model", "")),
            patch_size=int(attrs.get("patch_size", 0) or 0),
            weights_id=str(attrs.get("weights_id", "")),
        )
        for name in ("dims", "model", "weights_id"):
            mine, theirs = getattr(own, name), getattr(found, name)
            if mine and theirs and mine != theirs:
                raise InputError(
                    got=f"embeddings with {name} {theirs}",
                    expected=f"{name} {mine}, which the probe was fitted on",
                    fix="embed with the probe's model, or fit a probe on these embeddings",
                )

    def _scores(self, x: FloatArray) -> FloatArray:
        x = np.asarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] != self.embedding.dims:
            raise InputError(
                got=f"features of shape {x.shape}",
                expected=f"[n, {self.embedding.dims}]",
                fix=f"use embeddings of {self.embedding.model or 'the model of the fit'}",
            )
        valid = np.isfinite(x).all(axis=1)
        if valid.all():
            return self.estimator.scores(x).astype(np.float32)
        found = np.full((len(x), max(len(self.classes), 1)), np.nan, np.float32)
        if valid.any():
            found[valid] = self.estimator.scores(x[valid])
        return found

    def save(self, folder: PathLike) -> None:
        """Write `probe.json` and `arrays.npz` into a folder."""
        from bocage.embeddings.atomic import write_file

        folder = Path(folder)
        written = io.BytesIO()
        np.savez(written, **self.estimator.arrays())  # type: ignore[arg-type]
        description = {
            "format": FORMAT,
            "version": VERSION,
            "task": self.task,
            "target": self.target,
            "classes": classes_to_json(self.classes),
            "method": self.method,
            "setting": dict(self.setting),
            "estimator": {"kind": self.estimator.kind, "options": self.estimator.options()},
            "embedding": asdict(self.embedding),
            "n_samples": self.n_samples,
            "scores": dict(self.scores),
            "confusion": [list(row) for row in self.confusion],
        }
        write_file(folder / ARRAYS_FILE, written.getbuffer())
        text = json.dumps(description, indent=1, allow_nan=False)
        write_file(folder / PROBE_FILE, text.encode())


def fitted_on(samples: Samples) -> FittedOn:
    """What a probe fitted on these samples will understand."""
    attrs = samples.attrs
    return FittedOn(
        dims=samples.x.shape[1],
        model=str(attrs.get("model", "")),
        patch_size=int(attrs.get("patch_size", 0) or 0),
        weights_id=str(attrs.get("weights_id", "")),
        codec=str(attrs.get("codec", "")),
        sensors=tuple(map(str, attrs.get("sensors", ()))),
    )


def load_probe(folder: PathLike) -> Probe:
    """Read a probe; StoreError if the folder holds none, a damaged one, or one of the future."""
    folder = Path(folder)
    try:
        stored = json.loads((folder / PROBE_FILE).read_text())
        with np.load(folder / ARRAYS_FILE, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if (stored["format"], stored["version"]) != (FORMAT, VERSION):
            raise StoreError(
                got=f"{folder / PROBE_FILE} of {stored['format']} {stored['version']}",
                expected=f"{FORMAT} {VERSION}",
                fix="update bocage, or fit the probe again",
            )
        return _from_json(stored, arrays)
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, BadZipFile) as e:
        raise StoreError(
            got=f"{folder}, which holds no readable probe ({type(e).__name__}: {e})",
            expected=f"a folder with {PROBE_FILE} and {ARRAYS_FILE}",
            fix="make one with `bocage probe`",
        ) from e


def _from_json(stored: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Probe:
    estimator = stored["estimator"]
    embedding = {**stored["embedding"], "sensors": tuple(stored["embedding"]["sensors"])}
    return Probe(
        estimator=make_estimator(estimator["kind"], arrays, estimator["options"]),
        method=stored["method"],
        setting=stored["setting"],
        task=stored["task"],
        classes=classes_from_json(stored["classes"]),
        embedding=FittedOn(**embedding),
        target=stored["target"],
        n_samples=stored["n_samples"],
        scores=stored["scores"],
        confusion=tuple(tuple(map(int, row)) for row in stored.get("confusion", ())),
    )
