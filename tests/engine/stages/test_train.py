"""The laws of every method that prunes a model while it trains, on a job from spec to result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.helpers.small_models import EXAMPLES, SIZES, SaveModel, spec_of
from tests.helpers.training import TARGETS, jobs, training
from tests.helpers.tuning import Killed, dying, saving_every_step, weights
from workers.engine.checks.trace import TOLERANCE
from workers.engine.errors import InvalidSpec, MemoryBudgetTooSmall, NumericalFailure, PromiseBroken
from workers.engine.events import Silent
from workers.engine.methods.train.gradual import GradualParams
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.registry import Method
from workers.engine.report import Report
from workers.engine.sources.resolve import Sources
from workers.engine.stages import train as train_stage
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.training import loop, results
from workers.engine.training.gradual import Gradual

JOBS = jobs()
every_job = pytest.mark.parametrize(("method", "target", "parts"), JOBS, ids=[f"{m.name}-{t}" for m, t, _ in JOBS])
GRADUAL = {"score": None, "calibrate": None, "train": training("gradual")} | TARGETS["weight"]["unstructured"]
MEASURED = {"evaluate": [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 32, "samples": 4}]}


def run(parts: dict[str, Any], sources: Sources, folder: Path) -> Report:
    return compress(spec_of(**parts), folder, sources, Silent(), folder / "checkpoint")


@every_job
def test_a_job_keeps_its_target_and_its_checks_and_is_resumed_to_the_same_bytes(
    method: Method,
    target: str,
    parts: dict[str, Any],
    tiny: Path,
    sources: Sources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = run(parts, sources, tmp_path / "whole")
    planned = plan(spec_of(**parts), sources)
    assert report.train is not None
    assert report.train.method == method.name
    assert report.train.difference < TOLERANCE
    assert {check.against for check in report.checks} == {"masked dense model", "walked model"}
    assert all(check.difference < TOLERANCE for check in report.checks)
    asked = parts["prune"].get("sparsity", 0.5)
    if planned.parameters_after is None:  # free widths: to within the smallest unit, a channel of 3 x 32 parameters
        assert abs(report.sparsity - asked) <= 3 * 32 / report.prunable_parameters
        assert len({layer.shape for layer in report.layers if layer.name.endswith("up_proj")}) > 1
    else:
        assert report.parameters_after == planned.parameters_after
    if planned.zeros_after:
        assert report.zeros == planned.zeros_after
    result = tmp_path / "whole/model"
    if target != "ranking":  # else of code of its own
        loaded = AutoModelForCausalLM.from_pretrained(result)
        assert loaded(torch.arange(5)[None]).logits.isfinite().all()

    saving_every_step(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save_training", dying(Checkpoint.save_training, 2))
        with pytest.raises(Killed):
            run(parts, sources, tmp_path / "killed")
    torch.manual_seed(99)  # another process has another state
    again = run(parts, sources, tmp_path / "killed")
    assert again.train is not None
    assert again.train.resumed_step == 3
    assert again.train.curve == report.train.curve
    assert (tmp_path / "killed/model/model.safetensors").read_bytes() == (result / "model.safetensors").read_bytes()


def test_the_dense_model_is_what_is_compared_with_and_tuning_goes_on_from_the_trained(
    tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    dense = {path.name: path.read_bytes() for path in tiny.iterdir()}
    alone = run(GRADUAL | MEASURED, sources, tmp_path / "alone")
    tune = {"method": "full", "dataset": "calibration.txt", "steps": 2, "batch": 2, "sequence_length": 32, "holdout": 4}
    both = run(GRADUAL | MEASURED | {"tune": tune}, sources, tmp_path / "both")
    assert {path.name: path.read_bytes() for path in tiny.iterdir()} == dense
    assert both.metrics[0].dense == alone.metrics[0].dense
    assert both.train is not None
    assert both.tune is not None
    assert both.tune.holdout_loss_before == pytest.approx(both.train.holdout_loss_after, abs=1e-5)
    assert {"train/calibration.txt", "tune/calibration.txt"} <= both.provenance.data_digests.keys()
    page = (tmp_path / "both/model/report.html").read_text()
    assert page.index('id="training"') < page.index('id="tuning"')
    assert "decided on in training by gradual" in page
    assert {*plan(spec_of(**GRADUAL, **MEASURED, tune=tune), sources).warnings} <= {*both.warnings}


def test_a_training_that_ended_is_not_done_again(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(GRADUAL, sources, tmp_path)
    before = weights(tmp_path / "model")

    def fail(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(loop.Loop, "_step", fail)
    again = run(GRADUAL, sources, tmp_path)
    assert again.train is not None
    assert (again.train.resumed_step, again.train.tokens_per_s) == (6, None)
    assert first.train is not None
    assert again.train.curve == first.train.curve
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "model").items())


def test_a_loss_that_is_not_finite_ends_the_job_at_its_step(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.loss_on_windows
    losses = iter([1.0, math.nan])
    monkeypatch.setattr(loop, "loss_on_windows", lambda *given: real(*given) * next(losses))
    with pytest.raises(NumericalFailure, match="step 2 of training: the loss is nan") as found:
        run(GRADUAL, sources, tmp_path)
    assert found.value.field == "/train/learning_rate"
    assert "warmup_steps" in found.value.hint


@pytest.mark.parametrize(("method", "own"), [("gradual", {}), ("elsa", {"settle": 0.5})], ids=["gradual", "elsa"])
def test_what_is_gone_does_not_scale_down_the_gradient_of_what_trains(
    method: str, own: dict[str, Any], tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, masked = loop.clip_grad_norm_, []

    def clip(parameters: list[torch.nn.Parameter], most: float) -> torch.Tensor:
        gone = [(p == 0, p.grad) for p in parameters if (p == 0).float().mean() > 0.5]
        masked.append([bool(gradient[zero].any()) for zero, gradient in gone if gradient is not None])
        return real(parameters, most)

    monkeypatch.setattr(loop, "clip_grad_norm_", clip)
    run(GRADUAL | {"train": training(method, **own)}, sources, tmp_path)
    assert len(masked[-1]) == 3 * 7, "every layer is masked by then"
    assert not any(any(step) for step in masked)


def test_weights_that_are_not_those_that_were_trained_are_found(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Gradual):
        def finished(self) -> Any:
            trained = super().finished()
            return type(trained)(lambda name, stored: trained.merged(name, stored) * (1 + ("v_proj" in name)))

    monkeypatch.setattr("workers.engine.training.gradual.Gradual", Wrong)
    with pytest.raises(Exception, match=r"first the outputs of model\.layers\.0\.self_attn\.o_proj"):
        run(GRADUAL, sources, tmp_path)


def test_values_beyond_the_sources_type_name_the_rate(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trained weights are written in the source's types, whatever the package's."""
    monkeypatch.setattr(results, "finite", lambda tensor: False)
    with pytest.raises(NumericalFailure, match="beyond the range of F32 after training") as found:
        run(GRADUAL | {"package": {"dtype": "float32"}}, sources, tmp_path)
    assert found.value.field == "/train/learning_rate"
    assert found.value.hint.startswith("lower `learning_rate`")


