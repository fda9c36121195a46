"""Kinds of model that are refused, told by the config and the names of the files. Import-light.

So the error names the kind of model, e.g. that it reads images, and not the first tensor that it lacks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from workers.engine.architectures.built import family, like_llama, table
from workers.engine.architectures.layouts import layouts
from workers.engine.architectures.wrappers import decoder_config, is_known
from workers.engine.errors import UnsupportedModel
from workers.engine.files.model_files import shown

SUPPORTED = "use a model of a family that docs/families.md lists, such as Llama, Mistral, Qwen, Gemma or Mixtral"
_ADAPTER = "adapter_config.json"
_TOWERS = (
    "vision_config", "audio_config", "text_config", "thinker_config", "vision_tower", "mm_vision_tower",
    "speech_config",
)  # fmt: skip
_NOT_ITS_DECODER = {
    "paligemma": ", which attends to the whole prompt in both directions: text alone does not show how it writes",
}
"""Model types of wrappers -> why their decoders are not pruned in them, although they are of a known family."""
_CLASSIFIER = re.compile(r"For(Sequence|Token)Classification|ForQuestionAnswering|ForMultipleChoice|RewardModel")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
_OF_EXPERTS = ("moe_intermediate_size", "num_experts_per_tok", "moe_layer_freq")
_STATES = (
    "ssm_cfg", "state_size", "ssm_state_size", "mamba_d_state", "mamba_n_heads", "d_state", "lru_width", "conv_L_cache",
    "linear_conv_kernel_dim", "linear_attn_config", "hybrid_override_pattern", "layers_block_type", "full_attn_idxs",
)  # fmt: skip
_STATE_TYPES = re.compile(r"mamba|rwkv|xlstm|retnet|recurrent|hybrid")


def refuse_without_config(model_id: str, names: Collection[str]) -> None:
    """Refuse a folder without `config.json`, by the kind of model that its file names show, if they show one."""
    if _ADAPTER in names:
        raise _is(
            model_id, "it is an adapter (PEFT, LoRA) to be put on another model", "merge it into that model first"
        )
    if any(name.endswith(".gguf") for name in names):
        raise _is(
            model_id, "it is a GGUF file, quantised for llama.cpp", "use the safetensors model that it was made of"
        )
    if "model_index.json" in names:
        raise _is(model_id, "it is a pipeline of diffusers, which draws images", SUPPORTED)
    if "params.json" in names:
        raise _is(
            model_id,
            "it is in its author's own format (params.json, no config.json)",
            "use the same model in the format of transformers",
        )


def refuse(config: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse a model that is no decoder of a known layout, by `config.json` and the names of its files."""
    model_type = shown(config["model_type"])
    if _ADAPTER in names:
        raise _is(
            model_type,
            f"an adapter (PEFT, LoRA) lies beside the weights, which transformers would put on them ({_ADAPTER})",
            f"merge the adapter into the model, or remove {_ADAPTER}",
        )
    if (method := _quantised(config)) is not None:
        raise _is(model_type, f"its weights are quantised ({method})", "use the unquantised model that it was made of")
    kind = next((kind for kind, types in table()["kinds"].items() if config["model_type"] in types), None)
    architectures = [name for name in _list(config.get("architectures")) if isinstance(name, str)]
    if is_known(config):
        kind, config = "decoder", decoder_config(config)
    elif kind == "multimodal" or any(isinstance(config.get(name), dict | str) for name in _TOWERS):
        raise _multimodal(model_type, config)
    if any(_CLASSIFIER.search(name) for name in architectures):
        raise _is(
            model_type,
            f"it is a classifier or reward model ({shown(architectures[0])}), without a head for language",
            "use the language model that it was made of",
        )
    if any(name.endswith("EncoderModel") for name in architectures):
        kind = "encoder"
    if kind == "encoder-decoder" or config.get("is_encoder_decoder") is True:
        raise _is(model_type, "it is an encoder-decoder, and only decoders are pruned", SUPPORTED)
    backwards = config.get("use_bidirectional_attention") in (True, "all") or config.get("is_causal") is False
    if kind == "encoder" or backwards:
        raise _is(model_type, "it is an encoder: it fills gaps or embeds text and does not write it", SUPPORTED)
    row = family(config["model_type"])
    if config.get("auto_map") and row is None:  # for others transformers' own code is used
        raise _is(
            model_type,
            "its modelling code comes with the weights (auto_map), and such code is never run",
            "use a model of a family that transformers implements itself",
        )
    if (row is None or _like_llama(config)) and (nature := _nature(config)):
        raise _is(model_type, nature, SUPPORTED)
    if kind is None:
        raise _is(
            model_type,
            f"transformers {table()['transformers']}, which this service uses, has no model of that type",
            "check `model_type` in config.json, or use a model of a family that transformers implements itself",
        )
    if kind == "other":
        raise _is(model_type, "transformers has no causal language model of that type", SUPPORTED)


