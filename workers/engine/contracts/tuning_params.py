"""Parameters of every training: text, steps, learning rate, when to evaluate and when to stop. Import-light."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.params import MethodParams
from workers.engine.contracts.refs import COLUMN, DataRef, SpecModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.engine.architectures.architecture import Architecture, LinearFacts
    from workers.engine.files.safetensors_bytes import TensorFacts

Trains = Literal["train", "tune"]
"""Fields of a spec that train a model, in the order of the job."""
TRAININGS: dict[Trains, str] = {"train": "training", "tune": "tuning"}
"""Each as a noun: in messages, and as the name of its resume points and of its text's digest."""
LearningRate = Annotated[
    float, Field(gt=0, le=1, description="AdamW's, at the end of the warm-up; then as `schedule` says.")
]
DECAY_SHARE = 10
"""One tenth of the steps, as in MiniCPM (Hu et al. 2024, arXiv:2404.06395)."""
WARMUP_SHARE = 20
EVALUATIONS = 20
LEAST_SHARE = 0.001
"""Of a domain. A smaller one would be seen so rarely that nothing can be said of it."""


class DescribedModel(Protocol):
    """A model as far as it is known without its weights."""

    @property
    def tensors(self) -> Mapping[str, TensorFacts]: ...

    @property
    def parameters(self) -> int:
        """All of them; an output head that is the embedding is counted once."""

    @property
    def shares_head(self) -> bool:
        """Whether the output head is the embedding."""


class Distill(SpecModel):
    """Train on the dense model's predictions too (Hinton et al. 2015, arXiv:1503.02531)."""

    weight: float = Field(
        1.0, gt=0, le=1, description="Share of the distillation in the loss; the text's own has the rest."
    )
    temperature: float = Field(
        1.0, ge=0.01, le=100, description="Divides both models' logits; above 1 it flattens them."
    )
    top_k: int | None = Field(
        None,
        ge=1,
        description="Compare the models in the so many tokens that the dense model finds likeliest, and in what all "
        "others have together: less memory and time where the vocabulary is large. null compares all tokens.",
    )


class Dynamic(SpecModel):
    """Shares that follow the losses of the domains: dynamic batch loading (Xia et al. 2023, arXiv:2310.06694)."""

    reference: dict[Annotated[str, Field(pattern=COLUMN)], Annotated[float, Field(gt=0, le=100)]] | None = Field(
        None,
        min_length=2,
        max_length=64,
        description="Domain -> held-out loss, nats a token, above which its share grows, below which it shrinks; null "
        "takes the dense model's.",
        examples=[{"novels": 3.1, "myth": 2.9}],
    )


class Domains(SpecModel):
    """Rows of several domains, mixed in stated shares."""

    column: str = Field(pattern=COLUMN, description="Column that says which domain a row is of.")
    shares: dict[Annotated[str, Field(pattern=COLUMN)], Annotated[float, Field(gt=0)]] = Field(
        min_length=2,
        max_length=64,
        description="Domain -> its share of the windows, relative to the others. Rows of other domains are not read.",
        examples=[{"novels": 2.0, "myth": 1.0}],
    )
    dynamic: Dynamic | None = Field(
        None,
        description="After every look at the held-out windows a domain's share is multiplied by the exponential of "
        "its loss less a reference, beginning with `shares`; null leaves the shares as they are.",
    )

    @model_validator(mode="after")
    def _none_vanishes(self) -> Domains:
        total = sum(self.shares.values())
        for name, share in self.shares.items():
            if not LEAST_SHARE <= share / total <= 1:
                raise PydanticCustomError(
                    "share_too_small",
                    "{name} has a share of {share} of all windows, less than {least}: leave it out, or raise its share",
                    {"name": name, "share": f"{share / total:.2g}", "least": LEAST_SHARE},
                )
        return self

    @model_validator(mode="after")
    def _a_reference_for_each(self) -> Domains:
        reference = None if self.dynamic is None else self.dynamic.reference
        if reference is not None and reference.keys() != self.shares.keys():
            raise PydanticCustomError(
                "references_of_other_domains",
                "`reference` names {named}, and `shares` {shared}: give a loss for each, or leave `reference` out",
                {"named": ", ".join(sorted(reference)), "shared": ", ".join(sorted(self.shares))},
            )
        return self


Moments = Annotated[
    Literal["float32", "8bit"],
    Field(
        description="How AdamW keeps the two moments of each trained weight: `8bit` takes a byte each and a scale for "
        "256 (Dettmers et al. 2021, arXiv:2110.02861), a quarter of the memory; updates take longer, on a CPU by far."
    ),
]


class WeightBytes(NamedTuple):
    """Bytes that a method keeps for each prunable weight, divided like it: masks, copies, scores."""

    always: int = 0
    """From the first step to the last."""
    passing: int = 0
    """More of them while windows go forward and back."""
    updating: int = 0
    """More of them while an update is made, when nothing is kept for a backward pass."""
    looking: int = 0
    """More of them while the held-out loss is measured."""


