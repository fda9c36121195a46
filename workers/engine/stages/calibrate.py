"""Calibrate: the text whose activations are looked at. N = windows, T = tokens of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from workers.engine.contracts.params import Stat
from workers.engine.errors import DegenerateCalibration
from workers.engine.model.calibration import Calibration
from workers.engine.model.windows import load_tokens, opening_ids, random_windows, refuse_unknown, wanted_of

if TYPE_CHECKING:
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec

FEWEST_TOKENS = 16
"""Distinct tokens below which no text is a language's: padding, one repeated word. English reaches it in a sentence."""


def refuse_unknown_tokens(spec: CompressionSpec, model: LoadedModel, sources: Sources) -> None:
    """Read every text and prompt of the spec, where the tokenizer has more tokens than the model, before any work is
    done on it.

    Raises UnsupportedModel, and what reading data raises.
    """
    vocabulary, tokenizer = model.architecture.vocabulary, model.tokenizer
    opening_T = torch.tensor(opening_ids(tokenizer, "auto", ""), dtype=torch.int64)  # need not be in the vocabulary
    refuse_unknown(opening_T, vocabulary, tokenizer, "that the tokenizer puts before a text")
    if max(tokenizer.get_vocab().values(), default=0) < vocabulary:
        return
    for field, ref in spec.texts().items():
        load_tokens(ref, tokenizer, sources, field, wanted_of(ref), vocabulary=vocabulary)
    for params in spec.evaluate:
        for prompt in getattr(params, "prompts", ()):
            ids_T = torch.tensor(tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=torch.int64)
            refuse_unknown(ids_T, vocabulary, tokenizer, "of a prompt")


def calibration(spec: CompressionSpec, model: LoadedModel, sources: Sources) -> Calibration | None:
    """The windows of the spec, or None if nothing in it looks at activations.

    Raises what reading data raises, and DegenerateCalibration where the windows hold next to no different tokens.
    """
    if spec.needs is Stat.NONE:
        return None
    assert spec.calibrate is not None  # the spec's validator saw to it
    tokens = load_tokens(
        spec.calibrate,
        model.tokenizer,
        sources,
        "/calibrate",
        wanted_of(spec.calibrate),
        vocabulary=model.architecture.vocabulary,
    )
    windows_NT = random_windows(
        tokens,
        spec.calibrate.sequence_length,
        count=spec.calibrate.samples,
        seed=spec.calibrate.seed,
        field="/calibrate",
    )
    distinct = len(windows_NT.unique())
    if distinct < min(FEWEST_TOKENS, windows_NT.numel()):
        raise DegenerateCalibration(
            f"the calibration windows of {spec.calibrate.label} hold {distinct} different tokens in "
            f"{windows_NT.numel()}: padding or a repeated word, from which no statistic can be had",
            "calibrate on text like that the model is for",
            field="/calibrate/dataset",
        )
    return Calibration(windows_NT, spec.calibrate.label, tokens.report)
