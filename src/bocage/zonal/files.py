"""The table on disk: GeoParquet, GeoPackage, GeoJSON or CSV, whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.embeddings.atomic import flush_to_disk, naming_failures, scratch_beside
from bocage.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMATS = {
    ".parquet": "GeoParquet 1.1",
    ".gpkg": "GeoPackage",
    ".geojson": "GeoJSON, in degrees",
    ".csv": "CSV, without shapes",
}
"""Endings that can be written."""

_GPKG_COLUMNS = 1990
"""SQLite takes 2,000 columns a table unless it was built for more."""


def check_out(out: Path, inputs: Sequence[str]) -> None:
    """Refuse endings that cannot be written, and outputs in place of inputs, before any work."""
    if out.suffix.lower() not in FORMATS:
        hint = " (names of columns in a Shapefile end after 10 letters)"
        raise ConfigError(
            got=f"--out {out}",
            expected=f"a name that ends in {', '.join(FORMATS)}",
            fix=f"use --out {out.with_suffix('.gpkg')}"
            + (hint if out.suffix.lower() == ".shp" else ""),
        )
    for name in inputs:
        if "://" not in name and Path(name).exists() and Path(name).resolve() == out.resolve():
            raise ConfigError(
                got=f"--out {out}, which is also read",
                expected="another file",
                fix=f"use --out {out.with_stem(out.stem + '-stats')}",
            )
    if out.is_dir():
        raise ConfigError(
            got=f"--out {out}, which is a folder",
            expected="a file",
            fix=f"use --out {out / 'stats.parquet'}",
        )


def check_folder(out: Path) -> None:
    """StoreError before the work if the folder cannot be written."""
    with naming_failures(out), scratch_beside(out):
        pass


def write_table(table: Any, out: Path) -> Path:
    """Write the table in place of what was there; StoreError if the disk does not take it."""
    kind = out.suffix.lower()
    if kind == ".gpkg" and len(table.columns) > _GPKG_COLUMNS:
        raise ConfigError(
            got=f"{len(table.columns)} columns in a GeoPackage",
            expected=f"at most {_GPKG_COLUMNS}",
            fix=f"use --out {out.with_suffix('.parquet')}, or fewer --stats",
        )
    with naming_failures(out), scratch_beside(out) as folder:
        made = folder / out.name
        if kind == ".csv":
            # Bytes at the start tell spreadsheets that the text is UTF-8.
            table.drop(columns="geometry").to_csv(made, index=False, encoding="utf-8-sig")
        elif kind == ".parquet":
            table.to_parquet(
                made, compression="zstd", schema_version="1.1.0", write_covering_bbox=True
            )
        else:
            driver, options = "GPKG", {"layer": out.stem}
            if "fid" in {str(c).lower() for c in table.columns}:
                # GDAL would take the zones' own column for the key of the rows.
                options["FID"] = "row_id"
            if kind == ".geojson":
                # In degrees, cut at the antimeridian: web maps read nothing else (RFC 7946).
                driver, options = "GeoJSON", {"RFC7946": "YES"}
            table.to_file(made, driver=driver, engine="pyogrio", **options)
        flush_to_disk(made)
        made.replace(out)
    return out


def how_to_open(out: Path) -> str:
    """One line of Python."""
    if out.suffix.lower() == ".csv":
        return f"pandas.read_csv({str(out)!r})"
    reader = "read_parquet" if out.suffix.lower() == ".parquet" else "read_file"
    return f"geopandas.{reader}({str(out)!r})   or QGIS"
