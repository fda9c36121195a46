"""From a spec to a smaller model and a report: the stages, top to bottom. Read this first.

Works on folders alone; whoever wants progress passes `events`. Weights stream block by block, so the model may be
larger than memory, and finished blocks become resume points once a minute: call it again after a kill and it goes on.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from workers.engine.checks.dense_model import check_vectors, naming_broken_tensors
from workers.engine.checks.masked import masked_model
from workers.engine.checks.promises import check_sizes, memory_warnings
from workers.engine.checks.tries import BoundExceeded, Tries
from workers.engine.checks.verify import verify, verify_tuned, window
from workers.engine.contracts.needed import needed
from workers.engine.contracts.tuning_params import TRAININGS
from workers.engine.failures import translated
from workers.engine.gates import judge, overall
from workers.engine.model.provenance import fingerprint, provenance
from workers.engine.planning.plan import feasible, warnings
from workers.engine.planning.result_size import parameters_after
from workers.engine.ranks import Ranks
from workers.engine.removals.assemble import assemble
from workers.engine.removals.base import removal_of
from workers.engine.removals.skipping import let_skip
from workers.engine.removals.unit_scores import score_units
from workers.engine.report import MergedExpert, Report
from workers.engine.reporting.wording import as_read
from workers.engine.sources.resolve import resolve_model
from workers.engine.stages.allocate import allocate, fitted_to_time
from workers.engine.stages.calibrate import calibration, refuse_unknown_tokens
from workers.engine.stages.evaluate import evaluate
from workers.engine.stages.load import load
from workers.engine.stages.package import package
from workers.engine.stages.prune import expert_tokens, layer_reports, prune
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.points import Points
from workers.engine.store.run import Run
from workers.engine.store.token_file import forget_files
from workers.engine.training.prompted import prompt_ids
from workers.engine.training.text import training_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from workers.engine.contracts.facts import Allocation, Units
    from workers.engine.contracts.tuning_params import Trains
    from workers.engine.events import Events
    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.removals.outcome import Outcome
    from workers.engine.report import Growth, LayerReport, Origin, ResultCheck, TrainReport, TuneReport
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec
    from workers.engine.stages.evaluate import Evaluation
    from workers.engine.training.text import TuningText


def compress(
    spec: CompressionSpec,
    workdir: Path,
    sources: Sources,
    events: Events,
    checkpoint_dir: Path,
    cache_dir: Path | None = None,
    origin: Origin | None = None,
    points: Points | None = None,
    ranks: Ranks | None = None,
) -> Report:
    """Write the compressed model to `workdir/model` and return its report. Raises EngineError.

    `checkpoint_dir` outlives a failed run and is passed to its successor; remove it after a success. `cache_dir` is
    shared between jobs: a measurement of a dense model is made once. `origin`: the job and tenant that the report
    names. `points`: when finished blocks become resume points. `ranks`: the processes that do it together; each calls
    this with the same arguments, and only the first with events that anybody reads.
    """
    ranks, model_dir = ranks or Ranks(), workdir / "model"
    with translated(), naming_broken_tensors() as dense:
        run = Run.of(Checkpoint(checkpoint_dir, events, points or Points(), ranks), events, cache_dir)
        clock = run.clock
        with clock.stage("load"):
            prospect = ranks.first(lambda: feasible(spec, resolve_model(spec.model, sources), sources))
            model = dense.model = load(spec, prospect, ranks)
            ranks.first(lambda: check_vectors(model))
        with clock.stage("calibrate"):
            text, trainings = ranks.first(lambda: _texts(spec, model, sources, workdir, checkpoint_dir))
            digests = {TRAININGS[stage]: found.beginning for stage, found in trainings.items()}
            run.checkpoint.claim(fingerprint(spec, model, calibration=text.digest if text else None, **digests))
        units = None
        if spec.scores_first:
            with clock.stage("score"):
                units = score_units(prospect.spec, model, text, run)
        job = _Job(prospect.spec, model, sources, text, trainings, units, workdir)
        tries, made = Tries(spec, run), None
        while made is None:  # more than once where the result breaks a bound that can only be measured on it
            try:
                made = _attempt(job, tries)
            except BoundExceeded:
                continue
        texts = [text.read] if text and text.read else []
        texts += [read for found in trainings.values() for read in found.reads] + made.evaluation.texts
        for found in texts:
            if found.rows_skipped or found.characters_replaced:
                events.log(f"{found.label}: {as_read(found)}")
        removal = removal_of(spec)
        lost = removal.importance_lost(spec, model.architecture, made.units, made.outcome, made.allocation.target)
        # Once: of a text that was read on while it was trained on it takes a while.
        digests_of_trainings = ranks.first(lambda: [found.digests for found in trainings.values()])
        gates = judge(spec.gates, made.evaluation.metrics)
        report = Report(
            origin=origin,
            made_at=datetime.now(UTC),
            spec=spec.model_dump(mode="json"),
            provenance=provenance(
                spec,
                model,
                dict(
                    ChainMap(
                        *digests_of_trainings,
                        text.digests if text else {},
                        made.evaluation.data_digests,
                    )
                ),
            ),
            parameters=model.source.parameters,
            parameters_after=parameters_after(model.source, made.outcome),
            prunable_parameters=model.architecture.prunable_parameters,
            zeros=sum(layer.zeros for layer in made.layers),
            sparsity=sum(layer.sparsity * layer.parameters for layer in made.layers)
            / model.architecture.prunable_parameters,
            target_sparsity=made.allocation.target,
            bound=tries.report(),
            allocation_trials=dict(made.allocation.trials),
            importance_lost=lost and lost[0],
            importance_lost_by_ranking=lost and lost[1],
            refresh=spec.refresh if spec.walk_needs else None,
            train=made.trained,
            layers=made.layers,
            growth=made.growth,
            tune=made.tuned,
            merges=[MergedExpert(**asdict(merge)) for merge in made.units.merges] if made.units else [],
            betas=made.betas,
            checks=made.checks,
            texts=texts,
            metrics=made.evaluation.metrics,
            samples=made.evaluation.samples,
            gates=gates,
            verdict=overall(gates),
            stages=clock.report(),
            runtimes=removal.runtimes(spec, made.outcome),
            warnings=warnings(spec, prospect)
            + [warning for found in trainings.values() for warning in found.warnings]
            + memory_warnings(spec.compute.memory_budget, clock.report()),
            resumed_blocks=made.resumed,
            resumed_allocation=made.resumed_allocation,
        )
        with clock.stage("package"):
            ranks.first(lambda: package(model.path, model_dir, report))
    return report


def _texts(
    spec: CompressionSpec, model: LoadedModel, sources: Sources, workdir: Path, checkpoint_dir: Path
) -> tuple[Calibration | None, dict[Trains, TuningText]]:
    """Texts for calibration and trainings, where the spec needs them; those of trainings lie in files in `workdir`, and
    in `checkpoint_dir` for a further attempt."""
    refuse_unknown_tokens(spec, model, sources)
    if spec.train is not None and spec.train.read_first:
        prompt_ids(spec.train, model)  # refuses one that does not fit, before work that would be lost
    forget_files(workdir)
    trainings = {
        stage: training_text(stage, params, model, sources, workdir, checkpoint_dir)
        for stage, params in spec.trainings.items()
    }
    return calibration(spec, model, sources), trainings


@dataclass(frozen=True)
class _Job:
    """Inputs that all tries share."""

    spec: CompressionSpec
    model: LoadedModel
    sources: Sources
    text: Calibration | None
    trainings: Mapping[Trains, TuningText]
    units: Units | None
    """With scores of the dense model; None where there are none, or a training decides."""
    workdir: Path

    @property
    def model_dir(self) -> Path:
        """Of the result."""
        return self.workdir / "model"


@dataclass(frozen=True)
class _Made:
    """The result of one try and its measurements."""

    allocation: Allocation
    units: Units | None
    """Scored units, as they were decided on."""
    outcome: Outcome
    resumed: int
    resumed_allocation: bool
    checks: list[ResultCheck]
    growth: Growth | None
    trained: TrainReport | None
    tuned: TuneReport | None
    betas: dict[str, float]
    layers: list[LayerReport]
    evaluation: Evaluation


def _attempt(job: _Job, tries: Tries) -> _Made:
    """Prune to one target and measure the result. Raises BoundExceeded where it breaks the spec's bound."""
    model, run, ranks = job.model, tries.present, job.model.ranks
    clock = run.clock
    resumed_allocation = run.checkpoint.load_json("allocation") is not None
    spec, foreseen = fitted_to_time(job.spec, model, tries)
    job, allocation = replace(job, spec=spec), None
    if not spec.trained_allocation:
        with clock.stage("allocate"):
            allocation = allocate(spec, model, job.text, job.sources, job.units, tries, foreseen)
    ids_T = window(spec, model, job.text)
    pruned, trained = job, None
    if spec.train is not None:
        with clock.stage("train"):
            pruned, allocation, trained = _trained(job, allocation, run, ids_T)
    allocation = needed(allocation, "the allocation")
    with clock.stage(spec.editor.stage):  # scores layers and runs the calibration text through pruned blocks too
        outcome, resumed = prune(pruned.spec, pruned.model, job.text, pruned.units, allocation, run)
        ranks.first(lambda: _written(pruned, outcome, run))
    with clock.stage("verify"):
        checks = ranks.first(lambda: _verified(pruned, outcome, run, ids_T))
        tries.check_decode_time(allocation, model, job.model_dir)
    tuned, more_checks = _tuned(job, outcome, run, ids_T)
    growth = removal_of(spec).growth(outcome, run.checkpoint)
    tokens = expert_tokens(run)
    layers = ranks.first(lambda: layer_reports(spec, model, allocation, outcome, job.model_dir, tokens))
    betas = ranks.first(lambda: _skipping(job, run))
    with clock.stage("evaluate"):
        evaluation = evaluate(
            spec, model, job.model_dir, job.sources, tries.shared, lambda ratio: tries.check(allocation, ratio)
        )
    return _Made(
        allocation=allocation,
        units=pruned.units,
        outcome=outcome,
        resumed=resumed,
        resumed_allocation=resumed_allocation,
        checks=checks + more_checks,
        growth=growth,
        trained=trained,
        tuned=tuned,
        betas=betas,
        layers=layers,
        evaluation=evaluation,
    )


