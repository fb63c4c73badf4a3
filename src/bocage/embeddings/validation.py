"""Does a store or raster of embeddings follow the rules of the field: `bocage validate`.

Checks what readers rely on and what goes wrong silently: nodata, the rule of quantization,
coordinates against the transform, overviews against their own full resolution, whole shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bocage.embeddings.zarr_layout import is_zarr
from bocage.errors import SourceError

if TYPE_CHECKING:
    from bocage.types import PathLike

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, where, and how to mend it."""

    severity: Severity
    """error: readers get wrong values or none; warning: it works less well than it could."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what}; {self.fix}"


def validate(uri: PathLike) -> list[Finding]:
    """Everything found wrong with a store or COG, errors first; an empty list means valid.

    Samples values and does not read whole maps. SourceError if there is nothing to check.
    """
    address = str(uri)
    if "://" not in address and not Path(address).exists():
        raise SourceError(
            got=f"{address}, which does not exist",
            expected="a Zarr store or a GeoTIFF of embeddings",
            fix="check the path",
        )
    findings: Iterator[Finding]
    if is_zarr(address):
        from bocage.embeddings.validation_zarr import check_store

        findings = check_store(address)
    else:
        from bocage.embeddings.validation_cog import check_cog

        findings = check_cog(address)
    return sorted(findings, key=lambda f: f.severity != "error")


def error(where: str, what: str, fix: str) -> Finding:
    """A finding that makes values wrong or unreadable."""
    return Finding(severity="error", where=where, what=what, fix=fix)


def warning(where: str, what: str, fix: str) -> Finding:
    """A finding that costs speed or meaning."""
    return Finding(severity="warning", where=where, what=what, fix=fix)
