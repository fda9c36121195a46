"""Continuations: texts that both models generate from the same prompts, and the share of repeated n-grams.

A model that has lost too much repeats itself before other faults are visible in its text. Repetition is measured as in
Welleck et al. 2020 (arXiv:1908.04319, seq-rep-n): the share of n-grams that were there before.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from workers.engine.contracts.facts import Measurement
from workers.engine.contracts.params import MethodParams
from workers.engine.registry import evaluator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.engine.contracts.evaluation import EvaluationContext

GRAM = 4
"""Tokens that count as a repetition together; the paper's."""


class ContinuationsParams(MethodParams):
    """Texts that the models generate from given prompts."""

    method: Literal["continuations"] = Field(
        "continuations", description="Greedy continuations of both models in the report, and how much they repeat."
    )
    prompts: tuple[Annotated[str, Field(min_length=1, max_length=4000)], ...] = Field(
        strict=False,  # JSON has lists
        min_length=1,
        max_length=16,
        description="Texts to go on from, given to the models as they are, without a chat template.",
        examples=[["It was a dark night, and"]],
    )
    new_tokens: int = Field(48, ge=GRAM + 1, le=1024, description="Tokens to write; fewer where the model ends first.")

    @property
    def own_texts(self) -> dict[str, tuple[str, ...]]:
        return {"prompts": self.prompts}

    @property
    def measures(self) -> tuple[str, ...]:
        return ("continuations/repetition",)


@evaluator(ContinuationsParams, paper="arXiv:1908.04319")
def evaluate(context: EvaluationContext, params: ContinuationsParams) -> list[Measurement]:
    """`continuations/repetition`, in [0, 1]: the mean over prompts of the share of repeated 4-grams.

    Raises SequenceTooLong if a prompt and the new tokens exceed the context.
    """
    from workers.engine.maths.standard_errors import spread

    samples, repeated = [], []
    for prompt in params.prompts:
        written = greedy(context, prompt, params.new_tokens)
        samples.append((prompt, context.tokenizer.decode(written, skip_special_tokens=True)))
        repeated.append(repetition(written))
    sure = spread(repeated, range(len(repeated)))  # a prompt is a document of its own
    return [
        Measurement(
            name="continuations/repetition",
            value=statistics.fmean(repeated),
            unit="share of 4-grams",
            higher_is_better=None,  # some texts repeat themselves rightly, and none at all is no goal
            stderr=sure.stderr,
            note=f"{len(repeated)} prompts, {params.new_tokens} tokens, greedy",
            parts=repeated,
            documents=list(range(len(repeated))),
            degrees_of_freedom=sure.degrees_of_freedom,
            samples=samples,
        )
    ]


def greedy(context: EvaluationContext, prompt: str, new_tokens: int) -> list[int]:
    """The ids that the model itself finds likeliest, whatever its folder's generation settings."""
    import torch
    from transformers import GenerationConfig

    from workers.engine.model.windows import opening_ids
    from workers.engine.sources.texts.token_ids import token_ids

    own = token_ids(context.tokenizer, prompt)
    ids_BT = torch.tensor([[*opening_ids(context.tokenizer, "auto", context.pointer), *own]], device=context.device)
    read = ids_BT.shape[1]
    context.check_fits(read + new_tokens, "new_tokens")
    ends = context.model.generation_config.eos_token_id
    ends = None if ends == [] else ends
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=ends,
        pad_token_id=ends[0] if isinstance(ends, list) else ends,
    )
    written = context.model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=settings)
    found: list[int] = written[0, read:].tolist()
    return found


def repetition(tokens: Sequence[int]) -> float:
    """Share of the 4-grams that occurred before; 0 where there are none."""
    grams = [tuple(tokens[start : start + GRAM]) for start in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
