"""The compression spec: one field per stage, in pipeline order. Frozen, strict, every field described.

The unions below are computed from the registry, so a method file dropped into `methods/<stage>/` is accepted here,
shown by OpenAPI and checked by the same rules without another edit. Import-light.
"""

from __future__ import annotations

import hashlib
import json
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from workers.engine.contracts.growing import GrowMethodParams
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import (
    EDITS,
    EditMethodParams,
    Group,
    LossMethodParams,
    MethodParams,
    PruneMethodParams,
    Stage,
    Stat,
    Unit,
)
from workers.engine.contracts.refs import DataRef, ModelRef, SpecModel
from workers.engine.contracts.train_params import TrainMethodParams
from workers.engine.contracts.tuning_params import TrainingParams, Trains, TuneMethodParams
from workers.engine.gates import Gate, measured_names
from workers.engine.registry import Method, compared, defaults, method_of, methods

if TYPE_CHECKING:
    from workers.engine.contracts.removes import Removes

AFTER_TRAINING = "magnitude"
"""The score of weights that a training has decided on: those that go are zero."""


class Calibrate(DataRef):
    """Text the model reads while statistics of its activations are collected."""

    samples: int = Field(128, ge=1, le=4096, description="How many windows of tokens.", examples=[32, 128])
    sequence_length: int = Field(
        2048,
        ge=8,
        le=32768,
        description="Tokens per window; at most the model's context length.",
        examples=[512, 2048],
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the windows' random positions.")
    refresh: Literal["block", "projection"] | None = Field(
        None,
        description="How soon layers see what was pruned before them: `block` (the published scripts) looks at all "
        "inputs of a block while it is dense; `projection` prunes q, k and v before o sees their output, and so on, in "
        "one pass instead of two, holding more activations. null takes `projection` for methods that make up for what "
        "was pruned before (`fista`), `block` for the others.",
    )

    all_experts: bool = Field(
        False,
        description="Whether each expert of a mixture reads every token while statistics of its inputs are taken, and "
        "not only those that its router sends to it. Costs as many times the work as there are experts to each chosen.",
    )

    @property
    def window_tokens(self) -> int:
        return self.sequence_length

    @property
    def least_windows(self) -> int:
        return self.samples


class Compute(SpecModel):
    """Where and in which precision the work runs."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` takes a GPU where there is one.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision of forward passes, in calibration and in evaluation. Statistics are float32."
    )
    memory_budget: int | None = Field(
        None,
        ge=2**28,
        description="Bytes of memory (of each GPU, or of each process where there is none) that the job plans with. "
        "Text goes through in smaller batches and models are evaluated block by block to stay within; the report warns "
        "where it took more. null asks the device.",
        examples=[4 * 2**30],
    )
    devices: int = Field(
        1,
        ge=1,
        le=64,
        description="How many GPUs of one host the job takes, or processes where there is none. Each reads its share "
        "of the calibration and evaluation windows and solves its share of the layers; statistics are summed over all "
        "of them, so numbers agree with those of one device up to rounding, not bit by bit.",
    )


class Package(SpecModel):
    """How the result is written."""

    dtype: Literal["source", "float32", "bfloat16", "float16"] = Field(
        "source", description="Type of the stored weights; `source` keeps the dense model's."
    )
    shard_bytes: int = Field(
        4 * 2**30,
        ge=2**20,
        le=50 * 2**30,
        description="Largest safetensors file, in bytes; one block is not split, nor what is outside of blocks.",
    )


def _union(stage: Stage) -> Any:
    """The discriminated union of one stage's parameter classes."""
    params = [m.params for m in methods(stage)]
    if len(params) == 1:
        return params[0]
    return Annotated[reduce(or_, params), Field(discriminator="method")]


_DEFAULT = next(method for method in methods("allocate") if method.default)

if TYPE_CHECKING:
    ScoreParams = MethodParams
    AllocateParams = MethodParams
    RefineParams = MethodParams
    EvaluateParams = MethodParams
    PruneParams = PruneMethodParams
    GrowParams = GrowMethodParams
    TrainParams = TrainMethodParams
    TuneParams = TuneMethodParams
else:
    ScoreParams, AllocateParams = _union("score"), _union("allocate")
    PruneParams, RefineParams, EvaluateParams = _union("prune"), _union("refine"), _union("evaluate")
    GrowParams, TrainParams, TuneParams = _union("grow"), _union("train"), _union("tune")


class CompressionSpec(SpecModel):
    """A model and the settings of every stage."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"id": "bookworm-7m"},
                    "calibrate": {"dataset": "calibration.txt", "samples": 64, "sequence_length": 512},
                    "score": {"method": "wanda"},
                    "prune": {"method": "mask", "sparsity": 0.5},
                    "evaluate": [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 512}],
                }
            ]
        }
    )

    model: ModelRef
    calibrate: Calibrate | None = Field(
        None, description="Calibration text. Required by methods that look at activations, unused by the others."
    )
    score: ScoreParams | None = Field(
        None,
        description="How important each weight, head, channel, hidden dimension or block is. Required by `mask`, "
        "`structured`, `hidden`, `depth` and `shape`, unless there is `train`; `mrp` and `fista` start from it if it "
        "is given; `sparsegpt` chooses for itself.",
    )
    allocate: AllocateParams = Field(
        default_factory=lambda: defaults("allocate", _DEFAULT.name),
        description="How sparsity is spread over layers.",
        json_schema_extra={"default": {"method": _DEFAULT.name}},
    )
    train: TrainParams | None = Field(
        None,
        description="Decides what goes while the dense model is trained on text: `prune` says of what kind and how "
        "much, and cuts it out of the trained model.",
    )
    prune: PruneParams | None = Field(
        None, description="What is removed, and how much. Required, unless the spec has `grow`."
    )
    grow: GrowParams | None = Field(
        None,
        description="Instead of `prune`: how many decoder blocks are added, and what they are made of. No text is read "
        "for it; `tune` trains the grown model.",
    )
    refine: RefineParams | None = Field(
        None, description="Moves zeros to better places after pruning. Only for pruners that change no other weight."
    )
    tune: TuneParams | None = Field(
        None,
        description="Trains the pruned or grown model on text for a while, so that it makes up for what was changed.",
    )
    evaluate: list[EvaluateParams] = Field(
        default_factory=list,
        json_schema_extra={"default": []},
        max_length=32,
        description="Measurements, each made on the dense and on the pruned model in the same run.",
    )
    gates: list[Gate] = Field(
        default_factory=list,
        json_schema_extra={"default": []},
        max_length=32,
        description="What the result must keep to be shipped. The job succeeds either way; the report has the verdict.",
    )
    package: Package = Field(default_factory=Package)
    compute: Compute = Field(default_factory=Compute)
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of every random choice outside calibration.")

    @field_validator("gates")
    @classmethod
    def _gates_on_what_is_measured(cls, gates: list[Gate], info: ValidationInfo) -> list[Gate]:
        if "evaluate" not in info.data:  # refused already
            return gates
        names = measured_names(info.data["evaluate"])
        errors = [
            InitErrorDetails(
                type=PydanticCustomError(
                    "not_measured",
                    "no evaluation of this spec measures this: "
                    + ("choose among {names}, or add it to `evaluate`" if names else "add one to `evaluate`"),
                    {"names": ", ".join(name + "…" * name.endswith("/") for name in names)},
                ),
                loc=(index, "metric"),
                input=gate.metric,
            )
            for index, gate in enumerate(gates)
            if not any(gate.metric == name or (name.endswith("/") and gate.metric.startswith(name)) for name in names)
        ]
        if errors:
            raise ValidationError.from_exception_data("gates", errors)
        return gates

    def texts(self) -> dict[str, DataRef]:
        """JSON pointer -> text, for every text that the spec names."""
        parts: dict[str, object] = {"/calibrate": self.calibrate, "/train": self.train, "/tune": self.tune}
        parts |= {f"/evaluate/{index}": params for index, params in enumerate(self.evaluate)}
        return {pointer: part for pointer, part in parts.items() if isinstance(part, DataRef)}

    @property
    def trainings(self) -> dict[Trains, TrainingParams]:
        """Field -> parameters, of the trainings that the spec asks for."""
        found: dict[Trains, TrainingParams | None] = {"train": self.train, "tune": self.tune}
        return {field: params for field, params in found.items() if params is not None}

    @property
    def trained_allocation(self) -> bool:
        """Whether the training decides on the sparsity of each layer too: it spreads it, or there is none to spread."""
        spreads = Stat.UNIT_SCORES in method_of("allocate", self.allocate).needs or not self.removes.spread
        return self.train is not None and spreads

    def as_trained(self) -> CompressionSpec:
        """The spec of what follows its training, which has decided what goes."""
        score = None if self.removes.scored_first else defaults("score", AFTER_TRAINING)
        prune = needed(self.prune, "/prune").as_trained
        return self.model_copy(update={"train": None, "score": score, "prune": prune})

    def with_count(self, count: int) -> CompressionSpec:
        """The spec with this number of units in place of the size that the result is to fit into."""
        return self.model_copy(update={self.editor.stage: self.edit.fitted(count)})

    @property
    def edit(self) -> EditMethodParams:
        """The parameters of the method that edits the model: a pruner's or a grower's."""
        return needed(self.prune or self.grow, "/prune or /grow")

    @property
    def editor(self) -> Method:
        """The method that edits the model."""
        return method_of("prune" if self.prune else "grow", self.edit)

    @property
    def removes(self) -> Removes:
        """The kind of unit that goes, or is added."""
        return needed(self.editor.removes, "an editor's kind of unit")

    @property
    def scores_first(self) -> bool:
        """Whether units are scored on the dense model before anything goes, or is trained."""
        return self.score is not None and self.removes.scored_first

    @property
    def walk_needs(self) -> Stat:
        """Statistics of a layer's inputs that are collected right before it is pruned."""
        if self.train is not None:
            return Stat.NONE
        needs = self.editor.needs & ~self.edit.waives
        if self.score is not None and not self.removes.scored_first:
            needs |= method_of("score", self.score).needs & ~self.score.waives
        if self.refine is not None:
            needs |= method_of("refine", self.refine).needs
        return needs

    @property
    def needs(self) -> Stat:
        """Everything that is measured on calibration text."""
        after = Stat.ROUTING if self.edit.skips or self.edit.merges else Stat.NONE
        return (self.walk_needs | self.allocate_needs | self.unit_needs | after) & ~Stat.UNIT_SCORES

    @property
    def unit_needs(self) -> Stat:
        """Measurements of the dense model that unit scores need."""
        if self.score is None or not self.removes.scored_first:
            return Stat.NONE
        return method_of("score", self.score).needs & ~self.score.waives

    @property
    def allocate_needs(self) -> Stat:
        """Measurements of the dense model that the allocator, and those that it compares, need."""
        needs = Stat.NONE
        for params in (self.allocate, *compared(self.allocate)):
            needs |= method_of("allocate", params).needs & ~params.waives
        if self.removes.tried and (Stat.LOSS in needs or self._bounds_a_ratio):
            needs |= self._trial_needs
        return needs

    @property
    def group(self) -> Group:
        """Where weights are compared with one another."""
        if self.train is not None:
            return method_of("score", defaults("score", AFTER_TRAINING)).group
        return method_of("score", self.score).group if self.score else self.editor.group

    @property
    def refresh(self) -> Literal["block", "projection"]:
        """Whether layers are calibrated on inputs that follow the pruned blocks or the pruned layers before them."""
        if self.calibrate and self.calibrate.refresh:
            return self.calibrate.refresh
        return "projection" if Stat.DENSE_INPUTS in self.walk_needs else "block"

    @property
    def _trial_needs(self) -> Stat:
        """Statistics that trial prunings need: those of the solver, or those of the score."""
        if self.editor.updates_weights:
            return Stat.GRAM
        return method_of("score", self.score).needs & ~self.score.waives if self.score else Stat.NONE

    @model_validator(mode="after")
    def _one_edit(self) -> CompressionSpec:
        given = [stage for stage in EDITS if getattr(self, stage) is not None]
        if not given:
            raise _at("prune", "prune_or_grow", "a spec has `prune`, what is removed, or `grow`, what is added", None)
        if len(given) > 1:
            raise _at(
                "grow",
                "prune_or_grow",
                "a spec has `prune` or `grow`: leave one out, and give the result to another job as its model",
                self.grow,
            )
        return self

    @model_validator(mode="after")
    def _a_training_that_fits(self) -> CompressionSpec:
        if self.train is None:
            return self
        trainer, pruner = method_of("train", self.train), self.editor
        if self.prune is None:
            raise _at("train", "nothing_to_prune", "`train` prunes while it trains, and `grow` adds: use `tune`", None)
        units = self.edit.kinds or pruner.units
        if not {*units} <= {*trainer.units}:
            fitting = [method.name for method in methods("train") if {*units} <= {*method.units}]
            instead = f"{', '.join(fitting)} would fit" if fitting else "leave `train` out"
            raise _at(
                "train",
                "training_of_other_units",
                f"prune `{pruner.name}` removes {_plural(units)}, and train `{trainer.name}` decides on "
                f"{_plural(trainer.units)}: {instead}",
                self.train,
            )
        if pruner.updates_weights and not self.removes.scored_first:
            message = f"prune `{pruner.name}` changes weights after the training has decided: use `mask`"
            raise _at("prune", "update_after_training", message, self.prune)
        if self.score is not None:
            message = f"train `{trainer.name}` decides what goes: leave `score` out"
            raise _at("score", "score_unused", message, self.score)
        if self.refine is not None:
            message = "the zeros are where the training left them: leave `refine` out"
            raise _at("refine", "nothing_to_refine", message, self.refine)
        if self.edit.bound is not None:
            raise _at(
                "prune",
                "bound_of_training",
                f"{self.edit.bound.name} is foreseen for pruning without training: give a sparsity, or another limit",
                self.prune,
            )
        allocator = method_of("allocate", self.allocate)
        ranks = Stat.UNIT_SCORES in allocator.needs
        if Stat.LOSS in allocator.needs or (self.removes.scored_first and not (allocator.even or ranks)):
            others = ["uniform", "ranking"] if self.removes.scored_first else ["uniform", "owl"]
            message = f"allocate `{allocator.name}` measures what pruning without training costs: use "
            message += " or ".join(f"`{name}`" for name in others)
            raise _at("allocate", "allocation_of_training", message, self.allocate)
        if ranks and self.edit.target is None:
            raise _at(
                "allocate",
                "free_widths_to_a_size",
                "which widths keep the size is known of blocks that are alike: use `uniform`, or give `sparsity`",
                self.allocate,
            )
        return self

    @model_validator(mode="after")
    def _a_score_where_needed(self) -> CompressionSpec:
        pruner = self.editor
        if self.score is not None and pruner.scores == "unused":
            message = f"{pruner.stage} `{pruner.name}` uses no scores: leave `score` out"
            raise _at("score", "score_unused", message, self.score)
        units = self.edit.kinds or pruner.units
        fitting = ", ".join(scorer.name for scorer in methods("score") if {*units} <= {*scorer.units})
        if self.score is not None and not {*units} <= {*method_of("score", self.score).units}:
            scored = _plural(method_of("score", self.score).units)
            raise _at(
                "score",
                "score_of_other_units",
                f"prune `{pruner.name}` removes {_plural(units)}, and score `{self.score.method}` is about {scored}: "
                f"{fitting} would fit",
                self.score,
            )
        if self.score is None and pruner.scores == "required" and self.train is None:
            message = f'prune `{pruner.name}` needs `score`, {{"method": …}}: {fitting} would fit'
            raise _at("score", "score_required", message, None)
        return self

    @model_validator(mode="after")
    def _an_allocation_that_fits(self) -> CompressionSpec:
        allocator = method_of("allocate", self.allocate)
        if not self.removes.spread and not allocator.even:
            raise _at(
                "allocate",
                "nothing_to_allocate",
                f"{self.editor.stage} `{self.editor.name}` has {self.removes.not_spread}: leave `allocate` out",
                self.allocate,
            )
        if not self.removes.tried and Stat.LOSS in allocator.needs:
            raise _at(
                "allocate",
                "trials_of_weights",
                f"allocate `{allocator.name}` tries out prunings of single weights: use `uniform`, `ranking`, or one "
                "that measures blocks, such as `owl`",
                self.allocate,
            )
        if self.edit.kept_of is not None and allocator.unstructured_only:
            pattern = ":".join(map(str, self.edit.kept_of))
            raise _at(
                "allocate",
                "unstructured_only",
                f"allocate `{allocator.name}` tries out unstructured sparsity, and what it finds need not hold for "
                f"{pattern}: use `uniform`, or leave `pattern` out",
                self.allocate,
            )
        if not self.removes.scored_first and Stat.UNIT_SCORES in allocator.needs:
            message = f"allocate `{allocator.name}` ranks heads and channels: use prune `structured`"
            raise _at("allocate", "no_units", message, self.allocate)
        return self

    @model_validator(mode="after")
    def _refine_moves_only_zeros(self) -> CompressionSpec:
        pruner = self.editor
        if self.refine is not None and not self.removes.leaves_zeros:
            raise _at(
                "refine",
                "nothing_to_refine",
                f"{pruner.stage} `{pruner.name}` leaves no zeros to move: leave `refine` out",
                self.refine,
            )
        if self.refine is not None and pruner.updates_weights:
            raise _at(
                "refine",
                "refine_after_update",
                f"prune `{pruner.name}` changes the weights that stay, so its zeros cannot be moved: leave `refine` "
                "out",
                self.refine,
            )
        return self

    @model_validator(mode="after")
    def _new_blocks_where_some_are_added(self) -> CompressionSpec:
        if self.tune is not None and self.tune.new_blocks_only and not self.removes.adds:
            raise _at(
                "tune",
                "no_new_blocks",
                f"{self.editor.stage} `{self.editor.name}` adds no blocks: `train` is `all`",
                self.tune,
            )
        if self.tune is not None and self.tune.multiplies and self.removes.adds:
            raise _at(
                "tune",
                "nothing_to_multiply",
                f"`{self.tune.method}` multiplies weights, and zeros that {self.editor.stage} `{self.editor.name}` may "
                "begin with would stay: tune with `full` or `lora`",
                self.tune,
            )
        return self

    @model_validator(mode="after")
    def _calibration_where_needed(self) -> CompressionSpec:
        if self.needs is not Stat.NONE and self.calibrate is None:
            stages: tuple[tuple[Stage, MethodParams | None], ...] = (
                ("score", self.score),
                ("allocate", self.allocate),
                (self.editor.stage, self.edit),
                ("refine", self.refine),
            )
            named = [
                f"{stage} `{params.method}`"
                for stage, params in stages
                if params and method_of(stage, params).needs & ~params.waives & ~Stat.UNIT_SCORES
            ]
            if self.edit.skips:
                named.append(f"`skip` of prune `{self.edit.method}`")
            if self.edit.merges:
                named.append(f"`merge` of prune `{self.edit.method}`")
            looking = " and ".join(named) or "prune `perplexity_ratio`"
            message = f"{looking} looks at activations: add `calibrate` with a `dataset`"
            raise _at("calibrate", "calibration_required", message, None)
        return self

    @model_validator(mode="after")
    def _windows_for_every_part(self) -> CompressionSpec:
        if self.calibrate is None:
            return self
        if self.calibrate.samples < self.compute.devices:
            raise _at(
                "calibrate.samples",
                "fewer_samples_than_devices",
                f"each of {self.compute.devices} devices reads windows of its own: `calibrate.samples` must be at "
                f"least as many, or `compute.devices` at most {self.calibrate.samples}",
                self.calibrate.samples,
            )
        if self.score is not None and self.calibrate.samples < self.score.splits:
            raise _at(
                "calibrate.samples",
                "too_few_samples",
                f"score `{self.score.method}` compares {self.score.splits} parts of the calibration text: "
                "`calibrate.samples` must be at least as many",
                self.calibrate.samples,
            )
        return self

    @model_validator(mode="after")
    def _as_many_windows_on_every_device(self) -> CompressionSpec:
        for stage, training in self.trainings.items():
            if training.divides and training.batch % self.compute.devices:
                devices = self.compute.devices
                raise _at(
                    f"{stage}.batch",
                    "batch_not_divisible",
                    f"each of {devices} devices trains on as many windows of a step, and {training.batch} cannot be "
                    f"divided so: take a multiple of {devices} for `{stage}.batch`",
                    training.batch,
                )
        return self

    @model_validator(mode="after")
    def _a_ratio_of_something_measured(self) -> CompressionSpec:
        if self._bounds_a_ratio and self.ratio_text is None:
            message = "`perplexity_ratio` bounds what the first `perplexity` evaluation measures: add one to `evaluate`"
            raise _at("evaluate", "perplexity_required", message, None)
        return self

    @property
    def ratio_text(self) -> LossMethodParams | None:
        """The evaluation that the spec's perplexity ratio bounds, if it has one: the first of the loss on a text."""
        if not self._bounds_a_ratio:
            return None
        return next((params for params in self.evaluate if isinstance(params, LossMethodParams)), None)

    @property
    def _bounds_a_ratio(self) -> bool:
        return self.edit.bound is not None and self.edit.bound.name == "perplexity_ratio"

    @model_validator(mode="after")
    def _measurements_are_distinct(self) -> CompressionSpec:
        seen: set[str] = set()
        for number, params in enumerate(self.evaluate):
            key = params.model_dump_json()
            if key in seen:
                message = f"the same `{params.method}` measurement is asked for twice: leave this one out"
                raise _at(f"evaluate.{number}", "duplicate_evaluation", message, params)
            seen.add(key)
        return self

    def canonical(self) -> bytes:
        """The spec with every default filled in and sorted keys, as UTF-8 JSON. `digest` hashes these bytes."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    def digest(self) -> str:
        """`sha256:<hex>` of the canonical spec."""
        return "sha256:" + hashlib.sha256(self.canonical()).hexdigest()


def _at(field: str, code: str, message: str, given: object) -> ValidationError:
    """The error of one field, with dots between its names, that does not go with another."""
    loc = tuple(int(part) if part.isdigit() else part for part in field.split("."))
    mistake = InitErrorDetails(type=PydanticCustomError(code, message), loc=loc, input=given)
    return ValidationError.from_exception_data("spec", [mistake])


def _plural(units: tuple[Unit, ...]) -> str:
    said = {
        unit: plural
        for method in methods("prune")
        if method.removes is not None
        for unit, plural in zip(method.removes.units, method.removes.plurals, strict=True)
    }
    names = [said.get(unit, f"{unit}s") for unit in units]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
