"""What turns a cell into scores: a frozen probe on embeddings, or a fine-tuned network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError, InputError, SourceError
from bocage.learn.predict.legend import Legend

if TYPE_CHECKING:
    from bocage.embeddings.lazy_raster import LazyRaster
    from bocage.types import FloatArray, PathLike

TASKS = ("classification", "multilabel", "regression")

_ROWS = 65_536
"""Cells that go through a probe at once; scikit-learn makes a few float64 copies of them."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A probe or a fine-tuned network, and what its scores mean."""

    kind: str
    """"probe" or "finetuned"."""

    name: str
    """Where it came from, for people."""

    identity: str
    """Changes when the predictor does."""

    task: str
    """One of TASKS."""

    legend: Legend | None
    """The classes, in the order of the scores; None for regression."""

    scorer: Any
    """The probe or network itself."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the scores."""
        return self.legend.names if self.legend is not None else ("value",)

    def score(self, x: FloatArray) -> FloatArray:
        """Scores [K, h, w] of embeddings [D, h, w]; NaN where any value is NaN."""
        d, h, w = x.shape
        out = np.full((len(self.outputs), h * w), np.nan, np.float32)
        flat = x.reshape(d, -1)
        valid = np.flatnonzero(~np.isnan(np.einsum("dn->n", flat)))
        for start in range(0, len(valid), _ROWS):
            cells = valid[start : start + _ROWS]
            rows = np.ascontiguousarray(flat[:, cells].T)
            if self.task == "regression":
                scores = np.asarray(self.scorer.predict(rows), np.float32).reshape(len(rows), -1)
            else:
                scores = np.asarray(self.scorer.predict_proba(rows), np.float32)
            if scores.shape != (len(rows), len(self.outputs)):
                raise ConfigError(
                    got=f"{scores.shape[1]} scores per cell from {self.name}",
                    expected=f"{len(self.outputs)}, one for each of {', '.join(self.outputs[:6])}",
                    fix="make the probe again; its classes and its arrays do not belong together",
                )
            out[:, cells] = scores.T
        return out.reshape(-1, h, w)

    @property
    def fitted_on(self) -> dict[str, Any]:
        """Model, weights_id, patch_size, dims, codec that the predictor was made with."""
        stated = getattr(self.scorer, "embedding", None) or {}
        if isinstance(stated, Mapping):
            return dict(stated)
        names = ("model", "weights_id", "patch_size", "dims", "codec", "output")
        return {name: getattr(stated, name) for name in names if hasattr(stated, name)}

    def check_raster(self, raster: LazyRaster, where: str) -> None:
        """Refuse embeddings of another model, weights, patch size or length than it was fitted on.

        What one side does not say is not compared.
        """
        fitted = self.fitted_on
        theirs = {**raster.attrs, "dims": raster.shape[1]}
        for key, words in _COMPARED.items():
            mine, found = fitted.get(key), theirs.get(key)
            if mine in (None, "", 0) or found in (None, "", 0) or str(mine) == str(found):
                continue
            raise InputError(
                got=f"{where} with {words} {found}",
                expected=f"{words} {mine}, which {self.name} was fitted on",
                fix="predict from embeddings of the same model, or fit a probe on these",
            )


_COMPARED = {
    "dims": "dims",
    "model": "model",
    "patch_size": "patch size",
    "weights_id": "weights",
}


def load_predictor(source: PathLike | Any) -> Predictor:
    """Load what a folder holds: probe.json of `bocage probe` or head.json of `bocage finetune`.

    A probe or fine-tuned network in memory is taken as it is.
    """
    if not isinstance(source, (str, Path)):
        return _wrap(source, name=type(source).__name__, identity=_behavior(source))
    folder = Path(source)
    if (folder / "probe.json").exists():
        from bocage.learn.probe import load_probe

        return _wrap(load_probe(folder), name=str(folder), identity=_content(folder))
    if (folder / "head.json").exists():
        from bocage.learn.finetune import load_finetuned

        return _wrap(load_finetuned(folder), name=str(folder), identity=_content(folder))
    raise SourceError(
        got=f"{folder}" + (", which has neither" if folder.is_dir() else ", which is no folder"),
        expected="a folder with probe.json (a probe) or head.json (a fine-tuned network)",
        fix="make one with `bocage probe` or `bocage finetune`, and give its folder to --with",
    )


def _wrap(scorer: Any, *, name: str, identity: str) -> Predictor:
    task = str(getattr(scorer, "task", ""))
    if task == "segmentation":
        task = "classification"
    if task not in TASKS:
        raise ConfigError(
            got=f"task {task!r} of {name}",
            expected=f"one of {', '.join(TASKS)}",
            fix="make the probe again with this version",
        )
    return Predictor(
        kind="finetuned" if hasattr(scorer, "window_encoder") else "probe",
        name=name,
        identity=identity,
        task=task,
        legend=None if task == "regression" else Legend.of(scorer.classes),
        scorer=scorer,
    )


def _content(folder: Path) -> str:
    """Hash of the files that decide what is predicted."""
    digest = hashlib.sha256()
    names = (
        *("probe.json", "arrays.npz"),
        *("head.json", "head.safetensors", "config.json", "weights.safetensors"),
    )
    for path in (folder / name for name in names):
        if path.exists():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _behavior(scorer: Any) -> str:
    """Identity of what is only in memory: its weights, or what it says of fixed vectors."""
    if hasattr(scorer, "window_encoder"):
        return str(scorer.weights_id)
    stated = getattr(scorer, "embedding", None)
    dims = stated.get("dims") if isinstance(stated, Mapping) else getattr(stated, "dims", None)
    x = np.random.default_rng(0).standard_normal((256, int(dims or 1))).astype(np.float32)
    answer = scorer.predict(x) if scorer.task == "regression" else scorer.predict_proba(x)
    rounded = np.round(np.asarray(answer, np.float64), 6)
    return "memory:" + hashlib.sha256(rounded.tobytes()).hexdigest()[:16]
