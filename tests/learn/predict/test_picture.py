import numpy as np
import pytest
import rasterio
from affine import Affine

from bocage.learn.predict import picture
from bocage.learn.predict.legend import Legend
from bocage.learn.predict.picture import draw


def write_map(path, x):
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255, "crs": "EPSG:32632"}
    transform = Affine(10, 0, 500000, 0, -10, 5000000)
    with rasterio.open(
        path, "w", height=x.shape[0], width=x.shape[1], transform=transform, **profile
    ) as file:
        file.write(x, 1)
    return path


def read_png(path):
    with rasterio.open(path) as file:
        return file.read().transpose(1, 2, 0)


@pytest.mark.parametrize("n", [2, 45])
def test_every_class_stands_beside_the_map_in_its_color(tmp_path, n):
    names = [f"class_{i} $ of {n}^2" for i in range(n)]  # no formulas
    legend = Legend.of([{"value": i, "name": name, "color": None} for i, name in enumerate(names)])
    x = np.arange(60 * 90).reshape(60, 90) % n
    x[:10] = 255
    png = draw(
        write_map(tmp_path / "map.tif", x.astype(np.uint8)), tmp_path / "a.png", legend=legend
    )
    found = read_png(png)
    times = 512 // 90
    assert found.shape[0] >= 60 * times and found.shape[1] > 90 * times
    left, right = found[: 60 * times, : 90 * times], found[:, 90 * times :]
    colors = np.array([[*c.rgb, 255] for c in legend.classes], np.uint8)
    np.testing.assert_array_equal(left[10 * times :: times, ::times], colors[x[10:]])
    assert (left[: 10 * times] == 0).all()
    beside = {tuple(c) for c in right.reshape(-1, 4).tolist()}
    assert {tuple(c) for c in colors.tolist()} <= beside


def test_without_matplotlib_the_map_stands_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "find_spec", lambda _name: None)
    legend = Legend.of([{"value": 0, "name": "a", "color": None}])
    path = write_map(tmp_path / "map.tif", np.zeros((64, 128), np.uint8))
    assert read_png(draw(path, tmp_path / "a.png", legend=legend)).shape == (256, 512, 4)


@pytest.mark.parametrize(("limits", "beyond"), [((0.0, 200.0), "neither"), ((20.0, 200.0), "min")])
def test_numbers_stand_beside_their_ramp(tmp_path, monkeypatch, limits, beyond):
    asked, make = [], picture._ramp_panel
    monkeypatch.setattr(picture, "_ramp_panel", lambda *a: asked.append(a) or make(*a))
    x = np.linspace(0, 200, 64 * 128).reshape(64, 128).astype(np.uint8)
    path = write_map(tmp_path / "map.tif", x)
    colors = ["#ff0000", "#00ff00", "#0000ff"]
    found = read_png(draw(path, tmp_path / "a.png", limits=limits, colors=colors))
    assert found.shape == (256, 512 + 90, 4)
    assert [a[3] for a in asked] == [beyond]
    monkeypatch.setattr(picture, "find_spec", lambda _name: None)
    alone = read_png(draw(path, tmp_path / "b.png", limits=limits, colors=colors))
    np.testing.assert_array_equal(found[:, :512], alone)
    column = found[:, 512 + 18, :3].astype(int)  # through the middle of the ramp, top to bottom
    colored = column[(column.max(axis=1) - column.min(axis=1)) > 100]
    assert colored[2][2] > 230 and colored[-3][0] > 230  # the largest number on top
    assert (colored[len(colored) // 2] - [0, 255, 0]).tolist() == pytest.approx([0, 0, 0], abs=15)


def test_a_map_of_one_value_or_of_none_is_drawn(tmp_path):
    for name, value in (("one", 7), ("none", 255)):
        path = write_map(tmp_path / f"{name}.tif", np.full((20, 20), value, np.uint8))
        found = read_png(draw(path, tmp_path / f"{name}.png"))
        assert (found[:500, :500, 3] == (255 if value == 7 else 0)).all()
