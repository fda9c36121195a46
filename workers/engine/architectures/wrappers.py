"""Wrappers: models with towers for images, video or sound beside a decoder, which alone is pruned. Import-light.

The engine sees the decoder as a language model of its own: its config entries, and its tensors under the names of that
model. Other tensors and entries travel as they are. These functions are where files are read and written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.built import family

WHOLE = "_whole"
"""Entry of a decoder's config: the wrapper's config. Not in files."""
_TEXT = "text_config"
_TIES = "tie_word_embeddings"
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""Entries that old files leave to the decoder's defaults."""
_PARTS = ("layers", "embed_tokens", "norm", "embedding_norm", "final_layernorm")
"""Of the decoders."""
_TOWERS = (
    "aligner", "audio_tower", "connector", "embed_audio", "embed_vision", "encoder",
    "high_res_vision_alpha",
    "high_res_vision_model", "high_res_vision_neck", "high_res_vision_proj", "image_newline", "image_tower", "merger",
    "multi_modal_projector", "projector", "video_tower", "vision_embed_tokens", "vision_embedder", "vision_encoder",
    "vision_model", "vision_projection", "vision_tower", "visual", "visual_embeddings_table",
)  # fmt: skip


@dataclass(frozen=True)
class Wrapper:
    """Where the class of a family of wrappers has its decoder."""

    text: str
    """Model type of the decoder, where `text_config` does not name one."""
    ties_head: bool = False
    """Whether the head is the embedding where the config does not say."""
    decoder: str = "model.language_model"
    """Module path of the decoder in the wrapper's class."""
    head: str = "lm_head"
    """That of the output head."""
    shared: tuple[str, ...] = ()
    """Entries of the decoder's config by which other parts are built too."""

    @property
    def modules(self) -> tuple[tuple[str, str], ...]:
        """(beginning of a path in the decoder's own class, the same in the wrapper's)."""
        towers = tuple((f"model.{tower}", f"model.{tower}") for tower in _TOWERS)
        return (*towers, ("model", self.decoder), ("lm_head", self.head))


WRAPPERS: Mapping[str, Wrapper] = {
    "aya_vision": Wrapper("cohere2", ties_head=True),
    "cohere2_vision": Wrapper("cohere2", ties_head=True),
    "cohere_compass": Wrapper("cohere_compass_text"),
    "deepseek_vl": Wrapper("llama", ties_head=True),
    "deepseek_vl_hybrid": Wrapper("llama", ties_head=True),
    "exaone4_5": Wrapper("exaone4"),
    "fuyu": Wrapper("persimmon"),
    "gemma3": Wrapper("gemma3_text", ties_head=True),
    "gemma4": Wrapper("gemma4_text", ties_head=True),
    "gemma4_unified": Wrapper("gemma4_unified_text", ties_head=True),
    "glm46v": Wrapper("glm4v_text"),
    "glm4v": Wrapper("glm4v_text"),
    "glm4v_moe": Wrapper("glm4v_moe_text"),
    "glm_ocr": Wrapper("glm_ocr_text"),
    "glmasr": Wrapper("llama", ties_head=True),
    "got_ocr2": Wrapper("qwen2", ties_head=True),
    "granite_docling": Wrapper("granite_docling_text", ties_head=True, decoder="model.text_model"),
    "granite_speech": Wrapper("granite", ties_head=True),
    "granite_speech_plus": Wrapper("granite", ties_head=True),
    "idefics2": Wrapper("mistral", decoder="model.text_model", shared=("intermediate_size",)),
    "idefics3": Wrapper("llama", decoder="model.text_model"),
    "internvl": Wrapper("qwen2", ties_head=True),
    "lfm2_vl": Wrapper("lfm2", ties_head=True),
    "lfm3_vl": Wrapper("lfm3", ties_head=True),
    "lighton_ocr": Wrapper("qwen3", ties_head=True),
    "llama4": Wrapper("llama4_text", decoder="language_model.model", head="language_model.lm_head"),
    "llava": Wrapper("llama"),
    "llava_next": Wrapper("llama"),
    "llava_next_video": Wrapper("llama"),
    "llava_onevision": Wrapper("qwen2"),
    "minicpm_ocr": Wrapper("qwen3_5_text", ties_head=True),
    "minicpmv4_6": Wrapper("qwen3_5_text"),
    "minicpmv4_7": Wrapper("qwen3_5_text"),
    "mistral3": Wrapper("mistral", ties_head=True),
    "moss_transcribe_diarize": Wrapper("qwen3", ties_head=True),
    "ovis2": Wrapper("qwen2", ties_head=True),
    "pp_chart2table": Wrapper("qwen2", ties_head=True),
    "qwen2_5_vl": Wrapper("qwen2_5_vl_text"),
    "qwen2_vl": Wrapper("qwen2_vl_text"),
    "qwen3_5": Wrapper("qwen3_5_text"),
    "qwen3_5_moe": Wrapper("qwen3_5_moe_text"),
    "qwen3_asr": Wrapper("qwen3", ties_head=True),
    "qwen3_vl": Wrapper("qwen3_vl_text"),
    "qwen3_vl_moe": Wrapper("qwen3_vl_moe_text"),
    "smolvlm": Wrapper("llama", decoder="model.text_model"),
    "video_llama_3": Wrapper("qwen2"),
    "video_llava": Wrapper("llama"),
    "vipllava": Wrapper("llama"),
}
"""Model types of the wrappers whose decoders are pruned."""


