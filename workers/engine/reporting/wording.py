"""Sentences and formatted numbers of a report, shared by page, model card and command line. Import-light."""

from __future__ import annotations

import math
from datetime import UTC
from typing import TYPE_CHECKING, Any, Literal

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import EDITS, Stage
from workers.engine.maths.standard_errors import CONFIDENCE, SURE, half_width
from workers.engine.registry import Method, discover
from workers.engine.removals.base import removal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.engine.removals.base import Removal
    from workers.engine.report import (
        Bound,
        GateResult,
        Growth,
        Metric,
        Report,
        TextReport,
        TrainingReport,
        TrainReport,
        TunePoint,
        TuneReport,
    )

Verdict = Literal["better", "worse", "within spread", "same", ""]
GATED = {"ratio": "pruned / dense", "difference": "pruned − dense", "pruned": "pruned"}
VERDICT_MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?"}


def compressing_methods(report: Report) -> list[Method]:
    """The methods that decided the weights, in pipeline order."""
    stages: tuple[Stage, ...] = ("score", "allocate", "train", *EDITS, "refine", "tune")
    return [discover()[stage, params["method"]] for stage in stages if (params := report.spec.get(stage))]


def sentence(report: Report) -> str:
    """The compression in one sentence."""
    spec, method, kind = report.spec, editor(report), edited(report)
    pattern = spec[method.stage].get("pattern")
    scored = f"scored by {spec['score']['method']}, " if spec.get("score") else ""
    scored += f"decided on in training by {spec['train']['method']}, " if spec.get("train") else ""
    spread = f"spread over the layers by {spec['allocate']['method']}, " if kind.removes.spread else ""
    refined = f", moved by {spec['refine']['method']}" if spec.get("refine") else ""
    went = kind.went(report, percent(report.sparsity))
    made = f"{went}: {scored}{spread}{kind.done} by {method.name}"
    return made + (f" ({pattern})" if pattern else "") + f"{refined}."


def editor(report: Report) -> Method:
    """The method that edited the model."""
    return next(discover()[stage, params["method"]] for stage in EDITS if (params := report.spec.get(stage)))


def edited(report: Report) -> Removal:
    """The kind of unit that went, or was added, which words what was done."""
    return removal(needed(editor(report).removes, "an editor's kind of unit"))


def placed(growth: Growth) -> str:
    """Where the new blocks of a result stand."""
    numbers = ", ".join(str(new.block) for new in growth.blocks)
    like = ", ".join(str(new.like) for new in growth.blocks)
    if len(growth.blocks) == 1:
        return f"Block {numbers} of the result is new, made like the dense model's block {like}."
    return f"Blocks {numbers} of the result are new, made like the dense model's blocks {like}; all counted from 0."


def brings_code(report: Report) -> bool:
    """Whether a modelling file lies beside the weights: blocks differ in width, or experts are skipped."""
    return any("trust_remote_code" in runtime.note for runtime in report.runtimes)


def conditions(report: Report) -> list[str]:
    """Further conditions of the result, a sentence each."""
    found = []
    if report.allocation_trials:
        found.append(compared_allocations(report.allocation_trials))
    if report.bound is not None:
        found.append(bounded(report.bound))
    if report.importance_lost is not None:
        found.append(
            f"All blocks have one shape, which any runtime loads: the units that went held "
            f"{percent(report.importance_lost)} of all importance by their scores, those of different widths "
            f"(`ranking`) would have held {percent(report.importance_lost_by_ranking or 0)}."
        )
    if report.train is not None:
        found.append(trained(report.train, report.spec["train"]))
    if report.tune is not None:
        found.append(tuned(report.tune, report.spec["tune"]))
    if report.merges:
        idle = sum(merge.weight == 0 for merge in report.merges)
        found.append(
            f"{len(report.merges)} experts went into the ones of their block whose router logits are most like theirs, "
            "averaged in proportion to the tokens sent to each after their channels were put in one order; their rows "
            "of the router were dropped."
            + (f" {idle} of them were sent none on the calibration text, and change nothing." if idle else "")
        )
    if report.betas:
        low, high = min(report.betas.values()), max(report.betas.values())
        found.append(
            f"Experts whose weight is less than beta times the largest of a token are skipped; beta is {low:.3f} to "
            f"{high:.3f}, the medians of the second weight over the first on the calibration text."
        )
    if report.refresh == "block":
        found.append("Layers of a block were calibrated on the inputs they have while the block is dense.")
    if report.refresh == "projection":
        found.append("Layers were calibrated on inputs that all layers pruned before them had a part in.")
    return found


