"""The official pretraining format: one H5 file per sample, a table, a folder name that says it all.

``<root>/h5py_data_w_missing_timesteps_zstd_3_128_x_4/<modalities joined by _>/<n>/`` holds
``sample_{i}.h5``, ``sample_metadata.csv`` (sample_index and a 0/1 column per modality) and
``latlon_distribution.npy``. In a file: an array [H, W, stored steps, C] per modality, ``latlon``
float32 [2], ``timestamps`` int [12, 3] and ``missing_timesteps_masks/<sensor>`` bool [12], where
True means that the step is there. Source: specification 1.7, from the public data set
allenai/olmoearth_pretrain_dataset.

Every read decompresses a whole array, because the arrays are not chunked; train from ``store``.
"""

from __future__ import annotations

import csv
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.atomic import naming_failures, write_file
from bocage.errors import ConfigError, InputError, SourceError
from bocage.pretrain.modalities import MODALITIES
from bocage.pretrain.sample import MAX_STEPS, Sample, check_sample, present_steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bocage.types import FloatArray, PathLike, ValidArray

MISSING_VALUE = -99999
"""What the official loader puts where data are missing."""

METADATA = "sample_metadata.csv"
LATLON = "latlon_distribution.npy"
MASKS = "missing_timesteps_masks"
FOLDER_PREFIX = "h5py_data_w_missing_timesteps_zstd_3"
"""Compression and its level are part of the name."""

_H5_DTYPES = {"sentinel1": "float32", "srtm": "float32"}
_SENTINEL1_NODATA = -32768


def official_folder(
    root: PathLike, modalities: Sequence[str], n_samples: int, *, size_px: int = 128
) -> Path:
    """Where samples of these modalities lie below a root; a 256 px tile was cut into n parts."""
    n_parts = (256 // size_px) ** 2
    joined = "_".join(sorted(modalities))
    return Path(root) / f"{FOLDER_PREFIX}_{size_px}_x_{n_parts}" / joined / str(n_samples)


def is_official(path: Path) -> bool:
    """Whether a folder holds official samples."""
    return (path / METADATA).is_file()


def write_official(samples: Sequence[Sample], root: PathLike) -> tuple[Path, dict[str, list[str]]]:
    """Write samples in the official layout; returns the folder and what had to be left out.

    As in the official set, a modality is dropped from a sample if a step that is there has a
    missing pixel, or if a map of OpenStreetMap is all zero. Needs h5py and hdf5plugin.
    """
    _h5py()
    dropped: dict[str, list[str]] = {}
    kept: list[dict[str, FloatArray]] = []
    for sample in samples:
        check_sample(sample)
        values = {name: x for name, x in sample.values.items() if _complete(name, x)}
        gone = [name for name in sample.values if name not in values]
        if gone:
            dropped[sample.id] = gone
        if all(MODALITIES[name].is_map for name in values):
            raise InputError(
                got=f"{sample.id}, in which every sensor has missing pixels in a step",
                expected="a sensor whose steps are whole or absent, as the official format wants",
                fix="leave the sample out, or keep it in a store (.zarr)",
            )
        kept.append(values)
    names = [name for name in MODALITIES if any(name in values for values in kept)]
    size_px = next(iter(kept[0].values())).shape[0]
    folder = official_folder(root, names, len(samples), size_px=size_px)
    with naming_failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for index, (sample, values) in enumerate(zip(samples, kept, strict=True)):
            _write_file(folder / f"sample_{index}.h5", sample, values)
        np.save(folder / LATLON, np.asarray([s.latlon for s in samples], np.float32))
    rows = [["sample_index", *sorted(names)]]
    for index, values in enumerate(kept):
        rows.append([str(index), *(str(int(name in values)) for name in sorted(names))])
    write_file(folder / METADATA, "".join(",".join(row) + "\n" for row in rows).encode())
    return folder, dropped


def read_official(path: PathLike) -> Sample:
    """One H5 file as a dense sample, restricted to the steps between the first and last with data.

    SourceError if the file is damaged, InputError if something in it is missing or of the wrong
    shape; both name the file.
    """
    with _open_file(Path(path)) as opened:
        steps = tuple(range(len(opened.timestamps)))
        values = {}
        for name in opened.present:
            side = opened.arrays[name].shape[0]
            taken = (0,) if MODALITIES[name].is_map else steps
            values[name] = opened.read(name, slice(0, side), slice(0, side), taken)
        return check_sample(
            Sample(id=opened.id, values=values, timestamps=opened.timestamps, latlon=opened.latlon)
        )


class H5Samples:
    """A folder of official samples, as the loader reads them."""

    def __init__(self, path: PathLike) -> None:
        """Read the table; InputError if it is not as it should be."""
        _h5py()
        self.path = Path(path)
        self.indices, self.modalities = _read_table(self.path / METADATA)
        self.max_steps = MAX_STEPS
        self.size_px = 0
        for index in range(len(self)):
            try:
                with self.sample(index) as first:
                    self.size_px = next(iter(first.arrays.values())).shape[0]
                break
            except (SourceError, InputError):
                continue  # the loader will name it
        if not self.size_px:
            raise SourceError(
                got=f"{self.path}, in which no sample can be read",
                expected="files sample_0.h5 and so on",
                fix="download the folder again",
            )

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.indices)

    def n_steps(self, index: int) -> int:  # noqa: ARG002 - part of the protocol
        """12: the table does not say, and opening every file would take hours."""
        return self.max_steps

    def file(self, index: int) -> Path:
        """Path of a sample."""
        return self.path / f"sample_{self.indices[index]}.h5"

    def sample_id(self, index: int) -> str:
        """Name of a sample: its file."""
        return str(self.file(index))

    @contextmanager
    def sample(self, index: int) -> Iterator[_OpenFile]:
        """Open a sample; SourceError or InputError names the file."""
        with _open_file(self.file(index)) as opened:
            yield opened