def _trained(job: _Job, allocation: Allocation | None, run: Run, ids_T: Tensor) -> tuple[_Job, Allocation, TrainReport]:
    """The job as it goes on with the trained model in the dense one's place, and what the training decided."""
    from workers.engine.stages.train import train  # as of `tune`

    model, units, allocation, report = train(
        job.spec, job.model, allocation, job.workdir / "trained", job.trainings["train"], run, ids_T
    )
    return replace(job, spec=job.spec.as_trained(), model=model, units=units), allocation, report


def _written(job: _Job, outcome: Outcome, run: Run) -> None:
    assemble(job.spec, job.model, outcome, run.checkpoint, job.model_dir)
    check_sizes(job.spec.edit.size_limit, job.model, job.model_dir)


def _verified(job: _Job, outcome: Outcome, run: Run, ids_T: Tensor) -> list[ResultCheck]:
    masked = masked_model(job.spec, job.model, outcome, job.units, run.checkpoint)
    return verify(job.spec, job.model, masked, job.model_dir, ids_T)


def _skipping(job: _Job, run: Run) -> dict[str, float]:
    """Beta of every block of a result that skips experts; empty for others."""
    if not job.spec.edit.skips:
        return {}
    with run.clock.stage("calibrate"):
        return let_skip(job.model, job.model_dir, needed(job.text, "/calibrate"), run)


def _tuned(job: _Job, outcome: Outcome, run: Run, ids_T: Tensor) -> tuple[TuneReport | None, list[ResultCheck]]:
    """The training, if the spec asks for it, and the check of what it made. All ranks train."""
    if "tune" not in job.trainings:
        return None, []
    from workers.engine.stages.tune import tune  # a third of all imports, and most jobs do not tune

    with run.clock.stage("tune"):
        tuned, traces = tune(job.spec, job.model, job.model_dir, job.trainings["tune"], run, ids_T, outcome.new)

    def verified() -> ResultCheck:
        return verify_tuned(job.spec, job.model, needed(traces, "traces"), job.model_dir, ids_T)

    with run.clock.stage("verify"):
        return tuned, [job.model.ranks.first(verified)]