def made(report: Report) -> str:
    """When the report was made, its job and who submitted it; empty for reports of older versions."""
    found = [f"{report.made_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"] if report.made_at else []
    if report.origin is not None:
        found += [f"job {report.origin.job_id}, attempt {report.origin.attempt}", f"for {report.origin.asked_by}"]
    return " · ".join(found)


def judgement(report: Report) -> str:
    """The gates that decided the verdict, with bounds and values."""
    decisive = [gate for gate in report.gates if gate.verdict == report.verdict]
    if report.verdict == "pass":
        return "the gate holds" if len(decisive) == 1 else f"all {len(decisive)} gates hold"
    return "; ".join(
        f"{gate.metric} ({GATED[gate.of]}) is {judged_value(gate)}, allowed is {bounds(gate)}" for gate in decisive
    )


def resumed(report: Report) -> list[str]:
    """The work of an earlier attempt at the job, a sentence each."""
    found = []
    if report.resumed_allocation and report.growth is None:
        found.append("How much each layer loses was decided by an earlier attempt at the job.")
    if report.resumed_blocks:
        found.append(f"{report.resumed_blocks} blocks were finished by an earlier attempt.")
    for name, training in (("training", report.train), ("tuning", report.tune)):
        if training is not None and training.resumed_step:
            found.append(f"The first {training.resumed_step} steps of the {name} were done by an earlier attempt.")
    if names := [metric.name for metric in report.metrics if metric.resumed]:
        found.append(f"The dense model was measured by an earlier attempt: {', '.join(names)}.")
    return [*found, "The time of earlier attempts is in none of these figures."] if found else []


def repeatable(report: Report) -> str:
    """Whether the same spec gives the same weights again."""
    if report.bound is not None and report.bound.name == "decode_time":
        return "How narrow the blocks are follows from measured times: submitted again, it may give other widths."
    return "Submitted again, it gives the same weights on the same machine."


def compared_allocations(trials: dict[str, float]) -> str:
    """Which of the allocations was taken, and the perplexity of each in its trial."""
    taken = min(trials, key=lambda name: trials[name])
    shown = ", ".join(f"{name} {math.exp(loss):.2f}" for name, loss in trials.items())
    return f"Sparsity was spread by {taken}, which did best in trial prunings (perplexity: {shown})."


def bounded(bound: Bound) -> str:
    """Values asked for, predicted and measured, and those of earlier tries."""
    *broken, held = bound.tries
    what, foreseen = {
        "perplexity_ratio": ("The perplexity", "the trial pruning"),
        "decode_time": ("A decode step's time", "the times of single blocks"),
    }[bound.name]
    text = (
        f"{what} may be ×{bound.asked:g} of the dense model's"
        + (f", or {percent(bound.tolerance)} above that" if bound.tolerance else "")
        + f": ×{held.measured:.4f} was measured on the result, ×{held.predicted:.4f} foreseen by "
        f"{foreseen}."
    )
    for tried in broken:
        text += f" {percent(tried.target_sparsity)} was tried before and gave ×{tried.measured:.4f}."
    return text


def trained(train: TrainReport, params: Mapping[str, Any]) -> str:
    """How the model was trained while it was decided what goes."""
    return (
        f"Before, {train.method} trained {train.trained_parameters:,} parameters for {_trained_on(train, params)}. "
        f"The loss on held-out windows of that text is {train.holdout_loss_before:.4f} nats a token for the dense "
        f"model and {train.holdout_loss_after:.4f} for the trained one without what goes."
        + _by_domain(train.curve[0], train.curve[-1], params.get("domains"))
    )


