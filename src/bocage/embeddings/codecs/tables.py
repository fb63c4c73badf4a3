"""Vectors and codes in Parquet columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs import signed_power
from bocage.errors import ConfigError, InputError

if TYPE_CHECKING:
    from pathlib import Path

    from bocage.types import CodeArray, FloatArray


def write_codes(path: Path, codes: CodeArray) -> None:
    """Write codes [N, width] as the column `code` of a Parquet file with zstd."""
    pyarrow = import_pyarrow()
    table = pyarrow.table({"code": code_column(codes)})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)


def code_column(codes: CodeArray) -> Any:
    """Rows of codes as a pyarrow array of fixed-size binary."""
    pyarrow = import_pyarrow()
    rows = np.ascontiguousarray(codes).view(np.uint8).reshape(len(codes), -1)
    return pyarrow.FixedSizeBinaryArray.from_buffers(
        pyarrow.binary(rows.shape[1]), len(rows), [None, pyarrow.py_buffer(rows)]
    )


def embedding_column_of(names: list[str], wanted: str) -> str:
    """The column of the vectors; the default also finds `embeddings`."""
    return "embeddings" if wanted == "embedding" and wanted not in names else wanted


def vectors_of(column: Any, *, where: str, quantization: str | None = None) -> FloatArray:
    """Vectors [N, D] of a list column; InputError for mixed lengths, nulls and unnamed codes.

    int8 columns are read only by a rule that is named (`signed_power`): a guess would give
    plausible and wrong vectors. Code -128 becomes NaN.
    """
    pa = import_pyarrow()
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    kind = values.type
    if not any(
        f(kind) for f in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    ):
        raise InputError(
            got=f"embeddings of type {kind} in {where}",
            expected="a list of numbers per row",
            fix="store vectors as lists of float32",
        )
    if values.null_count:
        raise InputError(
            got=f"{values.null_count} rows without an embedding in {where}",
            expected="a vector in every row",
            fix="drop those rows",
        )
    n = len(values)
    lengths = np.asarray(pa.compute.list_value_length(values))
    if n and (lengths != lengths[0]).any():
        odd = lengths[lengths != lengths[0]][0]
        raise InputError(
            got=f"vectors of {lengths[0]} and {odd} dimensions in {where}",
            expected="one dimension for all rows",
            fix="split the table by model; vectors of two models cannot share a corpus",
        )
    numbers = values.flatten()
    if pa.types.is_integer(numbers.type):
        if quantization != "signed_power" or numbers.type != pa.int8():
            raise InputError(
                got=f"{numbers.type} codes in {where} and the rule {quantization or 'unnamed'}",
                expected="real vectors, or int8 codes of the rule signed_power",
                fix="name that rule (--quantization signed_power) if it is theirs, or dequantize",
            )
        return signed_power.decode(np.asarray(numbers)).reshape(n, -1)
    return np.asarray(numbers, np.float32).reshape(n, -1)


def import_pyarrow() -> Any:
    """Import pyarrow or say how to install it."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            got="tables of codes without the package pyarrow",
            expected="pyarrow",
            fix='pip install "bocage[search]"',
        ) from error
    return pyarrow