def other_blocks(config: Mapping[str, Any], first: str) -> UnsupportedModel:
    """The error for a decoder whose tensors have other names; `first` is one of them."""
    model_type = shown(config["model_type"])
    named = ", ".join(f"`{path}.0.*`" for path in dict.fromkeys(layout.blocks for layout in layouts()))
    where = f"its blocks lie under none of the paths that are known ({named}): its tensors are named such as"
    why = ": ".join(part for part in (_nature(config), f"{where} `{shown(first)}`") if part)
    return _is(model_type, why, SUPPORTED)


def _nature(config: Mapping[str, Any]) -> str:
    """The kind of blocks that a config shows, if not Llama's; empty where it says nothing."""
    if (name := _states(config)) is not None:
        return f"it is a state-space model or a hybrid with other layers than attention ({name})"
    if (name := _experts(config)) is not None:
        return f"it is a mixture of experts ({name} = {shown(config[name])})"
    if _truthy(config.get("kv_lora_rank")) and not _like_llama(config):
        return "its attention is latent (MLA, kv_lora_rank)"
    return ""


def _like_llama(config: Mapping[str, Any]) -> bool:
    """Whether it is a dense family, whose config may have entries of its relatives."""
    row = family(config["model_type"])
    return row is not None and like_llama(row)


def _multimodal(model_type: str, config: Mapping[str, Any]) -> UnsupportedModel:
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    tower = f"; its text tower is `{shown(inner)}`" if isinstance(inner, str) else ""
    why = _NOT_ITS_DECODER.get(config["model_type"], "")
    alone = inner is None or family(str(inner)) is not None
    return _is(
        model_type,
        f"it is multimodal, a language model with towers for images, sound or other input{tower}{why}",
        "save its language model alone, by AutoModelForCausalLM, and use that" if alone else SUPPORTED,
    )


def _quantised(config: Mapping[str, Any]) -> str | None:
    """The method of quantisation; None where there is none, as for an empty entry."""
    for name in ("quantization_config", "compression_config"):
        if entry := config.get(name):
            if not isinstance(entry, dict):
                return name
            method = entry.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in entry else "by what is not said")
            bits = entry.get("bits") or entry.get("w_bit")
            return shown(method) + (f", {bits} bits" if type(bits) is int else "")
    return None


def _states(config: Mapping[str, Any]) -> str | None:
    """The config entry that shows layers with a recurrent state instead of attention; None where none does."""
    for name in ("layer_types", "layers_block_type"):
        for entry in _list(config.get(name)):
            if isinstance(entry, str) and re.search("mamba|linear_attention|conv|recurrent|rnn", entry):
                return f"{name}: {shown(entry)}"
    if _like_llama(config):
        return None
    if _STATE_TYPES.search(config["model_type"]):
        return shown(config["model_type"])
    return next((name for name in _STATES if _truthy(config.get(name))), None)


def _experts(config: Mapping[str, Any]) -> str | None:
    names = _EXPERTS if _like_llama(config) else (*_EXPERTS, *_OF_EXPERTS)
    return next((name for name in names if _truthy(config.get(name)) and config[name] != 1), None)


def _truthy(entry: Any) -> bool:
    return entry is not None and entry is not False and entry != 0 and entry != [] and entry != {}


def _list(entry: Any) -> list[Any]:
    return entry if isinstance(entry, list) else []


def _is(model: str, what: str, hint: str) -> UnsupportedModel:
    return UnsupportedModel(f"{model}: {what}", hint, field="/model/id")
