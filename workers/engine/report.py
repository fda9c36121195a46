"""The report of a compression: its numbers, and where each comes from. Import-light."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ReportModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class Metric(ReportModel):
    """One measurement on the dense and on the pruned model, on the same device and data; times on both in turn."""

    name: str = Field(
        description="`method/subject[/detail]`, unique in the report.", examples=["perplexity/heldout.txt"]
    )
    unit: str
    higher_is_better: bool | None = Field(description="null where neither direction is a goal.")
    dense: float
    pruned: float
    ratio: float | None = Field(description="pruned / dense; null when dense is zero. Of times from paired rounds.")
    dense_stderr: float | None = None
    pruned_stderr: float | None = None
    ratio_stderr: float | None = Field(
        None, description="Of `ratio`, sample by sample where both models were measured on the same ones."
    )
    difference_stderr: float | None = Field(None, description="Of pruned - dense, likewise.")
    degrees_of_freedom: float | None = Field(
        None,
        description="Of Student's t, by which the intervals of ratio and difference follow from their standard errors; "
        "null: the normal one.",
    )
    pruned_degrees_of_freedom: float | None = Field(None, description="The same of `pruned` alone.")
    interval_over: Literal["documents", "text"] | None = Field(
        None,
        description="What intervals are about: `documents` like those measured on, or `text`, this one alone, where "
        "all of it is one document or it is not known where documents end; without standard errors it was one sample, "
        "or the error is not known. "
        "null where nothing was sampled.",
    )
    margin: float | None = Field(
        None,
        description="A relative change within this is called the same. null where any counts that is no chance.",
    )
    resumed: bool = Field(False, description="The dense model's value was measured by an earlier attempt at the job.")
    note: str = ""


class Sample(ReportModel):
    """Texts that both models generated from one prompt."""

    prompt: str
    dense: str
    pruned: str


Reads = Literal["hidden", "head", "channel", "expert_channel", "shared_channel"]
"""Kinds of unit that a report names."""


class LayerReport(ReportModel):
    """One linear layer before and after pruning."""

    name: str
    block: int
    reads: Reads | None = Field(
        None,
        description="What its inputs belong to: the hidden vector, heads, channels of the MLP, of an expert, or of the "
        "MLP beside the experts; null for others, as of a recurrence.",
    )
    shape: tuple[int, int] = Field(
        description="(outputs, inputs) of the weight after pruning; (0, 0) where its block was dropped."
    )
    parameters: int = Field(description="Of the dense layer.")
    zeros: int = Field(description="Entries of the written weight that are exactly zero.")
    target_sparsity: float = Field(description="Fraction the allocation asked to remove.")
    metric: float | None = Field(None, description="What the allocation was decided on, where it measures layers.")
    sparsity: float = Field(description="Fraction removed: what is cut off or zero, of `parameters`.")
    tokens: int | None = Field(
        None,
        description="Calibration tokens that an expert's layer was pruned by. Below 32 they were left out, and its "
        "weights were judged by their magnitude alone. null for other layers.",
    )


class TunePoint(ReportModel):
    """Losses at one step of a training."""

    step: int = Field(description="Updates before it; 0 is the model as prepared, for `group` already quantised.")
    holdout_loss: float = Field(description="Nats a token.")
    train_loss: float | None = Field(description="Mean over the steps since the look before; null at step 0.")
    domains: dict[str, float] | None = Field(
        None, description="Held-out loss of each domain; `holdout_loss` weighs them by their shares. null: no domains."
    )
    figures: dict[str, float] | None = Field(
        None, description="Numbers that the method follows, such as the share that is gone. null where it has none."
    )


class TrainingReport(ReportModel):
    """Figures of any training. Losses are mean negative log-likelihoods a token, in nats."""

    method: str
    steps: int = Field(description="Steps done.")
    curve: list[TunePoint] = Field(
        description="About a hundred looks at most, the first, the last and what ships among them."
    )
    tokens_per_s: float | None = Field(
        description="Trained on per second in this attempt; looks and resume points not counted. null where an earlier "
        "attempt did all steps."
    )
    trained_parameters: int
    train_windows: int = Field(description="Different windows; read again where the steps take more.")
    holdout_windows: int
    peak_memory_bytes: int = Field(description="Largest resident set of the process seen by the end of it.")
    device_peak_memory_bytes: int | None = Field(description="Largest GPU allocation meanwhile; null on CPU.")
    resumed_step: int = Field(description="Where this run began; the steps before were found durable.")


class TuneReport(TrainingReport):
    """The training of the pruned model."""

    stopped_early: bool
    best_step: int = Field(description="Whose weights ship: the lowest held-out loss.")
    holdout_loss_before: float = Field(description="Of the pruned model.")
    holdout_loss_after: float = Field(description="Of the best step, before rounding to the stored type.")


class TrainReport(TrainingReport):
    """The training in which it was decided what goes."""

    holdout_loss_before: float = Field(description="Of the dense model.")
    holdout_loss_after: float = Field(
        description="Of the model as it is pruned, after the last step and before rounding to the stored type."
    )
    difference: float = Field(
        description="Largest relative difference, over the outputs of all blocks, between the trained model without "
        "what goes and the weights that are pruned, before rounding."
    )


class ResultCheck(ReportModel):
    """One window through the result, loaded from its files, compared with a reference model. In float32."""

    against: Literal["walked model", "masked dense model", "tuned model"] = Field(
        description="The dense model with the pruned weights, block by block as pruning went through it; by its own "
        "forward pass with what was removed zero or left out; the model as it was trained."
    )
    tokens: int = Field(description="Of the window.")
    difference: float = Field(
        description="Largest relative difference of embedding, a block's outputs or logits at a position, weights as "
        "stored; 1e-4 or more fails the job."
    )
    rounding: float = Field(
        description="Largest relative difference of logits at a position that rounding weights to the stored type "
        "makes; a pruner's own solutions are counted as rounded."
    )


class TextReport(ReportModel):
    """A text as it was read. Documents are joined by an empty line; windows are cut from the stream of their tokens."""

    label: str = Field(description="Stage and data set, e.g. `calibrate/calibration.txt`.")
    opening: list[str] = Field(description="Tokens that every window begins with; empty where windows begin anywhere.")
    documents: int = Field(
        description="That something was read of. A .txt file is one; elsewhere see `document_field`."
    )
    documents_held_out: int | None = Field(
        None,
        description="Of a training: those that its held-out windows are of, and that it never trains on; null where "
        "the text has too few others, and windows of the same documents are trained on.",
    )
    tokens: int = Field(description="Read; reading stops where the windows asked for are there.")
    rows_skipped: int = Field(description="Rows without text.")
    characters_replaced: int = Field(description="Lone surrogates, read as U+FFFD.")


class StageReport(ReportModel):
    """Time and memory of one stage, all its parts added up."""

    stage: str
    elapsed_s: float
    cpu_s: float | None = Field(
        None, description="Processor seconds of all threads: what of `elapsed_s` was work, and on how many cores."
    )
    peak_memory_bytes: int = Field(description="Largest resident set of the process seen by the end of the stage.")
    device_peak_memory_bytes: int | None = Field(None, description="Largest GPU allocation in the stage; null on CPU.")


class Provenance(ReportModel):
    """Versions, digests and settings that the numbers depend on."""

    spec_digest: str
    model_id: str
    model_commit: str = Field(description="Hub commit, or `sha256:` digest of a local model's files.")
    data_digests: dict[str, str] = Field(description="Data source -> sha256 of the token ids used.")
    seed: int
    versions: dict[str, str]
    device: str
    devices: int = Field(1, description="How many of them worked on it together.")
    threads: int = Field(description="CPU threads, of each process where there are several.")
    compute_dtype: str


class Runtime(ReportModel):
    """Whether something can load the result, and whether it gets faster there."""

    runtime: str
    loads: bool
    faster: bool
    note: str


Verdict = Literal["pass", "fail", "inconclusive"]


class GateResult(ReportModel):
    """A gate of the spec, judged."""

    metric: str
    of: Literal["ratio", "difference", "pruned"]
    min: float | None
    max: float | None
    confidence: float
    value: float | None = Field(description="null where it was not measured.")
    interval: tuple[float, float] | None = Field(
        description="Holds the true value with that confidence; both ends are `value` where that is exact. null where "
        "there is no value, or one sample."
    )
    verdict: Verdict
    reason: str


class Try(ReportModel):
    """A sparsity that was found for a bound, and the value measured on the result."""

    target_sparsity: float
    predicted: float = Field(description="By the trial pruning, or by the times of single blocks.")
    measured: float = Field(description="On the result as it ships, in the same unit.")


class Bound(ReportModel):
    """A bound of the spec that can only be measured on the result, and the tries at it."""

    name: Literal["perplexity_ratio", "decode_time"]
    asked: float
    tolerance: float = Field(description="The measured value may lie above `asked` by this fraction of it.")
    tries: list[Try] = Field(description="The last one is the result; those before it broke the bound.")


class Origin(ReportModel):
    """The service's job that made the result."""

    job_id: str
    asked_by: str = Field(description="Name of the tenant whose key submitted the job.")
    attempt: int = Field(description="Which of the job's attempts came to its end, from 1.")