@dataclass(frozen=True, kw_only=True)
class _OpenFile:
    id: str
    timestamps: NDArray[np.int64]
    present: dict[str, ValidArray]
    latlon: tuple[float, float]
    arrays: dict[str, Any]

    def read(self, name: str, rows: slice, cols: slice, steps: tuple[int, ...]) -> FloatArray:
        """A crop; the whole array is decompressed for it."""
        try:
            stored = self.arrays[name][()]
        except OSError as error:
            raise _damaged(self.id, f"{name}: {error}") from error
        slot = np.cumsum(self.present[name]) - 1
        shape = (rows.stop - rows.start, cols.stop - cols.start, len(steps), stored.shape[3])
        x = np.full(shape, np.nan, np.float32)
        for position, step in enumerate(steps):
            if self.present[name][step]:
                x[:, :, position] = stored[rows, cols, slot[step]]
        x[x == MISSING_VALUE] = np.nan
        return x


@contextmanager
def _open_file(path: Path) -> Iterator[_OpenFile]:
    h5py = _h5py()
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _damaged(str(path), str(error)) from error
    with file:
        try:
            opened = _read_header(file, str(path))
        except OSError as error:
            raise _damaged(str(path), str(error)) from error
        yield opened


def _read_header(file: Any, name: str) -> _OpenFile:
    """Everything but the pixels, checked and restricted to first..last step with data."""
    stamps, latlon = _read_place(file, name)
    arrays = {key: file[key] for key in MODALITIES if key in file}
    present = _read_present(file, name, arrays, len(stamps))
    sensors = [steps for key, steps in present.items() if not MODALITIES[key].is_map]
    with_data = np.any(sensors or [np.zeros(len(stamps), np.bool_)], axis=0)
    if not with_data.any():
        raise _wrong(
            f"{name}, in which all timesteps are missing", "at least one timestep of one sensor"
        )
    first, last = np.flatnonzero(with_data)[[0, -1]]
    return _OpenFile(
        id=name,
        timestamps=stamps[first : last + 1],
        present={
            key: steps if MODALITIES[key].is_map else steps[first : last + 1]
            for key, steps in present.items()
        },
        latlon=(float(latlon[0]), float(latlon[1])),
        arrays=arrays,
    )


def _read_place(file: Any, name: str) -> tuple[NDArray[np.int64], FloatArray]:
    """Timestamps [12, 3] and latitude, longitude of a file."""
    for key in ("timestamps", "latlon", MASKS):
        if key not in file:
            raise _wrong(f"{name} without {key}", f"the keys timestamps, latlon and {MASKS}")
    stamps = np.asarray(file["timestamps"][()], np.int64)
    if stamps.ndim != 2 or stamps.shape[1] != 3 or not 1 <= len(stamps) <= MAX_STEPS:
        raise _wrong(f"timestamps of shape {list(stamps.shape)} in {name}", "[12, 3]")
    latlon = np.asarray(file["latlon"][()], np.float32)
    if latlon.shape != (2,):
        raise _wrong(f"latlon of shape {list(latlon.shape)} in {name}", "[2]")
    return stamps, latlon


