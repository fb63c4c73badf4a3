"""Official H5 samples to a store of our own, one after the other, resumable."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bocage.contents import contents_of
from bocage.errors import BocageError, InputError
from bocage.pretrain.official_h5 import H5Samples, read_official
from bocage.pretrain.store import StoreLayout, StoreWriter
from bocage.progress import progress

if TYPE_CHECKING:
    from bocage.types import PathLike

logger = logging.getLogger(__name__)

_BAD_BEFORE_STOP = 3


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion made."""

    path: Path
    n_samples: int
    refused: dict[str, int]
    """Why samples were left out."""
    was_finished: bool = False
    """Whether the same command had made the store before."""

    def __str__(self) -> str:
        """A line for people, and one per reason."""
        lines = [f"{self.n_samples} samples"]
        lines += [f"  left out: {n} {why}" for why, n in self.refused.items()]
        if self.was_finished:
            lines.append("nothing to do: the store was finished before")
        return "\n".join(lines)


def convert_samples(
    source: PathLike,
    out: PathLike,
    *,
    float32: tuple[str, ...] = (),
    max_bad_share: float = 0.01,
    show_progress: bool = False,
) -> ConvertReport:
    """Turn a folder of official H5 samples into a store; run it again after a kill and it goes on.

    Whole numbers stay exactly as they are. A damaged sample is named, counted and left out; more
    than ``max_bad_share`` of them (and more than 3) raise InputError. ``float32`` keeps those
    modalities as real numbers.
    """
    samples = H5Samples(source)
    layout = StoreLayout(
        modalities=samples.modalities,
        size_px=samples.size_px,
        max_steps=samples.max_steps,
        float32=float32,
    )
    job = {"source": str(source), "n": len(samples), "contents": contents_of([source])}
    writer = StoreWriter(out, layout, job=job)
    allowed = max(_BAD_BEFORE_STOP, max_bad_share * len(samples))
    with contextlib.closing(writer):
        with progress("samples", len(samples), unit="samples", enabled=show_progress) as advance:
            advance(writer.n_taken)
            left = () if writer.is_finished else range(writer.n_taken, len(samples))
            for index in left:
                try:
                    sample = read_official(samples.file(index))
                except BocageError as error:
                    logger.warning("left out: %s", error)
                    writer.refuse("damaged samples")
                    if sum(writer.refused.values()) > allowed:
                        raise InputError(
                            got=f"{sum(writer.refused.values())} damaged samples among the first "
                            f"{index + 1} of {len(samples)}, the last: {error.got}",
                            expected=f"at most {max_bad_share:.0%} of them",
                            fix="download them again, or raise max_bad_share (--max-bad-share)",
                        ) from error
                else:
                    writer.add(sample)
                advance(1)
        writer.finish()
    return ConvertReport(
        path=Path(out),
        n_samples=len(writer),
        refused=dict(writer.refused),
        was_finished=writer.is_finished,
    )