class TrainingParams(DataRef, MethodParams):
    """Base of the parameters of all that trains. Its text is cut into windows; the first `holdout` are never trained
    on, nor the documents that they are of."""

    domains: Domains | None = Field(
        None,
        description="Mix the domains of a text (.jsonl, .parquet, hub) in stated shares; null takes its rows in their "
        "order. Held-out windows are mixed likewise, and their loss is reported of each domain.",
    )

    steps: int = Field(
        200, ge=1, le=1_000_000, description="Updates of the weights, each on `batch` windows.", examples=[200, 1000]
    )
    tokens: int | None = Field(
        None,
        ge=8,
        le=10**12,
        description="Budget of tokens, instead of `steps`: as many steps as read at least so many.",
    )
    batch: int = Field(8, ge=1, le=4096, description="Windows per step.", examples=[8, 32])
    sequence_length: int = Field(
        256, ge=8, le=32768, description="Tokens per window; at most the model's context length.", examples=[256, 1024]
    )
    learning_rate: LearningRate
    warmup_steps: int | None = Field(
        None, ge=0, description="Steps over which the rate rises from 0; null takes a twentieth of all."
    )
    schedule: Literal["linear", "cosine", "warmup_stable_decay"] = Field(
        "linear",
        description="How the rate falls to 0 after the warm-up: linearly, as half a cosine, or, after it has stayed, "
        "linearly over the last tenth of the steps.",
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's, of everything that is trained.")
    holdout: int = Field(
        16,
        ge=1,
        le=4096,
        description="Windows kept from training, with the whole documents that they are of: the first of the text. On "
        "them the loss is measured. A text of one document gives its first windows.",
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="Steps between looks at the held-out windows; null looks twenty times."
    )
    distill: Distill | None = Field(
        default_factory=Distill,
        description="Learn from the dense model, which is then in memory too; null learns from the text alone. Take "
        "null where the text is what the model is for: what is learnt of it can cost elsewhere.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute each block's activations twice instead of keeping them: less memory, more time."
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Of the order of the windows, of dropout, of new weights.")

    @model_validator(mode="before")
    @classmethod
    def _steps_of_tokens(cls, given: Any) -> Any:
        """Steps follow from a budget of tokens. A stored spec has both, and they agree."""
        if not isinstance(given, dict) or "steps" in given:
            return given
        tokens, batch, length = (
            given.get(name, cls.model_fields[name].default) for name in ("tokens", "batch", "sequence_length")
        )
        if all(type(value) is int and value > 0 for value in (tokens, batch, length)):
            return {**given, "steps": -(-tokens // (batch * length))}
        return given  # refused field by field, if something is wrong

    @model_validator(mode="after")
    def _budget_and_steps_agree(self) -> TrainingParams:
        step = self.batch * self.sequence_length
        if self.tokens is not None and self.steps != -(-self.tokens // step):
            raise PydanticCustomError(
                "tokens_and_steps",
                "{tokens} tokens are {needed} steps of {batch} x {length}, and `steps` says {steps}: leave one out",
                {
                    "tokens": self.tokens,
                    "needed": -(-self.tokens // step),
                    "batch": self.batch,
                    "length": self.sequence_length,
                    "steps": self.steps,
                },
            )
        return self

    @model_validator(mode="after")
    def _warm_before_the_end(self) -> TrainingParams:
        if self.warmup_steps is not None and self.warmup_steps >= self.steps:
            raise PydanticCustomError(
                "warmup_too_long",
                "{warmup} warm-up steps of {steps} leave none at the full rate: lower `warmup_steps`",
                {"warmup": self.warmup_steps, "steps": self.steps},
            )
        return self

    @model_validator(mode="after")
    def _domains_are_held_out(self) -> TrainingParams:
        if self.domains is not None and self.holdout < len(self.domains.shares):
            raise PydanticCustomError(
                "domains_not_held_out",
                "{holdout} held-out windows cannot be of {count} domains: raise `holdout`",
                {"holdout": self.holdout, "count": len(self.domains.shares)},
            )
        return self

    @property
    def window_tokens(self) -> int:
        return self.sequence_length

    @property
    def least_windows(self) -> int:
        return self.holdout + self.batch

    @property
    def read_tokens(self) -> int:
        """Most tokens that the model reads in a window while it trains."""
        return self.sequence_length

    @property
    def warmup(self) -> int:
        """Steps of the warm-up."""
        return self.steps // WARMUP_SHARE if self.warmup_steps is None else self.warmup_steps

    @property
    def decay(self) -> int:
        """Steps of the decay of `warmup_stable_decay`."""
        return min(-(-self.steps // DECAY_SHARE), self.steps - self.warmup)

    @property
    def look_every(self) -> int:
        """Steps between evaluations of the held-out windows."""
        return self.evaluate_every or -(-self.steps // EVALUATIONS)

    @property
    def reads_dense_losses(self) -> bool:
        """Whether the dense model is loaded beside the one in training for the losses that shares of domains follow."""
        dynamic = None if self.domains is None else self.domains.dynamic
        return dynamic is not None and dynamic.reference is None and self.distill is None

    @property
    def passes(self) -> float:
        """Forward passes through the model that a window of a step costs; a backward pass counts as two."""
        return 4 if self.distill else 3

    @property
    def weight_bytes(self) -> WeightBytes:
        """Bytes that the method keeps of every prunable weight, beside the parameter, its gradient, AdamW's moments and
        the best state."""
        return WeightBytes()

    @property
    def trains_own(self) -> bool:
        """Whether what is trained are parameters of the model itself, held in float32 then, and not added to it."""
        return self.trains_all

    def masked_weights(self, architecture: Architecture) -> int:
        """Number of prunable weights that are trained as they are, of which a mask is kept where there are zeros among
        them, a byte for each."""
        return 0

    @property
    def eight_bit(self) -> bool:
        """Whether AdamW's moments take 8 bits each; methods that offer it have a field of type `Moments`."""
        return False

    @property
    def trains_all(self) -> bool:
        """Whether all parameters of the model are trained, and no others, so that it is held in float32; else what is
        frozen is held in the compute type."""
        return False

    @property
    def divides(self) -> bool:
        """Whether the model is divided over the devices of a job while it trains; else the first trains alone."""
        return True

    def whole_numbers(self, architecture: Architecture) -> int:
        """Float32 numbers that every device keeps, whole where the model is divided."""
        return 0

    @property
    def base_bits(self) -> float | None:
        """Bits a weight of the linear layers takes while it is not trained; None in the compute type."""
        return None

    @property
    def input_copies(self) -> int:
        """How often a linear layer's inputs are kept for the backward pass, beyond what the layers need anyway."""
        return 0

    @property
    def adds_to_experts(self) -> bool:
        """Whether experts are computed twice, with updates that are added to the weights of all of a block."""
        return False

    def blocks_back(self, source: DescribedModel, architecture: Architecture) -> int:
        """Number of blocks, counted from the last, that the gradient passes through; their activations are kept."""
        return architecture.blocks

    def warnings(self, source: DescribedModel) -> list[str]:
        """Sentences about effects of this method on this model that a user might not expect."""
        return []

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        """How many float32 parameters are trained on this model."""
        raise NotImplementedError


class TuneMethodParams(TrainingParams):
    """Base of the tuners' parameters."""

    holdout: int = Field(
        16,
        ge=1,
        le=4096,
        description="Windows kept from training, with the whole documents that they are of: the first of the text. On "
        "them the best state is chosen: it is what ships. A text of one document gives its first windows.",
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after so many looks in a row without a lower held-out loss; null never does."
    )

    @property
    def new_blocks_only(self) -> bool:
        """Whether nothing but blocks that the spec adds is trained."""
        return False

    @property
    def multiplies(self) -> bool:
        """Whether weights are only multiplied, so that zeros of added blocks never change either."""
        return False

    @property
    def block_by_block(self) -> bool:
        """Whether the method puts modules of its own into each block, and takes `blocks` (`contracts/protocols.py`)."""
        return False

    @property
    def begins_unchanged(self) -> bool:
        """Whether what a method puts into blocks changes nothing before the first step: the model's own loss can be
        measured with it."""
        return False

    def trains_tensor(self, architecture: Architecture, name: str, *, tied: bool) -> bool:
        """Whether a parameter of the model itself is trained, by its name in the files; it is read in float32 then.
        `tied`: whether the output head is the embedding, whose name it has."""
        return False

    def check(self, layers: Sequence[LinearFacts]) -> None:
        """Raise InvalidSpec, naming the field, if a model with these linear layers cannot be tuned like this."""

    def check_held(self, architecture: Architecture) -> None:
        """As `check`, by the matrices in which transformers' modules hold the layers. Raises UnsupportedModel."""

    def check_multiples(self, channels: int) -> None:
        """As `check`, where the widths of MLPs are not known yet, except that they are multiples of `channels`."""


class AllOrNewParams(TuneMethodParams):
    """Base of tuners that can train the blocks of a grown model that were added, and leave the others."""

    train: Literal["all", "new_blocks"] = Field(
        "all",
        description="Of a grown model, train everything, or the added blocks alone (`new_blocks`), as LESA's and "
        "LLaMA-Pro's authors do.",
    )

    @property
    def new_blocks_only(self) -> bool:
        return self.train == "new_blocks"

    def trains(self, architecture: Architecture, name: str) -> bool:
        """Whether a module or tensor of the model to be tuned is trained, if the method trains any such."""
        return not self.new_blocks_only or architecture.is_new(name)