def _read_present(
    file: Any, name: str, arrays: dict[str, Any], n_steps: int
) -> dict[str, ValidArray]:
    """Which steps each modality has, checked against the shape of its array."""
    present: dict[str, ValidArray] = {}
    side = None
    for key, array in arrays.items():
        table = MODALITIES[key]
        if table.is_map:
            steps = np.ones(1, np.bool_)
        elif key in file[MASKS]:
            steps = np.asarray(file[MASKS][key][()], np.bool_)
        else:
            raise _wrong(f"{name} without {MASKS}/{key}", "a mask for every sensor")
        if not table.is_map and steps.shape != (n_steps,):
            raise _wrong(
                f"{MASKS}/{key} of shape {list(steps.shape)} in {name}",
                f"[{n_steps}], one per timestamp",
            )
        side = array.shape[0] if side is None else side
        expected = (side, side, int(steps.sum()), len(table.bands))
        if array.shape != expected:
            raise _wrong(
                f"{key} of shape {list(array.shape)} in {name}",
                f"{list(expected)}: height, width, steps that are there, bands",
            )
        present[key] = steps
    return present


def _write_file(path: Path, sample: Sample, values: dict[str, FloatArray]) -> None:
    import hdf5plugin

    h5py = _h5py()
    n_steps = len(sample.timestamps)
    stamps = np.concatenate(
        [sample.timestamps, np.repeat(sample.timestamps[-1:], MAX_STEPS - n_steps, axis=0)]
    )
    partial = path.with_name(f".{path.name}.partial")
    with h5py.File(partial, "w") as file:
        file.create_dataset("latlon", data=np.asarray(sample.latlon, np.float32))
        file.create_dataset("timestamps", data=stamps.astype(np.int32))
        masks = file.create_group(MASKS)
        for name, x in values.items():
            steps = present_steps(x)
            if not MODALITIES[name].is_map:
                mask = np.zeros(MAX_STEPS, np.bool_)
                mask[:n_steps] = steps
                masks.create_dataset(name, data=mask)
            data = _h5_array(name, x[:, :, steps])
            # One chunk: the official files are not chunked, and a filter needs at least one.
            file.create_dataset(
                name, data=data, chunks=data.shape, compression=hdf5plugin.Zstd(clevel=3)
            )
    partial.replace(path)


def _h5_array(name: str, x: FloatArray) -> NDArray[Any]:
    dtype = _H5_DTYPES.get(name, MODALITIES[name].dtype)
    codes = x.astype(dtype)
    return codes if np.array_equal(codes, x) else x


def _complete(name: str, x: FloatArray) -> bool:
    """Whether every step that is there is whole."""
    there = x[:, :, present_steps(x)]
    if there.shape[2] == 0 or not np.isfinite(there).all():
        return False
    if name == "sentinel1" and bool((there == _SENTINEL1_NODATA).any()):
        return False
    return not (name == "openstreetmap_raster" and not there.any())


def _read_table(path: Path) -> tuple[list[int], tuple[str, ...]]:
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            got=f"no readable {path} ({error})",
            expected="the table of an official data set",
            fix="check the folder",
        ) from error
    if not rows or not rows[0] or rows[0][0] != "sample_index" or len(rows) < 2:
        raise _wrong(f"{path} with header {rows[:1]}", "sample_index and modalities")
    names = tuple(
        name
        for name in MODALITIES
        if name in rows[0] and any(row[rows[0].index(name)] == "1" for row in rows[1:])
    )
    try:
        return [int(row[0]) for row in rows[1:]], names
    except ValueError as error:
        raise _wrong(f"{path}: {error}", "whole numbers in sample_index") from error


def _h5py() -> Any:
    try:
        import h5py  # type: ignore[import-untyped]
        import hdf5plugin  # noqa: F401 - registers zstd with HDF5
    except ImportError as error:
        raise ConfigError(
            got="an official H5 data set without h5py and hdf5plugin",
            expected="the extra for pretraining",
            fix='run pip install "bocage[pretrain]"',
        ) from error
    return h5py


def _damaged(name: str, reason: str) -> SourceError:
    return SourceError(
        got=f"a damaged or missing sample {name} ({reason})",
        expected="an H5 file of the official format",
        fix="download it again or leave it out",
    )


def _wrong(got: str, expected: str) -> InputError:
    return InputError(got=got, expected=expected, fix="leave the file out, or make it again")
