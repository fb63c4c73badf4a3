"""Stacks to samples: windows of every source, refused if there is too little in them.

Sources are opened one after the other in the order given, their windows taken row by row and, for
long series, in runs of timesteps; that order is what a killed build resumes by.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.contents import contents_of
from bocage.errors import BocageError, BocageWarning, InputError, SourceError
from bocage.learn.raster import reading_of
from bocage.pretrain.build_config import BuildConfig
from bocage.pretrain.build_windows import Cut, CutWindow, cut_window, plan_windows
from bocage.pretrain.modalities import MODALITIES
from bocage.pretrain.sample import Sample
from bocage.pretrain.store import StoreLayout, StoreWriter
from bocage.progress import Advance, progress
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    import xarray as xr

    from bocage.types import PathLike

logger = logging.getLogger(__name__)

_NAMED = 5
"""So many unreadable sources are named in the printed report; the log names all."""


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build made."""

    path: Path
    n_sources: int
    n_candidates: int
    """Windows looked at; with dry_run those there are."""
    n_samples: int
    refused: dict[str, int]
    """Why windows, or sensors of windows, were left out, and how often."""
    per_modality: dict[str, int]
    """Samples that have each modality."""
    unreadable: tuple[str, ...]
    """Sources that could not be opened, each with the reason."""
    seconds: float
    was_finished: bool = False
    """Whether the same command had made the store before."""

    def __str__(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.n_samples} samples from {self.n_candidates} windows of {self.n_sources} sources"
        ]
        lines += [f"  {name}: {n} samples" for name, n in self.per_modality.items()]
        lines += [f"  left out: {n} x {why}" for why, n in self.refused.items()]
        lines += [f"  left out: {text}" for text in self.unreadable[:_NAMED]]
        if len(self.unreadable) > _NAMED:
            lines.append(f"  left out: {len(self.unreadable) - _NAMED} more sources")
        if self.was_finished:
            lines.append("nothing to do: the store was finished before")
        return "\n".join(lines)