def test_a_method_that_decides_on_another_number_is_found() -> None:
    from workers.engine.architectures.architecture import Family, Member
    from workers.engine.contracts.facts import Units
    from workers.engine.contracts.training import Target

    family = Family(0, "channel", 4, (Member("down.weight", 1),), 1, 0)
    target = Target(0.5, (family,), {(0, "channel"): 2})
    with pytest.raises(PromiseBroken, match="2 channels were to go, and the training decided on 1"):
        train_stage._check(target, Units((family,), [{"channel": [1.0, 0.0, -1.0, 2.0]}]))
    with pytest.raises(PromiseBroken, match="all of its units"):
        train_stage._check(target, Units((family,), [{"channel": [-1.0] * 4}]))


def test_a_policy_gradient_changes_no_weight(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    parts = {"score": None, "calibrate": None, "train": training("policy_gradient", learning_rate=1.0)}
    run(parts | TARGETS["head"]["uniform"], sources, tmp_path)
    dense, result = weights(tiny), weights(tmp_path / "model")
    for block in range(3):
        before, after = (tensors[f"model.layers.{block}.mlp.up_proj.weight"] for tensors in (dense, result))
        kept = [(before == row).all(dim=1).nonzero().flatten().tolist() for row in after]
        assert [len(found) for found in kept] == [1] * len(after)
        assert len(after) < len(before)
        reader = f"model.layers.{block}.mlp.down_proj.weight"
        assert torch.equal(result[reader], dense[reader][:, [found[0] for found in kept]])


class TestRefusals:
    @pytest.mark.parametrize(
        ("parts", "code"),
        [
            ({"score": {"method": "magnitude"}}, "score_unused"),
            ({"prune": {"method": "structured", "sparsity": 0.5}}, "training_of_other_units"),
            ({"prune": {"method": "sparsegpt", "sparsity": 0.5}}, "update_after_training"),
            ({"prune": {"method": "mask", "perplexity_ratio": 1.1}, **MEASURED}, "bound_of_training"),
            ({"refine": {"method": "dsnot"}}, "nothing_to_refine"),
            ({"allocate": {"method": "search"}}, "allocation_of_training"),
            ({"prune": None, "grow": {"method": "duplicate", "layers": 1}}, "nothing_to_prune"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_does_not_go_together_is_refused_before_work(self, parts: dict[str, Any], code: str) -> None:
        with pytest.raises(ValidationError) as found:
            spec_of(**GRADUAL | parts)
        assert code in [error["type"] for error in found.value.errors()]

    @pytest.mark.parametrize(
        ("changes", "field", "message"),
        [
            ({"sparsity": 0.9}, "/prune/sparsity", "at most 67.5%"),
            ({"sparsity": 0.4, "protect_first": 2}, "/prune/sparsity", "at most 22.5%"),
            ({"sparsity": 0.4, "channel_multiple": 16}, "/prune/channel_multiple", "single channels"),
            ({"sparsity": 0.002}, "/prune/sparsity", "nothing would go"),
        ],
        ids=["more than may go", "protected blocks", "multiples", "less than half a unit"],
    )
    def test_free_widths_that_cannot_be_are_refused_before_work(
        self, changes: dict[str, Any], field: str, message: str, tiny: Path, sources: Sources
    ) -> None:
        parts = {"prune": {"method": "structured", **changes}, "allocate": {"method": "ranking"}}
        with pytest.raises(InvalidSpec, match=message) as found:
            plan(spec_of(score=None, calibrate=None, train=training("efficient_llm"), **parts), sources)
        assert found.value.field == field

    @pytest.mark.parametrize(
        ("method", "target"), [("gradual", "unstructured"), ("efficient_llm", "uniform"), ("efficient_llm", "ranking")]
    )
    def test_a_training_that_is_to_remove_nothing(self, method: str, target: str, tiny: Path, sources: Sources) -> None:
        (parts,) = (parts for trainer, name, parts in JOBS if (trainer.name, name) == (method, target))
        with pytest.raises(InvalidSpec, match="removes nothing") as found:
            plan(spec_of(**parts | {"prune": parts["prune"] | {"sparsity": 0.0}}), sources)
        assert (found.value.field, "`tune`" in found.value.hint) == ("/prune", True)

    def test_memory_is_planned_and_bounded(self, tiny: Path, sources: Sources) -> None:
        train, budget = training("gradual", sequence_length=128), {"memory_budget": 2**29}
        assert plan(spec_of(**GRADUAL | {"train": train}), sources).peak_memory_bytes > 2**29
        with pytest.raises(MemoryBudgetTooSmall, match="gradual trains the whole model") as found:
            plan(spec_of(**GRADUAL | {"train": train, "compute": budget}), sources)
        assert found.value.field == "/train"

    def test_memory_is_that_of_what_the_training_holds(self, save_model: SaveModel, sources: Sources) -> None:
        """Weights, gradients and two moments in float32, whatever is computed in, and no best state."""
        sizes = {"hidden_size": 256, "intermediate_size": 8192, "num_hidden_layers": 4}
        save_model("tiny", LlamaConfig(**SIZES | sizes))

        text = {"batch": 4, "sequence_length": 128}

        def peak(**parts: Any) -> int:
            return plan(spec_of(**GRADUAL | {"train": training("gradual", **text)} | parts), sources).peak_memory_bytes

        parameters = plan(spec_of(**GRADUAL), sources).parameters
        trained = peak()
        half = peak(compute={"dtype": "bfloat16"})
        assert 0 < trained - half < 0.2 * trained, "activations alone are smaller"
        tuned = plan(
            spec_of(score={"method": "magnitude"}, calibrate=None, tune=training("full", distill=None, **text)), sources
        )
        found = plan(spec_of(**GRADUAL), sources)
        assert tuned.peak_memory_bytes - trained == 4 * parameters, "the best state"
        cut = {"score": {"method": "reverse_order"}, "prune": {"method": "depth", "layers": 1}, "calibrate": None}
        whole = plan(spec_of(**cut, tune=training("full", distill=None, **text)), sources)
        assert tuned.peak_memory_bytes - whole.peak_memory_bytes == found.prunable_parameters, "the mask"

    def test_devices_share_what_a_training_holds(
        self, save_model: SaveModel, sources: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Weights, gradients, moments, ELSA's copies in parts; each has a block whole, what is outside of blocks, and
        the inputs that least squares see."""
        save_model("tiny", LlamaConfig(**SIZES | {"hidden_size": 256, "intermediate_size": 2048}))

        def peak(method: str, devices: int, target: str = "weight/unstructured", **changes: Any) -> int:
            units, name = target.split("/")
            text = {"batch": 4, "sequence_length": 128, "distill": None}
            parts = {"train": training(method, **text | changes), "compute": {"devices": devices}}
            return plan(spec_of(score=None, calibrate=None, **parts, **TARGETS[units][name]), sources).peak_memory_bytes

        found = plan(spec_of(**GRADUAL), sources)
        parameters, prunable = found.parameters, found.prunable_parameters
        whole = 4 * (parameters - found.prunable_parameters * 2 // 3)
        of_windows = peak("gradual", 1) - peak("gradual", 1, batch=2)
        assert peak("gradual", 1) - peak("gradual", 2) == 8 * parameters + prunable // 2 - whole + of_windows
        assert peak("elsa", 1) - peak("gradual", 1) == 8 * prunable
        assert peak("elsa", 2) - peak("gradual", 2) == 4 * prunable
        taught = [peak("gradual", devices, distill={}) - peak("gradual", devices) for devices in (1, 2)]
        assert taught[0] == 2 * (taught[1] - whole), "the dense model and its predictions"
        for devices in (1, 2):
            by_variant = [peak("efficient_llm", devices, "head/uniform", variant=variant) for variant in "AB"]
            assert by_variant[1] - by_variant[0] == 4 * 3 * (256**2 + 2048**2)
        monkeypatch.setattr(GradualParams, "divides", False)
        assert peak("gradual", 2) == peak("gradual", 1)

    def test_windows_that_devices_cannot_share(self, monkeypatch: pytest.MonkeyPatch) -> None:
        three = GRADUAL | {"train": training("gradual", batch=3), "compute": {"devices": 2}}
        with pytest.raises(ValidationError, match=r"multiple of 2 for `train\.batch`"):
            spec_of(**three)
        monkeypatch.setattr(GradualParams, "divides", False)
        assert spec_of(**three).compute.devices == 2

    def test_elsa_whose_sparse_copies_come_too_late_is_warned_of(self, tiny: Path, sources: Sources) -> None:
        def warned(**changes: Any) -> bool:
            parts = GRADUAL | {"train": training("elsa", **changes)}
            return any("no sparse copy" in warning for warning in plan(spec_of(**parts), sources).warnings)

        assert [warned(interval=count) for count in (2, 5, 6, 32)] == [False, False, True, True]
        assert warned(interval=3, settle=0.5)

    def test_the_time_of_masks_that_are_tried_counts_the_teacher(self, tiny: Path, sources: Sources) -> None:
        def elapsed(**changes: Any) -> float:
            parts = TARGETS["head"]["uniform"] | {"train": training("policy_gradient", steps=10_000, **changes)}
            return plan(spec_of(score=None, calibrate=None, **parts), sources).elapsed_s

        assert elapsed(distill={}) > 1.5 * elapsed()

    def test_a_text_that_is_too_short_names_the_field(self, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        (sources.data_dir / "short.txt").write_text((EXAMPLES / "data/heldout.txt").read_text()[:300])
        with pytest.raises(Exception, match=r"the text has \d+") as found:
            run(GRADUAL | {"train": training("gradual", dataset="short.txt")}, sources, tmp_path)
        assert getattr(found.value, "field", "").startswith("/train")

    def test_a_stored_spec_gives_the_same_job(self) -> None:
        spec = spec_of(**GRADUAL)
        assert type(spec).model_validate_json(json.dumps(spec.model_dump(mode="json"))).digest() == spec.digest()
