"""Tiny random checkpoints of wrappers: models with a text tower beside towers for images, sound or other input."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto import modeling_auto as auto

from tests.families.checkpoints import ENTRIES, OWN

CLASSES = {**auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, **auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
"""model_type -> its class."""
_TEXT = ("text", "thinker", "llm", "language")
"""Beginnings of the names of configs of text towers."""
_TOKENS = ("image", "video", "audio", "vision_start", "vision_end", "boi", "eoi", "image_start", "image_end")
_SPECIAL_BYTES = 206
"""Token of byte 14, a control character that no text holds, as the next eleven are."""
_WRAPPER: dict[str, Any] = {
    **{f"{name}_token_id": _SPECIAL_BYTES + index for index, name in enumerate(_TOKENS)},
    **{f"{name}_token_index": _SPECIAL_BYTES + index for index, name in enumerate(_TOKENS)},
    "hidden_size": 32, "vocab_size": 260, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_TOWER: dict[str, Any] = {
    "depth": 2, "embed_dim": 32, "patch_size": 4, "image_size": 16, "num_hidden_layers": 2, "hidden_size": 32,
    "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_attention_heads": 4,
    "num_position_embeddings": 16, "spatial_merge_size": 2, "projection_dim": 32, "mm_tokens_per_image": 1,
    "window_size": 8, "temporal_patch_size": 2, "deepstack_visual_indexes": [0], "fullatt_block_indexes": [1],
    "vocab_size": 260, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "num_layers": 2,
    "model_max_length": 16, "pooling_kernel_size": 1, "position_embedding_size": 16, "d_model": 32,
    "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
}  # fmt: skip
"""Of the other towers, two blocks each, fewer than the text's."""


def wrapper_config(model_type: str) -> PreTrainedConfig:
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**_entries(config_class, _WRAPPER))


def wrapper_class(model_type: str) -> Any:
    return getattr(transformers, CLASSES[model_type])


def _entries(config_class: type[PreTrainedConfig], sizes: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    entries = {name: size for name, size in sizes.items() if name in known}
    entries |= OWN.get(config_class.model_type, {})
    entries.pop("dtype", None)  # a wrapper's is one for all
    for name, part in config_class.sub_configs.items():
        if part is AutoConfig:
            default = getattr(config_class(), name, None)
            if default is None:
                continue
            part = type(default)
        entries[name] = _entries(part, ENTRIES if name.startswith(_TEXT) else _TOWER) | {"model_type": part.model_type}
    return {name: entry for name, entry in entries.items() if entry is not None}
