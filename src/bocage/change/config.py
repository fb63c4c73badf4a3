"""What can be chosen about a map of change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bocage.errors import ConfigError

METHODS = {
    "magnitude": "length of the difference of the vectors",
    "cosine": "one minus the cosine of the two vectors",
    "difference": "the difference itself, every dimension",
    "pca": "the difference in its first principal components",
    "cva": "change vector analysis of standardized bands, with the angle",
    "irmad": "iteratively reweighted multivariate alteration detection of bands",
    "logistic": "a logistic model of the difference, from labels",
}

_FOR_BANDS = ("cva", "irmad")


@dataclass(frozen=True, kw_only=True)
class ChangeConfig:
    """Options of `map_change`."""

    method: str = "magnitude"
    """One of METHODS."""

    labels: Path | None = None
    """Points or polygons of change and no change, for logistic."""

    label_column: str | None = None
    components: int = 8
    """How many principal components pca keeps."""

    threshold: float | None = None
    """Strength from which a cell counts as changed in NAME.binary.tif; None is Otsu's threshold of
    the map, or 0.5 for logistic."""

    codec: Literal["auto", "int8", "float32"] = "auto"
    """How the map is stored: "auto" is int8 with a linear scale for difference and pca, float32
    for the others."""

    binary: bool = True
    """Also write NAME.binary.tif where the method has a strength."""

    picture: bool = True
    """Also write NAME.png."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                got=f"--method {self.method}",
                expected=f"one of {', '.join(METHODS)}",
                fix="use --method magnitude, or --method logistic with --labels",
            )
        if (self.method == "logistic") != (self.labels is not None):
            raise ConfigError(
                got=f"--method {self.method} "
                + ("without --labels" if self.labels is None else "with --labels"),
                expected="labels with logistic, and only there",
                fix="use --method logistic --labels points.geojson",
            )
        if self.threshold is not None and not 0 < self.threshold < float("inf"):
            raise ConfigError(
                got=f"--threshold {self.threshold:g}",
                expected="a strength of change above 0",
                fix="leave it out for Otsu's threshold of the map",
            )
        if self.components < 1:
            raise ConfigError(
                got=f"--components {self.components}", expected="1 or more", fix="leave it out"
            )
        if self.codec not in {"auto", "int8", "float32"}:
            raise ConfigError(
                got=f"--codec {self.codec}", expected="int8 or float32", fix="leave it out"
            )

    def check_kind(self, is_embeddings: bool) -> None:
        """Refuse band methods on embeddings, which have no bands."""
        if is_embeddings and self.method in _FOR_BANDS:
            raise ConfigError(
                got=f"--method {self.method} on embeddings",
                expected="a method for vectors: magnitude, cosine, pca, difference, logistic",
                fix="use --method cosine, or give the scenes themselves",
            )

    @property
    def is_int8(self) -> bool:
        """Whether the map is stored as int8 with a scale."""
        return self.codec == "int8" or (
            self.codec == "auto" and self.method in {"difference", "pca"}
        )
