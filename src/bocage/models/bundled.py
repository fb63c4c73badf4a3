"""The small model that comes with the package, for the demonstration and for tests.

It was trained by this project on a few dozen real images (`weights/bocage-nano/README.md` is its
model card). It shows that every step works with features that mean something; it is no substitute
for the official weights.
"""

from __future__ import annotations

from pathlib import Path

BUNDLED = ("bocage-nano",)
"""Names of the models whose weights are inside the package."""


def bundled_folder(name: str) -> Path | None:
    """The folder with config.json and weights of a model of the package, None for other names."""
    wanted = name.strip().lower()
    return Path(__file__).parent / "weights" / wanted if wanted in BUNDLED else None


def notice(name: str) -> str:
    """What to say wherever such a model is used."""
    return (
        f"{name} is a small demonstration model for Sentinel-2, trained on a few dozen images; "
        "for maps that count, use official weights such as olmoearth-v1.2-tiny"
    )
