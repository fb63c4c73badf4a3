"""Compressing a GeoParquet table of embeddings, part by part, so that a killed run goes on.

Beside the output stands a hidden folder while the work lasts:

    .NAME.parts/request.json    what was asked for; another request is refused
    .NAME.parts/codec/          the codec, fitted once
    .NAME.parts/000000016384.parquet    rows from 16,384 on, whole or absent

When all parts are there they are joined, the output appears in one step with its codec beside it,
and the folder goes. The output carries the request in its footer, by which a finished run is known.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.atomic import directory_in_place, flush_to_disk, naming_failures, write_file
from bocage.embeddings.codecs.codec import Codec, training_sample
from bocage.embeddings.codecs.compress_result import CompressResult
from bocage.embeddings.codecs.registry import describe, load_codec, make_codec, save_codec
from bocage.embeddings.codecs.tables import (
    code_column,
    embedding_column_of,
    import_pyarrow,
    vectors_of,
)
from bocage.errors import InputError, SourceError, StoreError
from bocage.progress import progress

if TYPE_CHECKING:
    from bocage.types import FloatArray

REQUEST_KEY = b"bocage_compress"
"""Footer key of the output: the request it answers."""

_SAMPLE_ROWS = 50_000
_PART_ROWS = 16_384


def compress_table(
    source: Path,
    out: Path,
    *,
    codec: str | Codec,
    embedding_column: str,
    seed: int,
    show_progress: bool = False,
) -> CompressResult:
    """Replace the vectors of a Parquet table by codes; run again, it goes on or does nothing.

    Memory holds one part, or one sample for fitting. StoreError if `out` or its unfinished parts
    belong to another source, codec, column or seed.
    """
    opened = _open(source)
    column = embedding_column_of(opened.schema_arrow.names, embedding_column)
    if column not in opened.schema_arrow.names or opened.metadata.num_rows == 0:
        raise InputError(
            got=f"{source} with {opened.metadata.num_rows} rows and columns "
            f"{', '.join(opened.schema_arrow.names)}",
            expected=f"rows, and the column {column!r}",
            fix="name the column of the vectors with embedding_column=",
        )
    request = _request(source, codec, column, seed)
    parts = out.with_name(f".{out.name}.parts")
    if out.exists():
        result = _finished(out, request, opened)
        shutil.rmtree(parts, ignore_errors=True)  # killed between the last two steps
        return result
    try:
        fitted = _begin(parts, request, opened, codec, str(source))
        table = _Table(opened=opened, column=column, codec=fitted, request=request, source=source)
        with (
            progress(
                "compress", opened.metadata.num_rows, unit="rows", enabled=show_progress
            ) as advance,
            naming_failures(out),
        ):
            files: list[Path] = []
            n_vectors = n_skipped = 0
            for first, rows in table.batches():
                file = parts / f"{first:012d}.parquet"
                if _is_whole(file, rows.num_rows):
                    n_skipped += 1
                else:
                    write_file(file, table.encoded(rows))
                    n_vectors += rows.num_rows
                files.append(file)
                advance(rows.num_rows)
            _join(files, table, out)
    except InputError:
        # The table is at fault: once it is mended its codes must not meet those of before.
        shutil.rmtree(parts, ignore_errors=True)
        raise
    shutil.rmtree(parts, ignore_errors=True)
    return CompressResult(
        path=out,
        codec=fitted.name,
        n_vectors=n_vectors,
        n_bytes=out.stat().st_size,
        float_bytes=4 * opened.metadata.num_rows * fitted.dims,
        n_skipped=n_skipped,
    )


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The table being compressed."""

    opened: Any
    column: str
    codec: Codec
    request: dict[str, Any]
    source: Path

    def batches(self) -> Iterator[tuple[int, Any]]:
        """First row and rows of each part, in the order of the file.

        Small row groups share a part, so that the output has no smaller ones than it needs.
        """
        first = 0
        for groups in _joined_groups(self.opened.metadata):
            for rows in self.opened.iter_batches(batch_size=_PART_ROWS, row_groups=groups):
                yield first, rows
                first += rows.num_rows

    @property
    def schema(self) -> Any:
        """Schema of the output: the code in place of the vectors, footer keys `emb` and request."""
        pyarrow = import_pyarrow()
        old = self.opened.schema_arrow
        footer = {k: v for k, v in (old.metadata or {}).items() if k != b"pandas"}
        footer[b"emb"] = json.dumps(describe(self.codec)).encode()
        footer[REQUEST_KEY] = json.dumps(self.request).encode()
        coded = pyarrow.field("code", pyarrow.binary(self.codec.code_bytes))
        return old.set(old.names.index(self.column), coded).with_metadata(footer)

    def encoded(self, rows: Any) -> bytes:
        """A part as the bytes of a Parquet file."""
        pyarrow = import_pyarrow()
        part = pyarrow.Table.from_batches([rows])
        codes = code_column(
            self.codec.encode(vectors_of(part[self.column], where=str(self.source)))
        )
        place = part.schema.names.index(self.column)
        part = part.set_column(place, self.schema.field(place), codes).cast(self.schema)
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(part, buffer, compression="zstd")
        return buffer.getvalue()


def _open(source: Path) -> Any:
    pyarrow = import_pyarrow()
    try:
        return pyarrow.parquet.ParquetFile(source)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise SourceError(
            got=f"{source}, which is not readable Parquet ({error})",
            expected="a table of embeddings",
            fix="check the path",
        ) from error


