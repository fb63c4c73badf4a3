"""The tasks that the models' authors report, with what each would need.

Their data are other people's and not part of this package. A task of this table can be named in a
suite; it says clearly what is missing where it cannot run. Source: the evaluation configuration of
the official repository (names, inputs, classes, normalization, learning rate of the linear probe).
What that source does not state was chosen here; ``ours`` of a task names these fields: compare them
with a published score only after checking.
"""

from __future__ import annotations

from dataclasses import dataclass

from bocage.errors import SourceError


@dataclass(frozen=True, kw_only=True)
class OfficialTask:
    """One published task."""

    name: str
    sensors: str
    """Inputs: S1, S2, L8, joined by +."""

    size_px: int
    n_classes: int
    """0 for numbers."""

    metric: str
    protocol: str
    """"knn", "linear" or "regression"."""

    normalization: str = "pretraining"
    learning_rate: float | None = None
    """Of the linear probe in the original protocol."""

    source: str = ""
    """Where its data come from."""

    ours: tuple[str, ...] = ()
    """Fields that the authors' configuration does not state and that were chosen here."""


_GEOBENCH = "GEO-Bench 1 (package geobench, then geobench-download)"
_GEOBENCH2 = "GEO-Bench 2 (package geobenchv2)"
_RSLEARN = "the olmoearth evaluation data of Ai2 (rslearn format)"


def _task(line: str, source: str) -> OfficialTask:
    name, sensors, size, classes, metric, protocol, normalization, rate = line.split()
    return OfficialTask(
        name=name,
        sensors=sensors,
        size_px=int(size),
        n_classes=int(classes),
        metric=metric,
        protocol=protocol,
        normalization=normalization,
        learning_rate=None if rate == "-" else float(rate),
        source=source,
        ours=_OURS.get(name, ()),
    )


_OURS: dict[str, tuple[str, ...]] = {
    # The configuration names no metric for these; others of the same kind have one.
    **dict.fromkeys(
        (
            *("tolbi_crop", "yemen_crop", "forest_loss_driver", "nigeria_settlement"),
            *("nandi_crop_map", "awf_lulc_map", "breizhcrops", "small_sentinel2_vessel_type"),
            *("lfmc_woody_3k", "canada_wildfire_sat"),
        ),
        ("metric",),
    ),
    "m_bigearthnet": ("size_px",),
    # GEO-Bench 2 lays all sensors on the grid of its aerial images (304 px); here the data's own.
    "gb2_treesatai": ("size_px",),
}


_TABLE = {
    _GEOBENCH: """
        m_eurosat S2 64 10 accuracy knn pretraining -
        m_forestnet L8 332 12 accuracy knn dataset -
        m_bigearthnet S2 120 43 f1_micro knn pretraining -
        m_so2sat S2 32 17 accuracy knn pretraining -
        m_brick_kiln S2 64 2 accuracy knn pretraining -
        m_sa_crop_type S2 256 10 miou linear dataset 0.1
        m_cashew_plant S2 256 7 miou linear dataset 0.1
    """,
    "MADOS (Zenodo 10664073)": "mados S2 80 15 f1_micro linear dataset 0.01",
    "Sen1Floods11 (github.com/cloudtostreet/Sen1Floods11)": (
        "sen1floods11 S1 64 2 miou linear pretraining 0.1"
    ),
    "PASTIS-R (Zenodo 5735646)": """
        pastis_sentinel2 S2 64 19 miou linear pretraining 0.1
        pastis_sentinel1 S1 64 19 miou linear pretraining 0.1
        pastis_sentinel1_sentinel2 S1+S2 64 19 miou linear pretraining 0.1
        pastis128_sentinel2 S2 128 19 miou linear pretraining 0.1
    """,
    "BreizhCrops (package breizhcrops)": "breizhcrops S2 1 9 accuracy linear pretraining 0.01",
    _RSLEARN: """
        tolbi_crop S2 64 7 accuracy linear pretraining 0.1
        yemen_crop S2 16 9 accuracy linear pretraining 0.001
        geo_ecosystem_annual_test S2 64 112 accuracy linear pretraining 0.01
        forest_loss_driver S2 64 10 accuracy linear pretraining 0.01
        nigeria_settlement S2 64 2 accuracy linear pretraining 0.01
        nandi_crop_map S2 64 8 accuracy linear pretraining 0.01
        awf_lulc_map S2 64 9 accuracy linear pretraining 0.01
        africa_crop_mask S2 32 2 accuracy linear pretraining 0.01
        canada_crops_coarse S2 32 9 accuracy linear pretraining 0.01
        canada_crops_fine S2 32 24 accuracy linear pretraining 0.01
        descals S2 32 3 accuracy linear pretraining 0.01
        ethiopia_crops S2 32 4 accuracy linear pretraining 0.01
        glance S2 32 11 accuracy linear pretraining 0.01
        lcmap_lu S2 32 6 accuracy linear pretraining 0.01
        us_trees S2 32 39 accuracy linear pretraining 0.01
        surface_fuels S2 32 29 accuracy linear pretraining 0.01
        kenya_intercropping S2 32 3 accuracy linear pretraining 0.01
        small_sentinel2_vessel_type S2 64 9 accuracy linear pretraining 0.01
        small_sentinel2_vessel_length S2 64 0 rmse regression pretraining 0.01
        lfmc_woody_3k S1+S2 32 0 rmse regression pretraining 0.00005
        mapbiomas_3k_dense S2 48 28 f1_macro linear pretraining 0.001
        canada_wildfire_sat S2 50 2 miou linear pretraining 0.01
        fifty_cities S2 64 13 miou linear pretraining 0.1
    """,
    _GEOBENCH2: """
        gb2_benv2 S1+S2 120 19 map_micro knn pretraining -
        gb2_treesatai S2 20 15 map_micro knn pretraining -
        gb2_biomassters S1+S2 256 0 rmse regression pretraining 0.001
        gb2_burn_scars S2 512 2 miou linear pretraining 0.1
        gb2_caffe S1 512 3 miou linear pretraining 0.1
        gb2_cloudsen12 S2 512 4 miou linear pretraining 0.1
        gb2_kuro_siwo S1 224 3 miou linear pretraining 0.1
        gb2_spacenet2 S2 512 3 miou linear pretraining 0.1
        gb2_spacenet7 S2 512 3 miou linear pretraining 0.1
        gb2_flair2 S2 512 13 miou linear pretraining 0.1
        gb2_fotw S2 256 3 miou linear pretraining 0.1
    """,
}

OFFICIAL: dict[str, OfficialTask] = {
    task.name: task
    for source, text in _TABLE.items()
    for task in (_task(line.strip(), source) for line in text.strip().splitlines())
}
"""By name."""


def refuse(task: OfficialTask) -> SourceError:
    """One sentence that says what the task lacks here."""
    return SourceError(
        got=f"task {task.name}, whose data ({task.sensors}, {task.size_px} px) have no reader here",
        expected=f"its data from {task.source}",
        fix="export them as one folder of GeoTIFFs per class and name the reader class_folders "
        "with its path in the suite, or leave the task out",
    )
