"""Calibrate: read the text that activations are measured on. N = windows, T = tokens of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Stat
from workers.engine.errors import DegenerateCalibration, InvalidSpec
from workers.engine.model.calibration import Calibration
from workers.engine.model.reading import load_tokens
from workers.engine.model.windows import opening_ids, random_windows, refuse_unknown, wanted_of
from workers.engine.sources.texts.token_ids import token_ids

if TYPE_CHECKING:
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec

FEWEST_TOKENS = 16
"""Least number of distinct tokens: padding or a repeated word has fewer, a sentence of English has more."""


def refuse_unknown_tokens(spec: CompressionSpec, model: LoadedModel, sources: Sources) -> None:
    """Read the prompts of the spec and, where the tokenizer has more tokens than the model, every text, before any work
    is done on them.

    Raises UnsupportedModel, InvalidSpec for a prompt of no tokens, and what reading data raises.
    """
    vocabulary, tokenizer = model.architecture.vocabulary, model.tokenizer
    opening_T = torch.tensor(opening_ids(tokenizer, "auto", ""), dtype=torch.int64)  # need not be in the vocabulary
    refuse_unknown(opening_T, vocabulary, tokenizer, "that the tokenizer puts before a text")
    for index, params in enumerate(spec.evaluate):
        for name, prompt in ((name, text) for name, texts in params.own_texts.items() for text in texts):
            ids_T = torch.tensor(token_ids(tokenizer, prompt), dtype=torch.int64)
            refuse_unknown(ids_T, vocabulary, tokenizer, "of a prompt")
            if not len(ids_T) + len(opening_T):
                raise InvalidSpec(
                    f"the model's tokenizer makes no token of the prompt {prompt[:40]!r}",
                    "give a prompt of words",
                    field=f"/evaluate/{index}/{name}",
                )
    if max(tokenizer.get_vocab().values(), default=0) < vocabulary:
        return
    for field, ref in spec.texts().items():
        load_tokens(ref, tokenizer, sources, field, wanted_of(ref), vocabulary=vocabulary)


def calibration(spec: CompressionSpec, model: LoadedModel, sources: Sources) -> Calibration | None:
    """The windows of the spec, or None if nothing in it needs activations.

    Raises what reading data raises, and DegenerateCalibration where the windows hold fewer than FEWEST_TOKENS distinct
    tokens.
    """
    if spec.needs is Stat.NONE:
        return None
    params = needed(spec.calibrate, "/calibrate")
    tokens = load_tokens(
        params,
        model.tokenizer,
        sources,
        "/calibrate",
        wanted_of(params),
        vocabulary=model.architecture.vocabulary,
    )
    windows_NT = random_windows(
        tokens,
        params.sequence_length,
        count=params.samples,
        seed=params.seed,
        field="/calibrate",
    )
    distinct = len(windows_NT.unique())
    if distinct < min(FEWEST_TOKENS, windows_NT.numel()):
        raise DegenerateCalibration(
            f"the calibration windows of {params.label} hold {distinct} different tokens in "
            f"{windows_NT.numel()}: padding or a repeated word, from which no statistic can be had",
            "calibrate on text like that the model is for",
            field="/calibrate/dataset",
        )
    return Calibration(windows_NT, params.label, tokens.report, params.all_experts)