def _joined_groups(metadata: Any) -> Iterator[list[int]]:
    groups: list[int] = []
    n_rows = 0
    for i in range(metadata.num_row_groups):
        groups.append(i)
        n_rows += metadata.row_group(i).num_rows
        if n_rows >= _PART_ROWS:
            yield groups
            groups, n_rows = [], 0
    if groups:
        yield groups


def _request(source: Path, codec: str | Codec, column: str, seed: int) -> dict[str, Any]:
    request: dict[str, Any] = {
        "version": 1,
        "source": _fingerprint(source),
        "codec": codec if isinstance(codec, str) else codec.name,
        "column": column,
        "seed": seed,
    }
    if isinstance(codec, Codec):
        learned = hashlib.sha256(json.dumps(describe(codec), sort_keys=True).encode())
        for name, values in sorted(codec.arrays().items()):
            learned.update(name.encode() + np.ascontiguousarray(values).tobytes())
        request["fitted"] = learned.hexdigest()
    return request


def _fingerprint(source: Path) -> str:
    """Size and footer of a Parquet file: offsets, sizes and statistics of all its columns.

    Not its path or time, so that a copy of the source counts as the source.
    """
    with source.open("rb") as file:
        size = file.seek(-8, io.SEEK_END) + 8
        footer_bytes = int.from_bytes(file.read(4), "little")
        file.seek(size - 8 - footer_bytes)
        return f"{size}-{hashlib.sha256(file.read(footer_bytes)).hexdigest()[:32]}"


def _begin(
    parts: Path, request: dict[str, Any], opened: Any, codec: str | Codec, where: str
) -> Codec:
    """The codec of an unfinished run, or a new one, with the folder for its parts."""
    if parts.exists():
        _check_same(_stored_request(parts / "request.json"), request, parts)
        return load_codec(parts / "codec")
    fitted = _fit(opened, request["column"], codec, request["seed"], where)
    with directory_in_place(parts) as folder:
        save_codec(fitted, folder / "codec")
        write_file(folder / "request.json", json.dumps(request).encode())
    # As a later run will read it, so that both encode with the same numbers.
    return load_codec(parts / "codec")


def _stored_request(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None  # compares unequal, and the folder is refused by name


def _finished(out: Path, request: dict[str, Any], opened: Any) -> CompressResult:
    pyarrow = import_pyarrow()
    try:
        written = pyarrow.parquet.ParquetFile(out)
        footer = written.schema_arrow.metadata or {}
        stored = json.loads(footer.get(REQUEST_KEY, b"null"))
    except (OSError, ValueError):  # ArrowInvalid is a ValueError
        stored = None
    _check_same(stored, request, out)
    described = json.loads(footer[b"emb"])
    return CompressResult(
        path=out,
        codec=described["codec"],
        n_vectors=0,
        n_bytes=out.stat().st_size,
        float_bytes=4 * opened.metadata.num_rows * described["dims"],
        n_skipped=written.metadata.num_row_groups,
    )


def _check_same(stored: Any, request: dict[str, Any], where: Path) -> None:
    if stored == request:
        return
    if isinstance(stored, dict):
        different = sorted(
            k for k in {*stored, *request} if stored.get(k) != request.get(k) and k != "version"
        )
        got = f"{where}, made with another {', '.join(different) or 'version of bocage'}"
    else:
        got = f"{where}, which is no result of compress"
    raise StoreError(
        got=got,
        expected="the result of the same command",
        fix="choose another output, or delete this one",
    )


def _is_whole(file: Path, n_rows: int) -> bool:
    pyarrow = import_pyarrow()
    if not file.exists():
        return False
    try:
        return int(pyarrow.parquet.read_metadata(file).num_rows) == n_rows
    except pyarrow.ArrowInvalid:
        return False  # damaged: written again


def _join(files: list[Path], table: _Table, out: Path) -> None:
    pyarrow = import_pyarrow()
    partial = out.with_name(f".{out.name}.partial")
    try:
        with pyarrow.parquet.ParquetWriter(partial, table.schema, compression="zstd") as writer:
            for file in files:
                part = pyarrow.parquet.ParquetFile(file).read()
                writer.write_table(part.cast(table.schema))
        flush_to_disk(partial)
        # Before the table: a finished table always has its codec.
        save_codec(table.codec, out.with_name(out.name + ".codec"))
        partial.replace(out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _fit(opened: Any, column: str, codec: str | Codec, seed: int, where: str) -> Codec:
    if isinstance(codec, Codec):
        return codec
    groups = np.random.default_rng(seed).permutation(opened.metadata.num_row_groups)
    parts: list[FloatArray] = []
    n_found = 0
    for group in groups:
        table = opened.read_row_group(int(group), columns=[column])
        parts.append(vectors_of(table[column], where=where))
        n_found += len(parts[-1])
        if n_found >= _SAMPLE_ROWS:
            break
    if len({part.shape[1] for part in parts}) > 1:
        raise InputError(
            got=f"vectors of mixed dimensions in {where}",
            expected="one dimension for all rows",
            fix="split the table by model",
        )
    sample = training_sample(np.concatenate(parts), _SAMPLE_ROWS, seed)
    return make_codec(codec, seed=seed).fit(sample)