class NewBlock(ReportModel):
    """A decoder block that was added."""

    block: int = Field(description="Its number in the result.")
    like: int = Field(description="The dense block that it was made like, whose config entries it has.")


class Prediction(ReportModel):
    """How well a tensor of new blocks was predicted, tried on the dense blocks: of each, from the two around it."""

    tensor: str = Field(description="Path below a block.")
    error: float = Field(description="Norm of the difference relative to the norm of the tensors; zeros would have 1.")
    error_of_mean: float = Field(description="The same of the mean of the two blocks around.")


class MergedExpert(ReportModel):
    """An expert that went, averaged into one that stayed. Numbers are those of the dense model."""

    block: int
    expert: int = Field(description="That went.")
    into: int = Field(description="That stayed.")
    weight: float = Field(
        description="Its share of the average, that of the tokens which the dense model sends to all experts of the "
        "group. 0: none were sent to it, and it changes nothing."
    )


class Growth(ReportModel):
    """The blocks that were added, and how they were made."""

    blocks: list[NewBlock]
    predictions: list[Prediction] = Field(description="Empty where nothing was learnt.")


class Report(ReportModel):
    """The whole report, `report.json` beside the model."""

    version: Literal[1] = 1
    origin: Origin | None = Field(None, description="null where no service made it, and in reports of before.")
    made_at: datetime | None = Field(None, description="UTC. null in reports of before.")
    spec: dict[str, Any]
    provenance: Provenance
    parameters: int = Field(description="All parameters of the dense model, tied ones once.")
    parameters_after: int | None = Field(
        None, description="The same of the result; as many where weights became zeros. null in reports of before."
    )
    prunable_parameters: int = Field(description="Those of the linear layers in the dense model's blocks.")
    zeros: int = Field(description="Zeros in the pruned layers of the result.")
    sparsity: float = Field(description="Fraction of `prunable_parameters` removed: cut off, or zero.")
    target_sparsity: float | None = Field(None, description="What was asked for, or found for a perplexity ratio.")
    bound: Bound | None = Field(
        None, description="Where `perplexity_ratio` or `decode_time` was asked for: what was foreseen and measured."
    )
    allocation_trials: dict[str, float] = Field(
        default_factory=dict,
        description="Where allocators were compared: the loss of each one's trial pruning on calibration text, in nats "
        "a token. The least was taken, the first of equals.",
    )
    importance_lost: float | None = Field(
        None,
        description="Where all blocks lost as many heads and channels: the share of all units' scores that those held "
        "which went; scores in multiples of their kind's mean, weighed by parameters.",
    )
    importance_lost_by_ranking: float | None = Field(
        None, description="The same, had `ranking` spread the same sparsity into blocks of different widths."
    )
    refresh: Literal["block", "projection"] | None = Field(
        None, description="How soon layers saw what was pruned before them; null where no inputs were looked at."
    )
    layers: list[LayerReport]
    growth: Growth | None = Field(None, description="null where the spec adds no blocks.")
    train: TrainReport | None = Field(None, description="null where the spec does not prune while training.")
    tune: TuneReport | None = Field(None, description="null where the spec tunes nothing.")
    merges: list[MergedExpert] = Field(
        default_factory=list, description="Which expert went into which, where experts are merged; else empty."
    )
    betas: dict[str, float] = Field(
        default_factory=dict,
        description="Where experts are skipped: block -> the share of the largest weight below which one is.",
    )
    checks: list[ResultCheck] = Field(
        default_factory=list, description="That the result computes what it was made from. Empty in reports of before."
    )
    texts: list[TextReport] = Field(default_factory=list, description="Every text of the spec, as it was read.")
    metrics: list[Metric]
    samples: list[Sample] = Field(default_factory=list, description="What both models wrote, where asked for.")
    gates: list[GateResult] = Field(default_factory=list, description="The spec's gates, in its order.")
    verdict: Verdict | None = Field(
        None,
        description="`fail` if a gate failed, else `inconclusive` if one is, else `pass`; null without gates.",
    )
    stages: list[StageReport]
    runtimes: list[Runtime]
    warnings: list[str]
    resumed_blocks: int = Field(0, description="Blocks found durable from an earlier attempt and not done again.")
    resumed_allocation: bool = Field(
        False,
        description="How much each layer loses was decided, and measured where that takes it, by such an attempt.",
    )

    def metric(self, name: str) -> Metric:
        """The metric called `name`; KeyError lists the ones there are."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(f"{name}: not in {[m.name for m in self.metrics]}")


class FileEntry(ReportModel):
    path: str
    bytes: int
    sha256: str


class Manifest(ReportModel):
    """`manifest.json`: every file of the result with its digest, and where it came from."""

    version: Literal[1] = 1
    spec: dict[str, Any]
    provenance: Provenance
    stages: list[StageReport]
    files: list[FileEntry]


class PlannedLayer(ReportModel):
    name: str
    block: int
    shape: tuple[int, int]
    target_sparsity: float | None = Field(description="null where the job measures first, then spreads the sparsity.")


class PlannedText(ReportModel):
    """How much the job reads of a text at least, and about how much there is."""

    field: str = Field(description="JSON pointer of the text in the spec.", examples=["/calibrate"])
    dataset: str
    windows: int = Field(description="Fewer fail the job.")
    window_tokens: int
    tokens: int | None = Field(
        description="About how many of the model the text has, by a sample of it and the model's vocabulary; null "
        "where that is not known, as of texts on the hub and of .zst and .parquet files."
    )
    suggested: dict[str, int] = Field(
        description="Where these are too few: JSON pointer -> a value that they suffice for, each alone.",
        examples=[{"/calibrate/samples": 64}],
    )


class Plan(ReportModel):
    """The outcome of a spec, predicted from the model's config and safetensors headers. Nothing is run."""

    spec_digest: str
    model_id: str
    model_commit: str
    architecture: str
    blocks: int
    parameters: int
    blocks_after: int | None = Field(description="Of the result; null with parameters_after.")
    parameters_after: int | None = Field(
        description="Of the result; null where widths follow from what the job measures, then within a channel a block "
        "of the target's share."
    )
    prunable_parameters: int
    zeros_after: int | None = Field(
        description="Zeros the pruned layers will hold; null where the job finds the sparsity."
    )
    bytes_before: int = Field(description="Weight bytes of the dense model.")
    bytes_after: int | None = Field(
        description="Weight bytes of the result as stored. Zeros take as much room. null with parameters_after."
    )
    layers: list[PlannedLayer]
    devices: int = Field(description="That the job takes together, with a process on each.")
    peak_memory_bytes: int = Field(description="Predicted peak resident memory of each process. An estimate.")
    mapped_memory_bytes: int = Field(
        description="Of peak_memory_bytes, pages of mapped weight files, which the system takes back where memory is "
        "short: the job does without them."
    )
    least_memory_bytes: int = Field(
        description="Memory that a worker must have for each process. Without a memory_budget it is less than the "
        "peak: where a worker has no more, batches are halved, and models are measured block by block."
    )
    elapsed_s: float = Field(description="Predicted run time of one process on two CPU cores. An order of magnitude.")
    runtimes: list[Runtime]
    texts: list[PlannedText] = Field(description="Those that are cut into windows.")
    warnings: list[str]
