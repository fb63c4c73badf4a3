"""``config.json`` of the OlmoEarth releases, in and out.

The file is the whole training configuration; only the model part and the list of modalities that
pretraining never encoded are read. Old and new names of keys are both understood. An option that
would change the network and is not implemented here is refused, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bocage.errors import ModelError
from bocage.models.config import (
    BandSets,
    DecoderConfig,
    ModelConfig,
    PoolerConfig,
    PositionConfig,
    band_names,
    default_band_sets,
)
from bocage.sensors import MAPS, SENSORS

_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_register_tokens": (0, None),
    "qk_norm": (False, None),
    "post_proj_hidden_sizes": (None, []),
}
"""Options of the encoder that no release uses, with the values that switch them off."""


def read_config(path: Path) -> ModelConfig:
    """The network of a ``config.json``; raises ModelError on a file that is not one."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(
            got=f"{path} ({error})",
            expected="the config.json of an OlmoEarth model",
            fix="download it again beside the weights",
        ) from error
    return parse_config(raw, where=str(path))


def parse_config(raw: Any, *, where: str = "config.json") -> ModelConfig:
    """The network of a parsed ``config.json``."""
    try:
        model = raw["model"]
        encoder = model["encoder_config"]
        modalities = tuple(encoder["supported_modality_names"])
        width, depth, heads = (
            int(encoder[key]) for key in ("embedding_size", "depth", "num_heads")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            got=f"{where} without a usable model.encoder_config ({error!r})",
            expected="the training configuration of an OlmoEarth model",
            fix="use the config.json that was published with the weights",
        ) from error
    unknown = [m for m in modalities if m not in SENSORS and m not in MAPS]
    _refuse(unknown, where, "supported_modality_names", f"some of {[*SENSORS, *MAPS]}")
    for key, off in _UNSUPPORTED.items():
        if encoder.get(key) not in off:
            _refuse([encoder[key]], where, f"encoder_config.{key}", f"{off[0]}")
    hidden = encoder.get("patch_embed_hidden_sizes") or ()
    linear = bool(encoder.get("use_linear_patch_embed", False))
    decode_only = _decode_only(raw)
    return ModelConfig(
        modalities=modalities,
        inputs=tuple(m for m in modalities if m in SENSORS and m not in decode_only),
        band_sets=_band_sets(encoder.get("tokenization_config"), modalities, where),
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=float(encoder.get("mlp_ratio", 4.0)),
        base_patch_size=int(encoder.get("max_patch_size", 8)),
        pixel_hidden=tuple(int(n) for n in hidden) if linear else None,
        positions=_positions(encoder),
        drop_path=float(encoder.get("drop_path", 0.1)),
        max_timesteps=int(encoder.get("max_sequence_length", 12)),
        pooler=_pooler(encoder, heads),
        decoder=_decoder(model.get("decoder_config")),
        projection_only_target=bool(model.get("projection_only_target", False)),
    )


def _refuse(values: list[Any], where: str, key: str, expected: str) -> None:
    if values:
        raise ModelError(
            got=f"{key} = {values[0]!r} in {where}",
            expected=expected,
            fix="this kind of network is not implemented; use a published OlmoEarth model",
        )


