"""What QGIS and gdalinfo need to show names and colors: a .qml style and GDAL's .aux.xml.

A GeoTIFF holds a color table but no class names of GDAL's kind, so names go into the sidecar that
GDAL reads by itself (categories and a raster attribute table); QGIS loads NAME.qml beside NAME.tif
by itself too.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from bocage.embeddings.atomic import write_file
from bocage.learn.predict.legend import Legend

RAMP = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
"""Viridis (matplotlib, CC0) at even steps; for continuous layers."""

_MANY_CATEGORIES = 256
_INTEGER, _STRING = 0, 2
_COLUMNS = (
    # name, type, usage as GDAL numbers them
    ("Value", _INTEGER, 5),
    ("Class", _STRING, 2),
    ("Red", _INTEGER, 6),
    ("Green", _INTEGER, 7),
    ("Blue", _INTEGER, 8),
)


def write_class_style(raster: Path, legend: Legend, *, n_bands: int = 1) -> list[Path]:
    """Write NAME.qml and NAME.tif.aux.xml for a class map; returns both."""
    qml, renderer = _document()
    renderer.set("type", "paletted")
    renderer.set("band", "1")
    palette = ET.SubElement(renderer, "colorPalette")
    for c in legend.classes:
        ET.SubElement(
            palette,
            "paletteEntry",
            value=str(c.value),
            label=c.name,
            color=c.color,
            alpha="255",
        )
    return [_write(qml, raster.with_suffix(".qml")), _write_aux(raster, legend, n_bands)]


def write_ramp_style(
    raster: Path, low: float, high: float, *, colors: Sequence[str] = RAMP, opacity: float = 1.0
) -> Path:
    """Write NAME.qml that draws band 1 between two values with a ramp."""
    qml, renderer = _document()
    renderer.set("type", "singlebandpseudocolor")
    renderer.set("band", "1")
    renderer.set("opacity", f"{opacity:g}")
    renderer.set("classificationMin", f"{low:.9g}")
    renderer.set("classificationMax", f"{high:.9g}")
    shader = ET.SubElement(ET.SubElement(renderer, "rastershader"), "colorrampshader")
    shader.set("colorRampType", "INTERPOLATED")
    shader.set("classificationMode", "1")
    shader.set("minimumValue", f"{low:.9g}")
    shader.set("maximumValue", f"{high:.9g}")
    for i, color in enumerate(colors):
        value = low + (high - low) * i / (len(colors) - 1)
        ET.SubElement(
            shader, "item", value=f"{value:.9g}", label=f"{value:.4g}", color=color, alpha="255"
        )
    return _write(qml, raster.with_suffix(".qml"))


def _document() -> tuple[ET.Element, ET.Element]:

    qml = ET.Element("qgis", version="3.22", styleCategories="AllStyleCategories")
    pipe = ET.SubElement(qml, "pipe")
    renderer = ET.SubElement(pipe, "rasterrenderer", alphaBand="-1", opacity="1")
    ET.SubElement(renderer, "rasterTransparency")
    return qml, renderer


def _write_aux(raster: Path, legend: Legend, n_bands: int) -> Path:
    root = ET.Element("PAMDataset")
    for number in range(1, n_bands + 1):
        band = ET.SubElement(root, "PAMRasterBand", band=str(number))
        if max(legend.values) < _MANY_CATEGORIES:
            names = dict(zip(legend.values, legend.names, strict=True))
            categories = ET.SubElement(band, "CategoryNames")
            for value in range(max(legend.values) + 1):
                ET.SubElement(categories, "Category").text = names.get(value, "")
        _attribute_table(band, legend)
    return _write(root, raster.with_name(f"{raster.name}.aux.xml"))


def _attribute_table(band: ET.Element, legend: Legend) -> None:
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for i, (name, kind, usage) in enumerate(_COLUMNS):
        column = ET.SubElement(table, "FieldDefn", index=str(i))
        ET.SubElement(column, "Name").text = name
        ET.SubElement(column, "Type").text = str(kind)
        ET.SubElement(column, "Usage").text = str(usage)
    for i, c in enumerate(legend.classes):
        row = ET.SubElement(table, "Row", index=str(i))
        for value in (c.value, c.name, *c.rgb):
            ET.SubElement(row, "F").text = str(value)


def _write(root: ET.Element, path: Path) -> Path:
    ET.indent(root)
    write_file(path, ET.tostring(root, encoding="utf-8") + b"\n")
    return path
