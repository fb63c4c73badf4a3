"""info in words and numbers."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from bocage.embeddings import info
from bocage.errors import SourceError


def test_info_of_store_and_cog_agree_with_what_was_written(map_store, map_cog, map_values):
    for uri in (map_store, map_cog):
        found = info(uri)
        assert found.model == "olmoearth-v1.2-tiny"
        assert found.dims == 12
        assert found.shape_yx == (301, 395)
        assert found.years == (2024,)
        assert found.crs == "EPSG:32618"
        assert found.codec == "signed_power"
        assert found.patch_size == 4
        assert found.bbox_wsen == (500_000, 4_500_000 - 301 * 40, 500_000 + 395 * 40, 4_500_000)
        assert found.sampled_share == pytest.approx(1)
        assert found.nodata_share == pytest.approx(np.isnan(map_values[0]).mean())
    assert info(map_cog).n_bytes == map_cog.stat().st_size
    assert info(map_store).zones == ("utm18",)


def test_info_reads_well_as_text_and_in_rich(map_store):
    text = str(info(map_store))
    assert "olmoearth-v1.2-tiny" in text
    assert "395 x 301 cells of 40 m, 12 dims, 2024" in text  # width first, as the plan says it
    assert "open_embeddings(" in text
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(info(map_store))
    assert "EPSG:32618" in console.export_text()
    console.file.close()


def test_a_missing_store_is_said_to_be_missing(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        info(tmp_path / "nothing.zarr")
