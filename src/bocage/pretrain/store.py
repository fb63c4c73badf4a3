"""A store of samples made for random crops: Zarr v3, one array per modality, sharded.

Array ``<modality>`` is [sample, time, band, y, x] in the stored type of ``modalities``; a shard
holds 16 samples, an inner chunk 32 x 32 pixels of 3 timesteps, so a crop decompresses only what it
touches and a missing modality costs nothing. Small arrays beside them (``timestamps``,
``present``, ``latlon``, ``ids``) say what each sample has.

Shards are written whole, each followed by a line in ``journal.jsonl``; the metadata come last. A
killed run leaves shards and a journal, and the same command goes on from there. ``job.json`` says
what a finished store was made of, so that the same command knows it again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.difference import describe_difference
from bocage.embeddings.atomic import naming_failures, write_file
from bocage.errors import InputError, StoreError
from bocage.learn.predict.lock import hold, let_go
from bocage.pretrain.modalities import MODALITIES, modality
from bocage.pretrain.sample import MAX_STEPS, Sample, check_sample, present_steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bocage.types import PathLike

JOURNAL = "journal.jsonl"
JOB = "job.json"
FORMAT = "bocage-samples"
VERSION = 1
DIMENSIONS = ("sample", "time", "band", "y", "x")
ZSTD_LEVEL = 3
_ROUNDED = ("sentinel2_l2a", "landsat")


@dataclass(frozen=True, kw_only=True)
class StoreLayout:
    """Shape of a store of samples."""

    modalities: tuple[str, ...]
    """What the samples may have; each sample has some of them."""

    size_px: int = 128
    """Side of a sample."""

    max_steps: int = MAX_STEPS
    """Timesteps of the longest sample."""

    chunk_px: int = 32
    """Side of an inner chunk: what a crop decompresses at least. Over the crops of v1.2, 32 costs
    0.7 ms of decoding, 16 as much, 64 1.2 ms and a whole sample 4.0 ms (docs/defaults.md)."""

    chunk_steps: int = 3
    """Timesteps of an inner chunk, if they divide the timesteps of the store."""

    samples_per_shard: int = 16
    """Samples in one file per modality."""

    float32: tuple[str, ...] = ()
    """Modalities kept as real numbers although their stored type is a whole number."""

    def __post_init__(self) -> None:
        """Check sizes and names."""
        for size, option in (
            (self.chunk_px, "chunk_px"),
            (self.chunk_steps, "chunk_steps"),
            (self.samples_per_shard, "samples_per_shard"),
        ):
            if size < 1:
                raise InputError(got=f"{option}={size}", expected="1 or more", fix="change it")
        for name in (*self.modalities, *self.float32):
            modality(name)
        if self.size_px < 1 or not 1 <= self.max_steps <= MAX_STEPS:
            raise InputError(
                got=f"samples of {self.size_px} pixels and {self.max_steps} timesteps",
                expected=f"at least 1 pixel and 1 to {MAX_STEPS} timesteps",
                fix="check size (--size) and max_steps (--max-steps)",
            )

    def dtype(self, name: str) -> tuple[str, float]:
        """Stored type of a modality and its value for missing data."""
        if name in self.float32:
            return "float32", float("nan")
        return MODALITIES[name].dtype, MODALITIES[name].missing

    def n_steps(self, name: str) -> int:
        """Timesteps of the array of a modality."""
        return 1 if MODALITIES[name].is_map else self.max_steps

    @property
    def chunk(self) -> int:
        """Side of an inner chunk that divides the sample."""
        return self.chunk_px if self.size_px % self.chunk_px == 0 else self.size_px

    def chunk_times(self, name: str) -> int:
        """Timesteps of an inner chunk of a modality: the most that divide its timesteps."""
        n_steps = self.n_steps(name)
        return max(n for n in range(1, self.chunk_steps + 1) if n_steps % n == 0)


class StoreWriter:
    """Adds samples to a store one after the other and survives being killed.

    Samples come from a list of candidates in a fixed order. Each is either added or refused;
    ``n_taken`` says from which one to go on after a restart.
    """

    def __init__(self, path: PathLike, layout: StoreLayout, *, job: dict[str, Any]) -> None:
        """Begin a store, go on with an unfinished one of the same job, or find it finished.

        ``job`` is whatever decides the content (sources, options). StoreError if the path holds
        something else, or a store of another job.
        """
        self.path = Path(path)
        self.layout = layout
        self.refused: Counter[str] = Counter()
        self.n_taken = 0
        self._samples: list[dict[str, Any]] = []
        self._waiting: list[Sample] = []
        self._begun = False
        self._finished: dict[str, Any] | None = None
        self._job = json.loads(json.dumps({"layout": asdict(layout), "job": job}))
        self._lock = hold(self.path, "one writer per store")
        try:
            with naming_failures(self.path):
                self._begin()
        except BaseException:
            self.close()
            raise

    @property
    def is_finished(self) -> bool:
        """Whether the same job was finished before: there is nothing to add."""
        return self._finished is not None

    def __len__(self) -> int:
        """Samples added so far."""
        if self._finished is not None:
            return int(self._finished["samples"])
        return len(self._samples) + len(self._waiting)

    def per_modality(self) -> dict[str, int]:
        """Samples that have each modality."""
        if self._finished is not None:
            return dict(self._finished["per_modality"])
        names = [name for sample in self._samples for name in sample["present"]]
        return {name: names.count(name) for name in self.layout.modalities}

    def add(self, sample: Sample, *, left_out: Sequence[str] = ()) -> None:
        """Add the next candidate; InputError if it does not fit the store.

        ``left_out`` says what the candidate had besides, and is counted.
        """
        check_sample(sample)
        self._check_fits(sample)
        self.refused.update(left_out)
        self._waiting.append(sample)
        self.n_taken += 1
        if len(self._waiting) == self.layout.samples_per_shard:
            self._flush()

    def refuse(self, *reasons: str) -> None:
        """Leave the next candidate out and count why."""
        self.refused.update(reasons)
        self.n_taken += 1

    def finish(self) -> int:
        """Write what is left and the metadata; returns the number of samples."""
        if self.is_finished:
            return len(self)
        if self._waiting:
            self._flush()
        if not self._samples:
            raise InputError(
                got=f"no usable sample ({_reasons(self.refused)})",
                expected="at least one",
                fix="check the sources and options",
            )
        with naming_failures(self.path):
            used = tuple(name for name, n in self.per_modality().items() if n)
            layout = replace(self.layout, modalities=used)
            facts = {
                "samples": len(self),
                "taken": self.n_taken,
                "refused": dict(self.refused),
                "per_modality": self.per_modality(),
            }
            write_file(self.path / JOB, json.dumps({**self._job, "made": facts}).encode())
            _write_metadata(self.path, layout, self._samples, dict(self.refused))
            (self.path / JOURNAL).unlink()
        self.close()
        return len(self._samples)

    def close(self) -> None:
        """Let others write; an unfinished store can be continued, one without samples goes."""
        if not self._lock.closed:
            let_go(self._lock)
            if self._begun and not self._samples:
                shutil.rmtree(self.path, ignore_errors=True)

    def _begin(self) -> None:
        journal = self.path / JOURNAL
        taken = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if taken and not journal.exists():
            self._begin_finished()
            return
        lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
        # The last part is half a line or nothing: a line counts once it has its end.
        if len(lines) < 2:  # nothing is kept yet, so another job may take over
            write_file(journal, _line(self._job))
            self._begun = True
            return
        self._check_job(json.loads(lines[0]), f"{self.path}, an unfinished store begun with")
        for line in lines[1:]:
            entry = json.loads(line)
            self._samples += entry["samples"]
            self.n_taken, self.refused = entry["taken"], Counter(entry["refused"])
        write_file(journal, b"".join(line + b"\n" for line in lines))

    def _begin_finished(self) -> None:
        """Take over the counts of a finished store of this job.

        A job whose ``contents`` are not known, such as arrays in memory, is never the same.
        """
        try:
            if not self._job["job"]["contents"]:
                raise ValueError
            known = json.loads((self.path / JOB).read_bytes())
            made = known.pop("made")
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                got=f"{self.path}, which exists already",
                expected="a new path, or a store of the same command",
                fix="choose another --out, or delete it first",
            ) from error
        self._check_job(known, f"{self.path}, which was made with")
        self._finished = made
        self.n_taken, self.refused = made["taken"], Counter(made["refused"])

    def _check_job(self, known: dict[str, Any], words: str) -> None:
        if known != self._job:
            difference = describe_difference(_options(known), _options(self._job))
            raise StoreError(
                got=f"{words} {difference}",
                expected="the same sources and options",
                fix="repeat the command that made it, choose another --out, or delete it first",
            )

    def _check_fits(self, sample: Sample) -> None:
        layout = self.layout
        for name, x in sample.values.items():
            if name not in layout.modalities:
                raise InputError(
                    got=f"{name} in {sample.id}",
                    expected=f"one of the modalities of this store: {', '.join(layout.modalities)}",
                    fix="leave it out, or begin a store that has it",
                )
            if x.shape[0] != layout.size_px:
                raise InputError(
                    got=f"{sample.id} of {x.shape[0]} x {x.shape[1]} pixels",
                    expected=f"{layout.size_px} x {layout.size_px}, as in this store",
                    fix="cut all samples to one size",
                )
        if len(sample.timestamps) > layout.max_steps:
            raise InputError(
                got=f"{sample.id} with {len(sample.timestamps)} timesteps",
                expected=f"at most {layout.max_steps} in this store",
                fix="begin a store with more timesteps",
            )

    def _flush(self) -> None:
        """Write one shard per modality, then the line that makes them count."""
        shard = len(self._samples) // self.layout.samples_per_shard
        for name in self.layout.modalities:
            data = _encode_shard(self.layout, name, self._waiting)
            target = self.path / name / "c" / str(shard) / "0" / "0" / "0" / "0"
            if data is not None:
                write_file(target, data)
            else:
                target.unlink(missing_ok=True)
        added = [_describe(sample) for sample in self._waiting]
        entry = {"taken": self.n_taken, "refused": dict(self.refused), "samples": added}
        with naming_failures(self.path), (self.path / JOURNAL).open("ab") as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())
        self._samples += added
        self._waiting = []


def _options(job: dict[str, Any]) -> dict[str, Any]:
    """Layout, sources and options side by side: what a person would compare."""
    config = job["job"].get("config", {})
    return {**job["layout"], **{k: v for k, v in job["job"].items() if k != "config"}, **config}


def encode(layout: StoreLayout, name: str, x: NDArray[Any], where: str) -> NDArray[Any]:
    """Stored codes [T, C, H, W] of values [H, W, T, C]; NaN becomes the missing code.

    Sentinel-2 and Landsat digital numbers are rounded and negative ones become 0. Other values
    that the stored type cannot hold exactly raise InputError.
    """
    dtype, missing = layout.dtype(name)
    moved = np.moveaxis(np.asarray(x, np.float32), (2, 3), (0, 1))
    if dtype == "float32":
        return np.ascontiguousarray(moved)
    valid = np.isfinite(moved)
    limits = np.iinfo(dtype)
    if name in _ROUNDED:
        # A saturated 65535 stays saturated: the code itself means missing.
        moved = np.clip(np.rint(moved), 0, limits.max - 1)
    filled = np.where(valid, moved, np.float32(missing))
    codes: NDArray[Any] = np.clip(filled, limits.min, limits.max).astype(dtype)
    wrong = valid & ((codes != filled) | (codes == missing))
    if bool(wrong.any()):
        raise InputError(
            got=f"{name} value {float(filled[wrong][0]):g} in {where}",
            expected=f"whole numbers that fit {dtype} without {missing:g}",
            fix=f"keep this modality as real numbers: float32=({name!r},) (--float32 {name})",
        )
    return codes


def decode(codes: NDArray[Any], missing: float) -> NDArray[np.float32]:
    """Values of stored codes, NaN where they mean missing."""
    x = codes.astype(np.float32)
    if not np.isnan(missing):
        x[codes == missing] = np.nan
    return x


def _encode_shard(layout: StoreLayout, name: str, samples: Sequence[Sample]) -> bytes | None:
    """Bytes of one shard file, or None if no sample has the modality."""
    import zarr
    from zarr.storage import MemoryStore

    if not any(name in sample.values for sample in samples):
        return None
    options = _array_options(layout, name)
    codes = np.full(options["shards"], options["fill_value"], options["dtype"])
    for row, sample in enumerate(samples):
        if name in sample.values:
            piece = encode(layout, name, sample.values[name], sample.id)
            codes[row, : len(piece)] = piece
    chunks: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(chunks), name=name, shape=codes.shape, zarr_format=3, **options
    )
    array[...] = codes
    data = chunks.get(f"{name}/c/0/0/0/0/0")
    return None if data is None else bytes(data.to_bytes())


def _array_options(layout: StoreLayout, name: str) -> dict[str, Any]:
    dtype, missing = layout.dtype(name)
    n_bands, side = len(MODALITIES[name].bands), layout.size_px
    return {
        "dtype": dtype,
        "chunks": (1, layout.chunk_times(name), n_bands, layout.chunk, layout.chunk),
        "shards": (layout.samples_per_shard, layout.n_steps(name), n_bands, side, side),
        "fill_value": missing,
        "compressors": [_zstd()],
        "dimension_names": DIMENSIONS,
    }


def _zstd() -> Any:
    """With a checksum: without one, rotten bytes decode to other numbers."""
    from zarr.codecs import ZstdCodec

    return ZstdCodec(level=ZSTD_LEVEL, checksum=True)


def _write_metadata(
    path: Path, layout: StoreLayout, samples: list[dict[str, Any]], refused: dict[str, int]
) -> None:
    """Arrays of the samples' properties and all zarr.json; the group's own comes last."""
    import zarr
    from zarr.storage import LocalStore

    n = len(samples)
    store = LocalStore(path)
    for name in layout.modalities:
        shape = (n, *_array_options(layout, name)["shards"][1:])
        # A run killed right here left them; overwrite= would delete the shards as well.
        (path / name / "zarr.json").unlink(missing_ok=True)
        zarr.create_array(
            store, name=name, shape=shape, zarr_format=3, **_array_options(layout, name)
        )
    names = list(layout.modalities)
    timestamps = np.zeros((n, layout.max_steps, 3), np.int16)
    present = np.zeros((n, len(names), layout.max_steps), np.bool_)
    n_steps = np.zeros(n, np.int16)
    latlon = np.full((n, 2), np.nan, np.float32)
    ids = [sample["id"].encode() for sample in samples]
    id_bytes = np.zeros((n, max(map(len, ids))), np.uint8)
    for row, sample in enumerate(samples):
        stamps = np.asarray(sample["timestamps"], np.int16)
        n_steps[row] = len(stamps)
        timestamps[row, : len(stamps)] = stamps
        timestamps[row, len(stamps) :] = stamps[-1]
        latlon[row] = [np.nan if v is None else v for v in sample["latlon"]]
        id_bytes[row, : len(ids[row])] = np.frombuffer(ids[row], np.uint8)
        for name, steps in sample["present"].items():
            present[row, names.index(name), : len(steps)] = steps
    tables = {
        "timestamps": timestamps,
        "present": present,
        "n_steps": n_steps,
        "latlon": latlon,
        "ids": id_bytes,
    }
    for name, table in tables.items():
        chunks = (min(n, 65_536), *table.shape[1:])
        array = zarr.create_array(
            store,
            name=name,
            shape=table.shape,
            dtype=table.dtype,
            chunks=chunks,
            compressors=[_zstd()],
            zarr_format=3,
            overwrite=True,
        )
        array[...] = table
    attributes = {
        "format": FORMAT,
        "version": VERSION,
        "layout": asdict(layout),
        "bands": {name: list(MODALITIES[name].bands) for name in names},
        "refused": refused,
    }
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    write_file(path / "zarr.json", json.dumps(group, indent=1).encode())


def _describe(sample: Sample) -> dict[str, Any]:
    return {
        "id": sample.id,
        "latlon": [None if np.isnan(v) else float(v) for v in sample.latlon],
        "timestamps": np.asarray(sample.timestamps).tolist(),
        "present": {
            name: present_steps(x).astype(int).tolist() for name, x in sample.values.items()
        },
    }


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _reasons(refused: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in refused.items()) or "no candidate"
