"""What a network is made of, as frozen dataclasses that know nothing of torch.

``config_json.py`` fills them from any ``config.json`` of the OlmoEarth releases;
``releases.py`` fills them from the table of published sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bocage.errors import ModelError
from bocage.sensors import MAPS, SENSORS

POSITION_ENCODINGS = ("absolute", "rope", "rope_mixed", "rope_3d", "rope_3d_mixed", "none")
"""How tokens know where and when they are: additive tables, or rotations inside attention."""

BandSets = tuple[tuple[int, ...], ...]
"""Band indices that share one token, for each token of a cell and timestep."""


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """Position encoding of one transformer (encoder or decoder)."""

    encoding: str = "absolute"
    """One of POSITION_ENCODINGS; v1 and v1.1 absolute, v1.2 and v1.3 encoders rope_3d_mixed."""

    base: float = 10000.0
    """Frequency base of axial rotations."""

    coordinate_scale: float = 1.0
    """Multiplies row and column, which are in units of 10 m."""

    mixed_base: float = 10.0
    """Frequency base from which learned rotations are initialized; unused once weights load."""

    temporal_dim_fraction: float = 0.25
    """Share of a head that rotates with time in rope_3d."""

    temporal_base: float | None = None
    """Frequency base of the time axis in rope_3d; None uses ``base``."""

    temporal_coordinate_scale: float = 1.0
    """Multiplies days; 1/30 in the releases, so that one unit is about a month."""

    def __post_init__(self) -> None:
        if self.encoding not in POSITION_ENCODINGS:
            raise ModelError(
                got=f"position_encoding {self.encoding!r}",
                expected=f"one of {', '.join(POSITION_ENCODINGS)}",
                fix="correct encoder_config.position_encoding in config.json",
            )

    @property
    def n_coordinates(self) -> int:
        """3 for (time, row, column), 2 for (row, column), 0 without rotation."""
        return {"rope": 2, "rope_mixed": 2, "rope_3d": 3, "rope_3d_mixed": 3}.get(self.encoding, 0)

    @property
    def learned(self) -> bool:
        """True if each attention layer holds its own frequencies."""
        return self.encoding in ("rope_mixed", "rope_3d_mixed")


@dataclass(frozen=True, kw_only=True)
class PoolerConfig:
    """Attention pooler of v1.3: a grid of location queries that read the tokens."""

    width: int
    """Width of a location token."""

    depth: int = 1
    """Pairs of a read block and a self-attention block."""

    heads: int = 12
    """Attention heads."""

    attention_width: int | None = None
    """Inner width of the attention; None ties it to ``width`` and projects the tokens first."""

    per_depth_read: bool = False
    """One input norm (and projection) per read block; has no effect at depth 1."""

    student_dims: tuple[int, ...] = ()
    """Widths of the small readout, widest first; the others are its prefixes."""

    student_norm: bool = False
    """LayerNorm after the readout."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Predictor of pretraining; never needed for embeddings."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    output_width: int | None = None
    """Width of the predictions; None is the encoder's width."""

    positions: PositionConfig = PositionConfig()
    reads_locations: bool = False
    """v1.3: the context is the location tokens instead of the patch tokens."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One network: what it reads, how wide and deep it is, how it encodes position."""

    modalities: tuple[str, ...]
    """Everything pretraining saw, in the order of the released files."""

    inputs: tuple[str, ...]
    """The sensors the encoder reads; the other modalities are only ever predicted."""

    band_sets: Mapping[str, BandSets]
    """Band sets of each modality."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    base_patch_size: int = 8
    """Every patch is resized to this many pixels a side before it is projected."""

    pixel_hidden: tuple[int, ...] | None = None
    """Hidden widths of the pixel network before the projection (v1.1 on); None is one
    convolution (v1); empty is a plain linear projection."""

    positions: PositionConfig = PositionConfig()
    drop_path: float = 0.1
    """Share of residual branches skipped in training."""

    max_timesteps: int = 12
    """Longest series seen in training."""

    pooler: PoolerConfig | None = None
    decoder: DecoderConfig | None = None
    projection_only_target: bool = False
    """The checkpoint's target encoder is the patch embedding alone (v1.3)."""

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise ModelError(
                got=f"width {self.width} with {self.heads} heads",
                expected="a width divisible by 4 and by the number of heads",
                fix="correct embedding_size and num_heads in config.json",
            )

    @property
    def release(self) -> str:
        """Release whose rules apply: "v1", "v1.1", "v1.2" or "v1.3"."""
        if self.pixel_hidden is None:
            return "v1"
        if self.pooler is not None:
            return "v1.3"
        return "v1.2" if self.positions.n_coordinates else "v1.1"

    @property
    def square_only(self) -> bool:
        """True if crops must be square: the additive 2-D table of v1 and v1.1 is."""
        return self.positions.encoding == "absolute"

    @property
    def copies_missing_bands(self) -> bool:
        """v1 saw no band dropout: a missing band is a copy of the nearest one, later ones get 0."""
        return self.release == "v1"


def default_band_sets(*, split: bool) -> dict[str, BandSets]:
    """Band sets of all modalities: ``split`` as in v1, otherwise one set per modality."""
    sets: dict[str, BandSets] = {
        name: sensor.band_sets_v1 if split else (tuple(range(len(sensor.bands))),)
        for name, sensor in SENSORS.items()
    }
    return sets | {name: (tuple(range(len(m.bands))),) for name, m in MAPS.items()}


def band_names(modality: str) -> tuple[str, ...]:
    """Bands of a sensor or map in tensor order."""
    return SENSORS[modality].band_names if modality in SENSORS else MAPS[modality].bands
