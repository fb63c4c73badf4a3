"""Options of imagery are declared once and reach `open_stack`."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from bocage.cli.imagery_options import ImageryOptions, with_imagery
from bocage.errors import BocageWarning, ConfigError
from tests.change.conftest import write_bands


def run(*words):
    app, seen = typer.Typer(), {}

    @app.command()
    @with_imagery
    def command(source: str, imagery: ImageryOptions = ImageryOptions(), size: int = 3) -> None:  # noqa: B008
        seen.update(source=source, size=size, imagery=imagery)

    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return seen


def test_a_command_gets_every_option_and_keeps_its_own():
    seen = run(
        "scene", "--bands", "B02, B03", "--size", "5", "--no-cloud-mask", "--max-cloud", "20"
    )
    assert (seen["source"], seen["size"]) == ("scene", 5)
    expected = ImageryOptions(bands="B02, B03", cloud_mask=False, max_cloud=20.0)
    assert seen["imagery"] == expected
    assert set(seen["imagery"].as_dict()) == {f.name for f in fields(ImageryOptions)}


def test_text_becomes_the_arguments_of_open_stack():
    options = ImageryOptions(
        bands="B02, B03",
        dates="2024-04-01/2024-09-30",
        bbox="36.7,-1.4,36.9,-1.2",
        scale="sentinel1=db20,sentinel2_l2a=10000",
        offset="-1000",
        catalog="https://example.org/stac",
    )
    assert options.open_options() == {
        "cloud_mask": True,
        "bands": ["B02", "B03"],
        "dates": ("2024-04-01", "2024-09-30"),
        "bbox": (36.7, -1.4, 36.9, -1.2),
        "scale": {"sentinel1": "db20", "sentinel2_l2a": 10000.0},
        "offset": -1000.0,
        "catalog": "https://example.org/stac",
        "crs": "utm",
    }


@pytest.mark.parametrize(
    ("typed", "first", "last"),
    [
        ("2024", "2024", "2024-12-31"),
        ("2024-02", "2024-02", "2024-02-29"),
        ("2024-04/2024-09", "2024-04", "2024-09-30"),
        ("2023/2024-03-05", "2023", "2024-03-05"),
        ("2024-07-01", "2024-07-01", "2024-07-01"),
    ],
)
def test_a_year_or_month_of_dates_is_all_of_it(tmp_path, typed, first, last):
    days = {first + "-01-01"[len(first) - 4 :], last}
    for day in days:
        write_bands(tmp_path / f"S2_{day}.tif", np.full((1, 8, 8), 900, "uint16"), names=["B02"])
    with pytest.warns(BocageWarning, match="lacks 11 of 12 bands"):
        stack = ImageryOptions(dates=typed).open([str(tmp_path)])
    assert set(np.datetime_as_string(stack["time"].values, "D")) == days


def test_a_text_may_differ_between_an_earlier_and_a_later_image():
    typed = ImageryOptions(
        offset="before=0,after=-1000", bands="before=B02,B03,after=B03,B02", level="L1C"
    )
    assert typed.sides() == (
        ImageryOptions(offset="0", bands="B02,B03", level="L1C"),
        ImageryOptions(offset="-1000", bands="B03,B02", level="L1C"),
    )
    same = ImageryOptions(scale="sentinel1=db,sentinel2_l2a=1", cloud_mask=False)
    assert same.sides() == (same, same)
    with pytest.raises(ConfigError, match="--dates before=X,after=Y"):
        ImageryOptions(dates="after=2024").sides()


@pytest.mark.parametrize(
    ("typed", "match"), [({"bbox": "1,2,3"}, "--bbox 1,2,3"), ({"scale": "ten"}, "'ten'")]
)
def test_text_that_is_no_number_is_named(typed, match):
    with pytest.raises(ConfigError, match=match):
        ImageryOptions(**typed).open_options()


def test_with_a_catalog_every_word_is_a_file_of_labels():
    labels = [Path("b.gpkg")]
    assert ImageryOptions().source_and_labels("scene", labels) == ("scene", labels)
    found = ImageryOptions(catalog="https://example.org/stac").source_and_labels("a.gpkg", labels)
    assert found == (None, [Path("a.gpkg"), *labels])
