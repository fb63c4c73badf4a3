"""The JSON documents of a Zarr v3 store, as zarr itself writes them.

zarr makes a store in a dozen steps, each handed to another thread and read back for the next:
15 ms for four arrays, a tenth of which is the work. The documents are few and fixed by the
specification (zarr-specs.readthedocs.io, core v3, sharding_indexed v1), so they are written here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DOCUMENT = "zarr.json"

ZSTD_LEVEL = 3


def array_document(
    *,
    shape: Sequence[int],
    dtype: str,
    chunks: Sequence[int],
    fill_value: float,
    dimension_names: Sequence[str],
    shards: Sequence[int] | None = None,
) -> dict[str, Any]:
    """What an array is; ``chunks`` are what is read at once, and lie together in ``shards``."""
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs: list[dict[str, Any]] = [
        little if np.dtype(dtype).itemsize > 1 else {"name": "bytes"},
        # With a checksum per chunk: without one, rotten bytes decode to other numbers.
        {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}},
    ]
    if shards is not None:
        sharding = {
            "chunk_shape": _whole(chunks),
            "codecs": codecs,
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    files = chunks if shards is None else shards
    fill = float(fill_value) if np.dtype(dtype).kind == "f" else int(fill_value)
    return {
        "shape": _whole(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": _whole(files)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if math.isnan(fill) else fill,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": list(dimension_names),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def group_document(
    attributes: Mapping[str, Any], members: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a group is; with the documents of all its members, so that one request opens a store."""
    document: dict[str, Any] = {"attributes": dict(attributes), "zarr_format": 3}
    if members is not None:
        documents = {path: _as_member(members[path]) for path in sorted(members)}
        document["consolidated_metadata"] = _consolidated(documents)
    return {**document, "node_type": "group"}


def encode_document(document: Mapping[str, Any]) -> bytes:
    """The bytes of a document."""
    return json.dumps(document, indent=2).encode()


def _as_member(document: Mapping[str, Any]) -> dict[str, Any]:
    if document["node_type"] == "array":
        return dict(document)
    # The members of a group within a group stand beside it, in the root's own list.
    kind = {"node_type": document["node_type"]}
    rest = {name: value for name, value in document.items() if name != "node_type"}
    return {**rest, "consolidated_metadata": _consolidated({}), **kind}


def _consolidated(documents: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": documents}


def _whole(numbers: Sequence[int]) -> list[int]:
    return [int(n) for n in numbers]