@dataclass(frozen=True)
class Names:
    """Beginnings of names, in files and in a decoder on its own."""

    pairs: tuple[tuple[str, str], ...] = ()
    """(in the files, in the decoder's own class)."""

    def inside(self, name: str) -> str:
        """The name that the engine has for a tensor of the files."""
        return _moved(name, self.pairs)

    def in_files(self, name: str) -> str:
        """The reverse."""
        return _moved(name, [(ours, theirs) for theirs, ours in self.pairs])


PLAIN = Names()
"""Of models that are no wrappers."""


def names_of(config: Mapping[str, Any], stored: Iterable[str]) -> Names:
    """How the files of a model name its decoder's tensors. `config`: as stored; `stored`: names of the tensors."""
    if config.get("model_type") not in WRAPPERS:
        return PLAIN
    names = [*stored]
    for decoder in ("language_model.model", "model.language_model", "model.text_model"):
        if any(name.startswith(f"{decoder}.") for name in names):
            head = "language_model.lm_head" if decoder.startswith("language_model") else "lm_head"
            parts = [(f"{decoder}.{part}.", f"model.{part}.") for part in _PARTS]
            return Names((*parts, (f"{head}.", "lm_head.")))
    return PLAIN


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether a model is a wrapper whose decoder is of a family that is known."""
    return config["model_type"] in WRAPPERS and family(str(decoder_config(config)["model_type"])) is not None


def of_towers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Beginnings of the names of tensors that are not the decoder's, by its config; none where it is in no wrapper."""
    beside = (f"{path}{tower}" for path in ("", "model.") for tower in _TOWERS)
    return tuple(f"{name}." for name in beside) if WHOLE in config else ()


def decoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's config: of a wrapper its own entries, with all under `WHOLE`; else the config as it is."""
    wrapper = WRAPPERS.get(config["model_type"])
    if wrapper is None:
        return dict(config)
    nested = config.get(_TEXT)
    text = dict(nested) if isinstance(nested, dict) else {k: v for k, v in config.items() if not k.endswith("_config")}
    model_type = text.get("model_type", wrapper.text) if isinstance(nested, dict) else wrapper.text
    ties = config.get(_TIES, text.get(_TIES, wrapper.ties_head))
    fields = (family(str(model_type)) or {"fields": {}})["fields"]
    sizes = {name: fields[name][1] for name in _SIZES if name in fields}
    return {**sizes, **text, "model_type": model_type, _TIES: ties, WHOLE: dict(config)}


def whole_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it is stored, of a decoder's: of a wrapper with the decoder's entries in their place."""
    whole = config.get(WHOLE)
    if whole is None:
        return dict(config)
    text = {name: entry for name, entry in config.items() if name != WHOLE}
    dtype = {"dtype": text["dtype"]} if "dtype" in text else {}
    if isinstance(nested := whole.get(_TEXT), dict):
        inner = {name: entry for name, entry in text.items() if name != _TIES or name in nested}
        return {**whole, **dtype, _TEXT: inner}
    return {**whole, **text, "model_type": whole["model_type"]}


def in_wrapper(layout: Layout, config: Mapping[str, Any]) -> Layout:
    """The layout of a decoder, with the paths of the class that it is in."""
    whole = config.get(WHOLE)
    return layout if whole is None else replace(layout, moved=WRAPPERS[whole["model_type"]].modules)


def _moved(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for before, after in pairs:
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name
