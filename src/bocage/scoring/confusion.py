"""Scores of classes: accuracy, F1, IoU and the table per class, from one confusion matrix.

mIoU is global: intersections and unions of all pixels are added up before dividing. A mean of
batch mIoUs depends on the batch size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError
from bocage.scoring.accumulator import N_SLOTS, Accumulator, mean_defined, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

_CHUNK = 1 << 16  # pixels at a time, so that the scratch arrays stay in cache


class Confusion(Accumulator):
    """Classification and segmentation: counts of true against predicted classes.

    Scores: accuracy, balanced_accuracy (mean recall), f1_micro (equal to accuracy, as each sample
    has one class), f1_macro, miou, kappa; per class precision, recall, f1, iou. A class that is
    neither true nor predicted anywhere is left out of the means; the precision of a class that is
    never predicted is not defined.
    """

    def __init__(
        self, classes: int | Sequence[str], *, ignore: int | None = None, n_slots: int | None = None
    ) -> None:
        self.classes = (
            [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        )
        self.ignore = ignore
        k = len(self.classes)
        if k < 2:
            raise InputError(
                got=f"{k} class", expected="at least two classes", fix="name the rest a class too"
            )
        if n_slots is None:  # 300 MB at most
            n_slots = int(np.clip((300 << 20) // (8 * k * k), 16, N_SLOTS))
        super().__init__({"confusion": (k, k)}, n_slots)

    def update(
        self, prediction: ArrayLike, target: ArrayLike, *, block: ArrayLike | None = None
    ) -> Self:
        """Add class numbers.

        Args:
            prediction: Classes 0..K-1: samples [n], one map [H, W], or images [B, H, W].
            target: The truth, of the same shape; `ignore` is not counted.
            block: The unit that each sample, map, image or pixel belongs to. Without it samples
                [n] count as independent, and each map or image as one unit. Pass image numbers if
                intervals must not depend on the number of processes.
        """
        p, t = np.asarray(prediction), np.asarray(target)
        self._check(p, t)
        matrix = self._sums["confusion"]
        k = len(self.classes)
        for slot, true, guess in self._units(p, t, block):
            codes = np.empty(_CHUNK, np.intp)
            counts = np.zeros(k * k * (1 if isinstance(slot, int) else self.n_slots), np.int64)
            for start in range(0, len(true), _CHUNK):
                rows = slice(start, start + _CHUNK)
                a, b = true[rows], guess[rows]
                keep = slice(None)
                if self.ignore is not None:
                    keep = a != self.ignore
                    a, b = a[keep], b[keep]
                if len(a) == 0:
                    continue
                self._check_range(a, b)
                code = np.multiply(a, k, out=codes[: len(a)], casting="unsafe", dtype=np.intp)
                np.add(code, b, out=code, casting="unsafe", dtype=np.intp)
                if not isinstance(slot, int):
                    code += slot[rows][keep] * (k * k)
                counts += np.bincount(code, minlength=len(counts))
            if isinstance(slot, int):
                matrix[slot] += counts.reshape(k, k)
                self._sums["n"][slot] += counts.sum()
            else:
                per_slot = counts.reshape(self.n_slots, k, k)
                matrix += per_slot
                self._sums["n"] += per_slot.sum(axis=(1, 2))
        return self

    def _units(
        self, p: NDArray[Any], t: NDArray[Any], block: ArrayLike | None
    ) -> Iterator[tuple[int | NDArray[np.int64], NDArray[Any], NDArray[Any]]]:
        """(slot or slots, flat truth, flat prediction)."""
        size = None if block is None else np.asarray(block).size
        if t.ndim == 1 or (size == t.size and size > 1):
            yield self._slots(t.size, block), t.reshape(-1), p.reshape(-1)
        elif t.ndim == 2:
            yield int(self._slots(1, block)[0]), t.reshape(-1), p.reshape(-1)
        else:
            for slot, true, guess in zip(self._slots(len(t), block), t, p, strict=True):
                yield int(slot), true.reshape(-1), guess.reshape(-1)

    def _check(self, p: NDArray[Any], t: NDArray[Any]) -> None:
        if p.shape != t.shape or t.ndim == 0:
            raise InputError(
                got=f"predictions {p.shape} and targets {t.shape}",
                expected="one class number for each target",
                fix="take the argmax of scores over the class axis, and the same pixels",
            )
        for what, x in (("predictions", p), ("targets", t)):
            if x.dtype.kind not in "biu":
                raise InputError(
                    got=f"{what} of type {x.dtype}",
                    expected="class numbers",
                    fix="take the argmax, or convert with .astype(int) after masking NaN",
                )

    def _check_range(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        k = len(self.classes)
        for what, x in (("target", a), ("predicted", b)):
            low, high = int(x.min()), int(x.max())
            if low < 0 or high >= k:
                raise InputError(
                    got=f"{what} class {low if low < 0 else high}",
                    expected=f"classes 0 to {k - 1} ({', '.join(self.classes[:4])}"
                    + (", ...)" if k > 4 else ")"),
                    fix="pass all classes, or name the value that means no label as ignore=",
                )

    def _row_names(self) -> tuple[str, list[str]]:
        return "class", self.classes

    def _row_counts(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {
            "support": sums["confusion"].sum(axis=1),
            "predicted": sums["confusion"].sum(axis=0),
        }

    def _scores(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return class_scores(sums["confusion"])


def class_scores(confusion: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """All scores of confusion matrices [..., true class, predicted class], without intervals."""
    matrix = np.asarray(confusion, np.float64)
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    true, guess = matrix.sum(axis=-1), matrix.sum(axis=-2)
    n = true.sum(axis=-1)
    recall = ratio(right, true)
    f1 = ratio(2 * right, true + guess)
    iou = ratio(right, true + guess - right)
    accuracy = ratio(right.sum(axis=-1), n)
    chance = ratio((true * guess).sum(axis=-1), n * n)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": mean_defined(recall),
        "f1_micro": accuracy,
        "f1_macro": mean_defined(f1),
        "miou": mean_defined(iou),
        "kappa": ratio(accuracy - chance, 1 - chance),
        "precision": ratio(right, guess),
        "recall": recall,
        "f1": f1,
        "iou": iou,
    }