def tuned(tune: TuneReport, params: Mapping[str, Any]) -> str:
    """How the model was trained after pruning, in two sentences."""
    bits = params.get("bits", 16)
    quantised = f" of weights in {bits} bits, stored dense," if bits < 16 else ""
    shipped = "the last step ships" if tune.best_step == tune.steps else f"step {tune.best_step} ships, the best"
    return (
        f"Then {tune.method} trained {tune.trained_parameters:,} parameters{quantised} for "
        f"{_trained_on(tune, params)}. The loss on held-out windows of that text went from "
        f"{tune.holdout_loss_before:.4f} to {tune.holdout_loss_after:.4f} nats a token; {shipped}."
        + _by_domain(
            tune.curve[0],
            next(point for point in tune.curve if point.step == tune.best_step),
            params.get("domains"),
        )
    )


def _trained_on(training: TrainingReport, params: Mapping[str, Any]) -> str:
    return (
        f"{training.steps} steps of {params['batch']} x {params['sequence_length']} tokens of {params['dataset']}"
        + _distilled(params["distill"])
    )


def _by_domain(before: TunePoint, best: TunePoint, domains: Mapping[str, Any] | None) -> str:
    if domains is None:
        return ""
    total = sum(domains["shares"].values())
    told = (
        f"{name} ({percent(share / total)} of the windows) from {(before.domains or {})[name]:.4f} "
        f"to {(best.domains or {})[name]:.4f}"
        for name, share in domains["shares"].items()
    )
    return f" By domain: {', '.join(told)}."


def _distilled(distill: Mapping[str, Any] | None) -> str:
    if distill is None:
        return ""
    of = f" of its {some} likeliest tokens" if (some := distill.get("top_k")) else ""
    if distill["weight"] == 1:
        return f", on the dense model's predictions{of} alone"
    return f", {percent(distill['weight'])} of the loss on the dense model's predictions{of}"


def as_read(text: TextReport) -> str:
    """How a text became tokens."""
    opening = "".join(text.opening)
    documents = f"{text.documents:,} documents joined by empty lines" if text.documents != 1 else "one document"
    found = [
        f"{documents}, {text.tokens:,} tokens read",
        f"every window begins with {opening}" if opening else "windows begin with the text, without a token before it",
    ]
    if text.rows_skipped:
        found.append(f"rows without text, left out: {text.rows_skipped:,}")
    if text.characters_replaced:
        found.append(f"lone surrogates, replaced by U+FFFD: {text.characters_replaced:,}")
    return "; ".join(found)


def intervals(report: Report) -> str:
    """The population that the intervals cover; empty without intervals."""
    said = []
    if any(metric.interval_over == "documents" for metric in report.metrics):
        said.append("Errors are over documents, and hold for others like them.")
    about_text = [m for m in report.metrics if m.interval_over == "text"]
    if names := ", ".join(metric.name for metric in about_text if not unsure(metric)):
        said.append(
            f"That of {names} is about this text alone: it is one document, or where its documents end is not known."
        )
    if names := ", ".join(metric.name for metric in about_text if unsure(metric)):
        said.append(f"Nothing says how far off these are, of one sample or of a metric without an error: {names}.")
    return " ".join(said)


def unsure(metric: Metric) -> bool:
    """Whether a metric was sampled but has no standard error."""
    return metric.interval_over is not None and metric.difference_stderr is None


def percent(fraction: float) -> str:
    """`0.5` -> `50 %`, with at most two decimals."""
    return f"{100 * fraction:.2f}".rstrip("0").rstrip(".") + " %"


def quantity(value: float, unit: str) -> str:
    """A number with its unit: large amounts with a prefix, counts whole, others with four digits."""
    if unit == "bytes":
        return f"{value:,.0f} bytes" if abs(value) < 1000 else f"{_prefixed(value)}B"
    if unit == "MACs":
        return f"{value:,.0f} MACs" if abs(value) < 1000 else f"{_prefixed(value)} MACs"
    if unit == "parameters":
        return f"{value:,.0f}"
    return _digits(value) + (f" {unit}" if unit in {"s", "tokens/s"} else "")