def _decode_only(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Modalities that pretraining only predicted; where it is not said, those are the maps."""
    for section in ("train_module", "data_loader"):
        masking = (raw.get(section) or {}).get("masking_config") or {}
        names = (masking.get("strategy_config") or {}).get("only_decode_modalities")
        if names is not None:
            return tuple(names)
    return tuple(MAPS)


def _band_sets(tokenization: Any, modalities: tuple[str, ...], where: str) -> dict[str, BandSets]:
    """Band sets of all modalities: those of v1, except where the file lists other groups."""
    defaults = default_band_sets(split=True)
    sets = {m: defaults[m] for m in modalities}
    for modality, override in ((tokenization or {}).get("overrides") or {}).items():
        if modality not in sets:
            continue
        names = band_names(modality)
        groups = override["band_groups"]
        _refuse(
            [band for group in groups for band in group if band not in names],
            where,
            f"tokenization_config.overrides.{modality}",
            f"bands {' '.join(names)}",
        )
        sets[modality] = tuple(tuple(names.index(band) for band in group) for group in groups)
    return sets


def _positions(part: Mapping[str, Any]) -> PositionConfig:
    # Configurations of v1.2 say spatial_pos_encoding; newer files may carry both, one of them null.
    encoding = part.get("spatial_pos_encoding") or part.get("position_encoding") or "absolute"
    temporal_base = part.get("rope_temporal_base")
    return PositionConfig(
        encoding=str(encoding),
        base=float(part.get("rope_base", 10000.0)),
        coordinate_scale=float(part.get("rope_coordinate_scale", 1.0)),
        mixed_base=float(part.get("rope_mixed_base", 10.0)),
        temporal_dim_fraction=float(part.get("temporal_rope_dim_frac", 0.25)),
        temporal_base=None if temporal_base is None else float(temporal_base),
        temporal_coordinate_scale=float(part.get("rope_temporal_coordinate_scale", 1.0)),
    )


def _pooler(encoder: Mapping[str, Any], heads: int) -> PoolerConfig | None:
    """The pooler under its present name or the two of its development."""
    part = encoder.get("attention_pooler_config") or encoder.get("perceiver_config")
    if part is None and encoder.get("use_register_bottleneck"):
        part = {k.removeprefix("register_"): v for k, v in encoder.items() if "register_" in k}
        part["register_dim"] = part.get("dim")
    if part is None:
        return None
    width = part.get("pooler_dim", part.get("register_dim"))
    depth = part.get("pooler_depth", part.get("latent_depth", part.get("depth", 2)))
    if width is None:
        raise ModelError(
            got="an attention pooler without pooler_dim in config.json",
            expected="pooler_dim (register_dim in old files)",
            fix="use the config.json that was published with the weights",
        )
    attention_width = part.get("attn_dim")
    return PoolerConfig(
        width=int(width),
        depth=int(depth),
        heads=int(part.get("num_heads") or heads),
        attention_width=None if attention_width is None else int(attention_width),
        per_depth_read=bool(part.get("per_depth_read_proj", False)),
        student_dims=tuple(sorted({int(n) for n in part.get("student_dims") or ()}, reverse=True)),
        student_norm=bool(part.get("student_output_norm", False)),
    )


def _decoder(part: Mapping[str, Any] | None) -> DecoderConfig | None:
    if part is None:
        return None
    output_width = part.get("output_embedding_size")
    return DecoderConfig(
        width=int(part["decoder_embedding_size"]),
        depth=int(part["depth"]),
        heads=int(part["num_heads"]),
        mlp_ratio=float(part.get("mlp_ratio", 4.0)),
        output_width=None if output_width is None else int(output_width),
        positions=_positions(part),
        reads_locations=bool(
            part.get("use_attention_pooler") or part.get("use_register_bottleneck") or False
        ),
    )


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """A ``config.json`` that ``parse_config`` and the official loader read back as this network."""
    family = "olmoearth_pretrain.nn"
    shared = {
        "supported_modality_names": list(config.modalities),
        "max_sequence_length": config.max_timesteps,
        "tokenization_config": {
            "_CLASS_": f"{family}.tokenization.TokenizationConfig",
            "overrides": {
                m: {
                    "_CLASS_": f"{family}.tokenization.ModalityTokenization",
                    "band_groups": [[band_names(m)[i] for i in bands] for bands in sets],
                }
                for m, sets in config.band_sets.items()
            },
        },
    }
    encoder = {
        "_CLASS_": f"{family}.flexi_vit.EncoderConfig",
        **shared,
        "embedding_size": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "max_patch_size": config.base_patch_size,
        "min_patch_size": 1,
        "drop_path": config.drop_path,
        "use_linear_patch_embed": config.pixel_hidden is not None,
        "patch_embed_hidden_sizes": list(config.pixel_hidden or ()) or None,
        **_positions_to_json(config.positions),
    }
    if config.pooler is not None:
        pooler = config.pooler
        encoder["attention_pooler_config"] = {
            "_CLASS_": f"{family}.flexi_vit.AttentionPoolerConfig",
            "pooler_dim": pooler.width,
            "pooler_depth": pooler.depth,
            "num_heads": pooler.heads,
            "attn_dim": pooler.attention_width,
            "per_depth_read_proj": pooler.per_depth_read,
            "student_dims": list(pooler.student_dims) or None,
            "student_output_norm": pooler.student_norm,
        }
    model: dict[str, Any] = {
        "_CLASS_": f"{family}.latent_mim.LatentMIMConfig",
        "encoder_config": encoder,
        "projection_only_target": config.projection_only_target,
    }
    if config.decoder is not None:
        decoder = config.decoder
        model["decoder_config"] = {
            "_CLASS_": f"{family}.flexi_vit.PredictorConfig",
            **shared,
            "encoder_embedding_size": config.width,
            "decoder_embedding_size": decoder.width,
            "depth": decoder.depth,
            "num_heads": decoder.heads,
            "mlp_ratio": decoder.mlp_ratio,
            "output_embedding_size": decoder.output_width,
            "use_attention_pooler": decoder.reads_locations,
            "pooler_dim": None if config.pooler is None else config.pooler.width,
            **_positions_to_json(decoder.positions),
        }
    decode_only = [m for m in config.modalities if m not in config.inputs]
    return {
        "model": model,
        "train_module": {
            "masking_config": {"strategy_config": {"only_decode_modalities": decode_only}}
        },
    }


def _positions_to_json(positions: PositionConfig) -> dict[str, Any]:
    return {
        "position_encoding": positions.encoding,
        "rope_base": positions.base,
        "rope_coordinate_scale": positions.coordinate_scale,
        "rope_mixed_base": positions.mixed_base,
        "temporal_rope_dim_frac": positions.temporal_dim_fraction,
        "rope_temporal_base": positions.temporal_base,
        "rope_temporal_coordinate_scale": positions.temporal_coordinate_scale,
    }
