"""The log survives kills and restarts, and becomes a picture."""

from pathlib import Path

import rasterio

from bocage.pretrain.metrics_log import MetricsLog, draw_curves, read_metrics


def fill(run: Path, first: int, last: int) -> None:
    log = MetricsLog(run, first_step=first)
    for step in range(first, last + 1):
        log.write({"step": step, "loss": 1 / step, "gradient_norm": 2.0})
    log.close()


def test_a_restart_drops_what_it_will_do_again(tmp_path: Path) -> None:
    fill(tmp_path, 1, 9)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')  # torn by a kill
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 10))
    fill(tmp_path, 6, 12)
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 13))


def test_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, first_step=1)
    log.write({"step": 1, "loss": 0.5})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    log.close()


def test_the_picture_has_a_panel_for_scores(tmp_path: Path) -> None:
    assert draw_curves(tmp_path) is None
    fill(tmp_path, 1, 30)
    path = draw_curves(tmp_path)
    assert path is not None
    with rasterio.open(path) as image:
        narrow = image.width
    log = MetricsLog(tmp_path, first_step=31)
    log.write({"step": 30, "evaluation": {"eurosat/knn": 0.5}})
    log.close()
    draw_curves(tmp_path)
    with rasterio.open(path) as image:
        assert image.width > narrow