def with_spread(value: float, spread: float | None, unit: str) -> str:
    """`35.42 ± 0.61`, the spread to the same decimals."""
    if spread is None:
        return quantity(value, unit)
    decimals = _decimals(value)
    suffix = f" {unit}" if unit in {"s", "tokens/s"} else ""
    return f"{value:,.{decimals}f} ± {spread:,.{decimals}f}{suffix}"


def named(metric: Metric) -> str:
    """Its name, and the unit where neither that nor the value says it."""
    said = metric.unit in metric.name or metric.unit in {"s", "tokens/s", "bytes", "MACs"}
    return metric.name if said else f"{metric.name}, {metric.unit}"


def ratio(metric: Metric) -> str:
    """`×1.104 [1.080, 1.128]`: with its interval where it has one; a dash where the dense value is zero."""
    if metric.ratio is None:
        return "–"
    half = half_width(metric.ratio_stderr or 0, metric.degrees_of_freedom, CONFIDENCE)
    interval = f" [{metric.ratio - half:.3f}, {metric.ratio + half:.3f}]" if half else ""
    return f"×{metric.ratio:.3f}{interval}"


def verdict(metric: Metric) -> Verdict:
    """Whether pruning improved a metric, by its interval.

    `same` where the ratio's interval (SURE) reaches into 1 ± the metric's margin; `within spread`, of a metric without
    one, where the difference's (CONFIDENCE) holds 0. Empty where neither direction is a goal, and of one sample.
    """
    if metric.higher_is_better is None or unsure(metric):
        return ""
    change, stderr, margin, confidence = metric.pruned - metric.dense, metric.difference_stderr, None, CONFIDENCE
    if metric.margin is not None and metric.ratio is not None:
        change, stderr, margin, confidence = metric.ratio - 1, metric.ratio_stderr, metric.margin, SURE
    spread = half_width(stderr or 0, metric.degrees_of_freedom, confidence)
    if change == 0 or (margin is not None and abs(change) - spread <= margin):
        return "same"
    if abs(change) <= spread:
        return "within spread"
    return "better" if (change > 0) == metric.higher_is_better else "worse"


def confidences(report: Report) -> str:
    """`95 %`, or the several confidences of the gates that were judged by an interval; empty if none was."""
    found = {gate.confidence for gate in report.gates if gate.interval and gate.interval[0] < gate.interval[1]}
    return ", ".join(percent(confidence) for confidence in sorted(found))


def bounds(gate: GateResult) -> str:
    """The bounds of a gate: `≤ 1.1`, `≥ 0.5` or `0.5 to 1.1`."""
    if gate.min is None:
        return f"≤ {gate.max:g}"
    return f"≥ {gate.min:g}" if gate.max is None else f"{gate.min:g} to {gate.max:g}"


def judged_value(gate: GateResult) -> str:
    """`1.104 [1.080, 1.128]`: the value, and its interval where it has one; a dash for no value."""
    if gate.value is None:
        return "–"
    low, high = gate.interval or (gate.value, gate.value)
    if low == high:
        return _digits(gate.value)
    decimals = max(0, _decimals(high - low) - 2)  # two digits of the interval
    return f"{gate.value:,.{decimals}f} [{low:,.{decimals}f}, {high:,.{decimals}f}]"


def _digits(value: float) -> str:
    return f"{value:,.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    """Decimals that show four significant digits, none of them below 1e-6."""
    if value == 0:
        return 0
    return min(6, max(0, 3 - math.floor(math.log10(abs(value)))))


def _prefixed(value: float) -> str:
    """`14.30 M`, of 1000 and more."""
    prefix = min(4, int(math.log10(abs(value)) // 3))
    return f"{_digits(value / 1000**prefix)} {('', 'k', 'M', 'G', 'T')[prefix]}"