def build_samples(
    sources: Sequence[PathLike | xr.Dataset | Sample],
    out: PathLike,
    config: BuildConfig | None = None,
    *,
    dry_run: bool = False,
    show_progress: bool = False,
) -> BuildReport:
    """Cut imagery into pretraining samples and write them as a store.

    Sources are folders or files as ``open_stack`` takes them, Stacks, or ready Samples. Run it
    again after a kill and it goes on. A source that cannot be opened is named, counted and left
    out; InputError if nothing at all remains.
    """
    config = config or BuildConfig()
    start = time.monotonic()
    parts = _list_sources(sources, config)
    stacks, unreadable = _survey(parts, config)
    named = tuple(f"{name}: {error.got}" for name, error in unreadable)
    n_candidates = sum(len(stack.windows) for stack in stacks)
    if not stacks:
        raise _nothing_opened(unreadable)
    for name, error in unreadable:
        logger.warning("source %s left out: %s", name, error)
    layout = StoreLayout(
        modalities=tuple(
            name for name in MODALITIES if any(name in stack.modalities for stack in stacks)
        ),
        size_px=config.size_px,
        max_steps=max(stack.longest for stack in stacks),
    )
    if dry_run:
        return _report(Path(out), parts, n_candidates, named, None, start)
    names = [part.name for part in parts]
    job = {"sources": names, "contents": _contents(parts), "config": _plain(config)}
    writer = StoreWriter(out, layout, job=job)
    with contextlib.closing(writer):
        if writer.is_finished:
            return _report(Path(out), parts, n_candidates, named, writer, start)
        if writer.n_taken:
            logger.warning("going on after %d of %d windows", writer.n_taken, n_candidates)
        with progress("samples", n_candidates, unit="windows", enabled=show_progress) as advance:
            _fill(writer, stacks, advance)
        writer.finish()
    return _report(Path(out), parts, n_candidates, named, writer, start)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One source: a path, a Stack, or a ready sample."""

    name: str
    data: Any


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """A source that opened, and where its samples lie."""

    part: _Part
    config: BuildConfig
    modalities: tuple[str, ...]
    longest: int
    windows: tuple[CutWindow, ...]

    def cut(self, *, skip: int = 0) -> Iterator[Cut]:
        """Samples of the windows in order, or why there is none."""
        if isinstance(self.part.data, Sample):
            yield Cut(sample=self.part.data)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BocageWarning)  # said when it was surveyed
            stack = _open(self.part, self.config)
        for window in self.windows[skip:]:
            yield cut_window(stack, self.part.name, self.config, window)


def _contents(parts: Sequence[_Part]) -> str:
    """Changes with what the sources hold; "" where arrays in memory are among them."""
    found = []
    for part in parts:
        attrs = getattr(part.data, "attrs", {})
        files = [part.name, *attrs.get("bocage_sources", ())]
        found.append(contents_of(files))
        if attrs:
            found.append(reading_of(part.data))
    return "" if "" in found else hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]


def _nothing_opened(unreadable: list[tuple[str, BocageError]]) -> BocageError:
    first = unreadable[0][1]
    if len(unreadable) > 1:
        got = f"no usable source among {len(unreadable)}; the first: {first.got}"
        return type(first)(got=got, expected=first.expected, fix=first.fix)
    return first


def _fill(writer: StoreWriter, stacks: Sequence[_Windows], advance: Advance) -> None:
    """Cut what is not in the store yet."""
    advance(writer.n_taken)
    position = 0
    for stack in stacks:
        first, position = position, position + len(stack.windows)
        if position <= writer.n_taken:
            continue
        for cut in stack.cut(skip=max(0, writer.n_taken - first)):
            if cut.sample is not None:
                writer.add(cut.sample, left_out=cut.left_out)
            else:
                writer.refuse(*cut.left_out)
            advance(1)


def _list_sources(sources: Sequence[Any], config: BuildConfig) -> list[_Part]:
    parts = []
    for number, source in enumerate(sources):
        if isinstance(source, Sample):
            parts.append(_Part(name=source.id, data=source))
        elif isinstance(source, str | Path):
            path = Path(source)
            if not path.exists() and "://" not in str(source):
                raise SourceError(
                    got=f"{source}, which does not exist",
                    expected="a folder or file of imagery",
                    fix="check the path",
                )
            parts += [_Part(name=str(p), data=p) for p in _files(path, each=config.each)]
        else:
            names = getattr(source, "attrs", {}).get("bocage_sources", [f"stack {number}"])
            parts.append(_Part(name=f"{names[0]}", data=source))
    if not parts:
        raise InputError(got="no source", expected="at least one", fix="pass imagery")
    return parts


def _files(path: Path, *, each: bool) -> list[Path]:
    if not (each and path.is_dir()):
        return [path]
    from bocage.imagery.folder import list_rasters

    return [Path(name) for name in list_rasters(str(path))]


def _open(part: _Part, config: BuildConfig) -> Any:
    if not isinstance(part.data, Path):
        return part.data
    from bocage.imagery import composite, open_stack

    with warnings.catch_warnings():
        # A thousand files without dates would say so a thousand times; _survey says it once.
        warnings.filterwarnings("ignore", "the imagery has no date", BocageWarning)
        stack = open_stack(part.data, **config.open_options)
    return stack if config.composite is None else composite(stack, period=config.composite)


def _survey(
    parts: Sequence[_Part], config: BuildConfig
) -> tuple[list[_Windows], list[tuple[str, BocageError]]]:
    """Open every source once (headers only) and plan its windows."""
    found: list[_Windows] = []
    unreadable: list[tuple[str, BocageError]] = []
    undated = 0
    for part in parts:
        try:
            if isinstance(part.data, Sample):
                sample = part.data
                found.append(
                    _Windows(
                        part=part,
                        config=config,
                        modalities=tuple(sample.values),
                        longest=len(sample.timestamps),
                        windows=((0, 0, 0, len(sample.timestamps)),),
                    )
                )
                continue
            stack = _open(part, config)
        except BocageError as error:
            unreadable.append((part.name, error))
            continue
        undated += stack.attrs.get("bocage_dates") == "unknown"
        windows = plan_windows(
            (stack.sizes["y"], stack.sizes["x"]), int(stack.sizes["time"]), config
        )
        found.append(
            _Windows(
                part=part,
                config=config,
                modalities=(*(name for name in SENSORS if name in stack.data_vars), *config.maps),
                longest=max(n for *_, n in windows),
                windows=windows,
            )
        )
    if undated:
        warnings.warn(
            f"{undated} of {len(parts)} sources have no date and are taken as of 1 July 2020; v1.2 "
            "and v1.3 use dates, so give them with date= (--date) if they are known",
            BocageWarning,
            stacklevel=3,
        )
    return found, unreadable


def _report(  # noqa: PLR0917 - it gathers what the build knows
    path: Path,
    parts: Sequence[_Part],
    n_candidates: int,
    unreadable: tuple[str, ...],
    writer: StoreWriter | None,
    start: float,
) -> BuildReport:
    return BuildReport(
        path=path,
        n_sources=len(parts),
        n_candidates=n_candidates,
        n_samples=len(writer) if writer else 0,
        refused=dict(writer.refused) if writer else {},
        per_modality=writer.per_modality() if writer else {},
        unreadable=unreadable,
        seconds=time.monotonic() - start,
        was_finished=writer is not None and writer.is_finished,
    )


def _plain(config: BuildConfig) -> dict[str, Any]:
    """The configuration as JSON; a resumed build must have the same."""
    mappings = {
        name: {str(k): repr(v) for k, v in getattr(config, name).items()}
        for name in ("maps", "open_options")
    }
    return {**vars(config), **mappings}
