"""Tuning: what is trained on, when it stops, what ships, and that a kill costs nothing but time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig

from tests.helpers.mixtures import save
from tests.helpers.small_models import SIZES, SaveModel, load, spec_of
from tests.helpers.tuning import Folder, Killed, dying, halved, saving_every_step, tuning, weights
from workers.engine.errors import (
    DatasetNotFound,
    DatasetTooShort,
    EngineError,
    InvalidSpec,
    MemoryBudgetTooSmall,
    NumericalFailure,
    SequenceTooLong,
)
from workers.engine.events import Silent
from workers.engine.model.loaded import load_model
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.registry import methods
from workers.engine.report import Report
from workers.engine.sources.resolve import Sources
from workers.engine.stages import tune as tune_stage
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.training import loop
from workers.engine.training.losses import distillation, predictions
from workers.engine.training.text import Domain, TuningText, training_text

METHODS = [method.name for method in methods("tune")]
CUT = {"method": "structured", "sparsity": 0.35, "compensate": False}
DROPPED = {"method": "depth", "layers": 1}
GATE = "model.layers.0.block_sparse_moe.gate.weight"
RANKING = {"method": "ranking"}


class Lines(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.losses: list[tuple[int, float | None]] = []
        self.resumed: list[tuple[int, str]] = []

    def log(self, message: str, level: str = "info") -> None:
        self.lines.append(message)

    def progress(self, done: int, total: int, unit: str, loss: float | None = None) -> None:
        if unit == "step":
            self.losses.append((done, loss))

    def resume(self, index: int, unit: str = "block") -> None:
        self.resumed.append((index, unit))


class TestText:
    def text(self, sources: Sources, **changes: Any) -> tuple[TuningText, Any]:
        spec = spec_of(tune=tuning("full", **changes))
        text = training_text("tune", spec.tune, load(spec, sources), sources)
        assert text is not None
        return text, spec.tune

    def test_no_window_is_in_both_parts(self, tiny: Path, sources: Sources) -> None:
        text, _ = self.text(sources)
        assert (len(text.holdout_NT), len(text.domains[0].train_NT)) == (4, 6 * 3)
        # One text, cut: what is held out comes first, and the rest begins where it ends.
        longer, _ = self.text(sources, sequence_length=64, holdout=2, steps=3)
        assert torch.equal(text.holdout_NT.flatten(), longer.holdout_NT.flatten())
        assert torch.equal(text.domains[0].train_NT[:].flatten(), longer.domains[0].train_NT[:].flatten())

    def test_what_is_held_out_does_not_depend_on_the_steps(self, tiny: Path, sources: Sources) -> None:
        assert torch.equal(self.text(sources)[0].holdout_NT, self.text(sources, steps=50)[0].holdout_NT)

    def test_every_epoch_reads_every_window_once_in_its_own_order(self, tiny: Path, sources: Sources) -> None:
        text, params = self.text(sources, batch=4, steps=9)
        text = TuningText((Domain(text.domains[0].train_NT[:6], text.holdout_NT),), text.label)
        found = [text.batch(params, step) for step in range(9)]
        assert all(batch.shape == (4, 32) for batch in found)
        epochs = torch.cat(found).view(6, 6, 32)  # 9 batches of 4 are 6 epochs of 6
        number = {tuple(window.tolist()): index for index, window in enumerate(text.domains[0].train_NT[:])}
        orders = [[number[tuple(window.tolist())] for window in epoch] for epoch in epochs]
        assert all(sorted(order) == list(range(6)) for order in orders)
        assert len({tuple(order) for order in orders}) > 1
        assert torch.equal(text.batch(params, 7), found[7])

    def test_too_short_is_refused_before_any_work(self, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        (sources.data_dir / "short.txt").write_text("It is a truth universally acknowledged. " * 20)
        spec = spec_of(tune=tuning("full", dataset="short.txt", batch=16))
        with pytest.raises(DatasetTooShort, match="20 windows of 32 tokens") as found:
            compress(spec, tmp_path, sources, Silent(), tmp_path / "checkpoint")
        assert found.value.field == "/tune"
        assert not list((tmp_path / "checkpoint").glob("blocks-*"))


class TestWhatShips:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_run_ends_in_a_model_that_was_trained_and_holds_its_zeros(self, method: str, pruned: Folder) -> None:
        events = Lines()
        report, folder = pruned.tune("run", events, tune=tuning(method, learning_rate=3e-3))
        before, after = weights(pruned.model), weights(folder)
        assert list(before) == list(after)
        for name in before:
            if "proj" in name:
                assert torch.equal(before[name] == 0, after[name] == 0), name
        assert report.holdout_loss_after < report.holdout_loss_before
        assert [point.step for point in report.curve] == [0, 2, 4, 6]
        assert [step for step, _ in events.losses] == list(range(7))
        assert all(loss is not None and loss > 0 for step, loss in events.losses if step)
        assert report.holdout_loss_after == min(point.holdout_loss for point in report.curve)
        assert report.tokens_per_s > 0
        # The files are what was measured: float32, so nothing was rounded.
        model = load_model(folder, torch.device("cpu"), torch.float32)
        spec = spec_of(tune=tuning(method))
        ids_NT = pruned.text(spec, load(spec, pruned.sources)).holdout_NT
        with torch.no_grad():
            loss = model(input_ids=ids_NT, labels=ids_NT).loss.item()
        assert loss == pytest.approx(report.holdout_loss_after, rel=1e-5)

    def test_the_best_state_ships_not_the_last(self, pruned: Folder) -> None:
        # So fast that the loss rises from the first look on: the model as it was is the best.
        report, folder = pruned.tune("run", tune=tuning("full", learning_rate=1.0, warmup_steps=0))
        assert report.best_step == 0
        assert report.steps == 6
        assert report.curve[-1].holdout_loss > report.holdout_loss_after == report.holdout_loss_before
        assert (folder / "model.safetensors").read_bytes() == (pruned.model / "model.safetensors").read_bytes()

    def test_stops_when_patience_is_at_an_end(self, pruned: Folder) -> None:
        params = tuning("full", learning_rate=1.0, warmup_steps=0, steps=40, patience=2)
        report, _ = pruned.tune("run", tune=params)
        assert (report.stopped_early, report.steps, report.best_step) == (True, 4, 0)
        patient, _ = pruned.tune("patient", tune=tuning("full", learning_rate=1e-3, patience=1))
        assert (patient.stopped_early, patient.steps) == (False, 6)

    def test_frozen_layers_keep_their_bytes(self, pruned: Folder) -> None:
        _, folder = pruned.tune("run", tune=tuning("last_layers", blocks=1, learning_rate=1e-2))
        before, after = weights(pruned.model), weights(folder)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {n for n in before if n.startswith(("model.layers.2.", "model.norm.", "lm_head."))}

    def test_a_tied_head_is_trained_only_with_its_embedding(
        self, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        save_model("tied", LlamaConfig(**SIZES, tie_word_embeddings=True))
        parts: dict[str, Any] = {"model": {"id": "tied"}}
        folder = Folder(sources, halved(sources.models_dir / "tied", tmp_path / "pruned"), tmp_path)
        before = weights(folder.model)
        for tied_head in ("frozen", "joint"):
            params = tuning("last_layers", tied_head=tied_head, learning_rate=1e-2)
            after = weights(folder.tune(tied_head, tune=params, **parts)[1])
            name = "model.embed_tokens.weight"
            assert torch.equal(before[name], after[name]) == (tied_head == "frozen")
            assert before.keys() == after.keys()
        assert any("tied" in line for line in plan(spec_of(tune=tuning("last_layers"), **parts), sources).warnings)

    def test_what_computes_in_half_precision_keeps_what_is_stored_in_full(self, pruned: Folder) -> None:
        parts = {"compute": {"dtype": "bfloat16", "device": "cpu"}}
        for method in METHODS:
            slow, _ = pruned.tune(method, tune=tuning(method, learning_rate=1e-2), **parts)
            assert slow.holdout_loss_after < slow.holdout_loss_before, method
        params = tuning("full", learning_rate=1.0, warmup_steps=0)
        report, folder = pruned.tune("fast", tune=params, **parts)
        assert report.best_step == 0
        assert (folder / "model.safetensors").read_bytes() == (pruned.model / "model.safetensors").read_bytes()

    def test_smaller_passes_and_recomputed_activations_train_alike(
        self, pruned: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        params = tuning("lora", learning_rate=1e-2, dropout=0)
        expected, _ = pruned.tune("whole", tune=params)
        recomputed, _ = pruned.tune("recomputed", tune=params | {"gradient_checkpointing": True})
        assert recomputed.holdout_loss_after == pytest.approx(expected.holdout_loss_after, rel=1e-6)
        monkeypatch.setattr(tune_stage, "trained_at_once", lambda *_: 2)
        parts, _ = pruned.tune("parts", tune=params)
        assert parts.holdout_loss_after == pytest.approx(expected.holdout_loss_after, rel=1e-5)


@pytest.mark.parametrize(
    "params",
    [
        *(tuning(name) for name in METHODS),
        tuning("lora", distill={"weight": 0.3, "top_k": 16}, patience=1, weight_decay=0.1),
    ],
    ids=[*METHODS, "distilled"],
)
def test_killed_and_resumed_to_the_same_bytes(
    params: dict[str, Any], pruned: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, whole = pruned.tune("whole", tune=params)
    saving_every_step(monkeypatch)
    for fatal in (1, 2):  # after a look at the held-out windows, and between two
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save_training", dying(Checkpoint.save_training, fatal))
            with pytest.raises(Killed):
                pruned.tune(f"killed-{fatal}", tune=params)
        torch.manual_seed(99)  # another process has another state
        events = Lines()
        report, folder = pruned.tune(f"killed-{fatal}", events, tune=params)
        assert events.resumed == [(fatal + 1, "step")]
        assert report.resumed_step == fatal + 1
        assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        same = {"tokens_per_s", "peak_memory_bytes", "resumed_step"}
        assert report.model_dump(exclude=same) == expected.model_dump(exclude=same)
    assert (whole / "model.safetensors").read_bytes() != (pruned.model / "model.safetensors").read_bytes()


class TestMixtures:
    """transformers holds the matrices of all experts in one tensor, files one by one."""

    PARTS: ClassVar[dict[str, Any]] = {"model": {"id": "mixture"}}

    @pytest.fixture
    def mixture(self, sources: Sources, tmp_path: Path) -> Folder:
        model = save("mixtral", sources.models_dir / "mixture")
        return Folder(sources, halved(model, tmp_path / "pruned"), tmp_path)

    def test_lora_is_resumed_to_the_same_bytes(self, mixture: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        parts = self.PARTS | {"tune": tuning("lora", learning_rate=1e-2)}
        report, folder = mixture.tune("whole", **parts)
        assert report.holdout_loss_after < report.holdout_loss_before
        before, after = weights(mixture.model), weights(folder)
        of_experts = [name for name in before if ".experts." in name]
        assert len(of_experts) == 2 * 8 * 3
        for name in of_experts:
            assert torch.equal(before[name] == 0, after[name] == 0), name
            assert not torch.equal(before[name], after[name]), name
        assert torch.equal(before[GATE], after[GATE]), "routers are left alone"
        saving_every_step(monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save_training", dying(Checkpoint.save_training, 2))
            with pytest.raises(Killed):
                mixture.tune("killed", **parts)
        resumed, again = mixture.tune("killed", **parts)
        assert resumed.resumed_step == 3
        assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()

    @pytest.mark.parametrize("method", ["full", "lora"])
    def test_what_computes_in_half_precision_keeps_what_is_stored_in_full(self, method: str, mixture: Folder) -> None:
        parts = self.PARTS | {"compute": {"dtype": "bfloat16", "device": "cpu"}}
        report, folder = mixture.tune("run", tune=tuning(method, learning_rate=1e-2), **parts)
        assert report.holdout_loss_after < report.holdout_loss_before
        before, after = weights(mixture.model), weights(folder)
        assert all(torch.equal(before[name] == 0, after[name] == 0) for name in before if ".experts." in name)
        if method == "full":
            report, folder = mixture.tune("fast", tune=tuning(method, learning_rate=1.0, warmup_steps=0), **parts)
            assert report.best_step == 0
            assert (folder / "model.safetensors").read_bytes() == (mixture.model / "model.safetensors").read_bytes()


def test_a_job_goes_on_behind_its_tuning_and_counts_what_is_written(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(
        tune=tuning("lora"),
        evaluate=[{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 32, "samples": 4}],
    )

    def run() -> Report:
        return compress(spec, tmp_path / "job", sources, Silent(), tmp_path / "checkpoint")

    first = run()
    assert first.tune is not None
    tuned = (tmp_path / "job/model/model.safetensors").read_bytes()
    counted = sum(
        int((tensor == 0).sum()) for name, tensor in weights(tmp_path / "job/model").items() if "proj" in name
    )
    assert first.zeros == counted == sum(layer.zeros for layer in first.layers)
    assert any(label == "tune/calibration.txt" for label in first.provenance.data_digests)
    assert "tune" in [stage.stage for stage in first.stages]
    saved = Checkpoint(tmp_path / "checkpoint").load_training("tuning")
    assert saved is not None
    assert {name.partition("/")[0] for name in saved[0]} == {"best"}, "of a finished training only what ships is kept"

    def fail(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(loop.Loop, "_step", fail)
    again = run()
    assert again.tune is not None
    assert again.tune.resumed_step == 6
    assert (tmp_path / "job/model/model.safetensors").read_bytes() == tuned
    assert again.tune.tokens_per_s is None, "an earlier attempt trained, perhaps on another machine"
    assert [metric.model_copy(update={"resumed": False}) for metric in again.metrics] == first.metrics


def divergence(
    logits_BTV: torch.Tensor, dense_BTV: torch.Tensor, temperature: float, top_k: int | None = None
) -> torch.Tensor:
    return distillation(logits_BTV, predictions(dense_BTV, temperature, top_k), temperature)


def two_models(vocabulary: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(3 * torch.randn(2, 5, vocabulary, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


class TestDistillation:
    def test_is_zero_for_identical_models_and_right_by_hand(self) -> None:
        logits_BTV, _ = two_models()
        assert divergence(logits_BTV, logits_BTV, 2.0).item() == pytest.approx(0, abs=1e-7)
        # Of one prediction: a half each against a quarter and three; the last token's counts for nothing.
        quarter = torch.tensor([[[0.0, math.log(3)], [5.0, 0.0]]])
        expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
        assert divergence(quarter, torch.zeros(1, 2, 2), 1.0).item() == pytest.approx(expected)
        # At temperature 2 the quarter's logit is log 3 / 2.
        odds = 1 / (1 + 3**0.5)
        expected = 4 * (0.5 * math.log(0.5 / odds) + 0.5 * math.log(0.5 / (1 - odds)))
        assert divergence(quarter, torch.zeros(1, 2, 2), 2.0).item() == pytest.approx(expected)

    def test_compares_the_likeliest_tokens_and_the_rest_by_hand(self) -> None:
        # The dense model's likeliest has 3/6, the others 2/6 and 1/6 together a half; the trained model's 1/4 and 3/4.
        dense = torch.tensor([[[2.0, 3.0, 1.0], [0.0, 0.0, 0.0]]]).log()
        trained = torch.tensor([[[2.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]).log()
        expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
        assert divergence(trained, dense, 1.0, top_k=1).item() == pytest.approx(expected)

    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_of_more_tokens_is_nearer_to_the_whole_and_never_above(self, temperature: float) -> None:
        trained, dense = two_models()
        some = [divergence(trained, dense, temperature, top_k).item() for top_k in (1, 2, 5, 20, 39)]
        whole = divergence(trained, dense, temperature).item()
        assert some == sorted(some)
        # Of one token left over, the rest is that token. Float32 takes its probability from a difference with 1.
        assert some[-1] == pytest.approx(whole, rel=1e-5)
        assert divergence(trained, dense, temperature, top_k=40).item() == whole

    def test_has_the_gradient_of_the_shortened_distributions(self) -> None:
        trained, dense = two_models(6)
        trained.requires_grad_()
        divergence(trained, dense, 1.0, top_k=2).backward()
        given, trained.grad = trained.grad, None
        kept = dense[:, :-1].topk(2).indices
        total = torch.zeros(())
        for window in range(2):
            for at in range(4):
                p, q = dense[window, at].softmax(0), trained[window, at].softmax(0)
                first, second = kept[window, at].tolist()
                for of_dense, of_trained in (
                    (p[first], q[first]), (p[second], q[second]), (1 - p[first] - p[second], 1 - q[first] - q[second])
                ):  # fmt: skip
                    total = total + of_dense * (of_dense / of_trained).log() / 8
        total.backward()
        assert given is not None
        assert trained.grad is not None
        torch.testing.assert_close(given, trained.grad, rtol=1e-4, atol=1e-6)

    def test_is_finite_where_either_model_is_sure(self) -> None:
        sure, unsure = torch.zeros(1, 2, 9), torch.zeros(1, 2, 9)
        sure[..., 3] = 100
        for trained, dense in ((sure, unsure), (unsure, sure), (sure, sure.roll(1, dims=2))):
            trained = trained.clone().requires_grad_()
            loss = divergence(trained, dense, 1.0, top_k=2)
            loss.backward()
            assert loss.isfinite()
            assert trained.grad is not None
            assert trained.grad.isfinite().all()

    def test_an_unpruned_model_has_nothing_to_learn_from_itself(
        self, tiny: Path, sources: Sources, tmp_path: Path
    ) -> None:
        # lr 1 would wreck it within a step; only the gradient of the distance is zero.
        params = tuning("full", distill={"weight": 1.0}, learning_rate=1e-3, weight_decay=0.0)
        events = Lines()
        Folder(sources, tiny, tmp_path).tune("run", events, tune=params)
        assert events.losses[1][1] == pytest.approx(0, abs=1e-6)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"steps": 0}, "steps"),
            ({"batch": 0}, "batch"),
            ({"learning_rate": 0}, "learning_rate"),
            ({"learning_rate": math.inf}, "learning_rate"),
            ({"holdout": 0}, "holdout"),
            ({"warmup_steps": 6}, "warm-up"),
            ({"distill": {"weight": 0}}, "weight"),
            ({"distill": {"top_k": 0}}, "top_k"),
            ({"dataset": None}, "dataset"),
            ({"method": "group", "bits": 5}, "`bits` is 2, 4, 8, or 16"),
            ({"method": "group", "bits": 1}, "bits"),
        ],
    )
    def test_by_the_spec(self, changes: dict[str, Any], field: str) -> None:
        with pytest.raises(ValidationError, match=field):
            spec_of(tune=tuning("full") | changes)

    @pytest.mark.parametrize(
        ("params", "error", "field"),
        [
            (tuning("group", group_size=32), InvalidSpec, "/tune/group_size"),
            (tuning("last_layers", blocks=4), InvalidSpec, "/tune/blocks"),
            (tuning("full", sequence_length=129), SequenceTooLong, "/tune/sequence_length"),
            (tuning("full", dataset="none.txt"), DatasetNotFound, "/tune/dataset"),
        ],
    )
    def test_by_the_plan_as_by_the_job(
        self, params: dict[str, Any], error: type[EngineError], field: str, tiny: Path, sources: Sources
    ) -> None:
        for refusing in (plan, load):
            with pytest.raises(error) as found:
                refusing(spec_of(tune=params), sources)
            assert found.value.field == field
            assert found.value.hint

    @pytest.mark.parametrize(
        ("tune", "parts", "field"),
        [
            ("group", {"score": {"method": "magnitude"}, "prune": CUT}, "/tune/group_size"),
            ("group", {"score": {"method": "magnitude"}, "prune": CUT, "allocate": RANKING}, "/prune/channel_multiple"),
            ("last_layers", {"score": {"method": "reverse_order"}, "prune": DROPPED}, "/tune/blocks"),
        ],
    )
    def test_by_the_shapes_of_the_result(
        self, tune: str, parts: dict[str, Any], field: str, tiny: Path, sources: Sources
    ) -> None:
        params = tuning(tune, **({"blocks": 3} if tune == "last_layers" else {"group_size": 16}))
        for refusing in (plan, load):
            with pytest.raises(InvalidSpec) as found:
                refusing(spec_of(tune=params, **parts), sources)
            assert found.value.field == field
        if tune == "group":
            parts = parts | {"prune": CUT | {"channel_multiple": 16}}
        else:
            params = params | {"blocks": 2}
        assert plan(spec_of(tune=params, **parts), sources).warnings is not None

    def test_memory_is_planned_and_bounded(self, tiny: Path, sources: Sources) -> None:
        def peak(**parts: Any) -> int:
            return plan(spec_of(**parts), sources).peak_memory_bytes

        params = tuning("full", batch=64, sequence_length=128)
        pruning, tuned = peak(), peak(tune=params)
        assert tuned > pruning
        assert peak(tune=params | {"gradient_checkpointing": True}) < tuned
        assert tuned < peak(tune=params | {"distill": {"top_k": 8}}) < peak(tune=params | {"distill": {}})
        assert peak(tune=params | {"method": "last_layers", "blocks": 1}) < tuned
        assert peak(tune=params, compute={"memory_budget": tuned - 1}) < tuned, "fewer windows at once"
        budget = {"memory_budget": max(pruning, 2**29)}
        for distill in (None, {}):
            params = tuning("full", batch=1, sequence_length=128, distill=distill)
            with pytest.raises(MemoryBudgetTooSmall, match="full trains the whole model") as found:
                plan(spec_of(tune=params, compute=budget), sources)
            assert found.value.field == "/tune"
            assert ("`distill` null" in found.value.hint) == (distill is not None), (
                "the dense model takes as much again"
            )

    def test_the_dense_model_teaches_unless_the_text_is_to(self) -> None:
        for method in METHODS:
            parsed = spec_of(tune={"method": method, "dataset": "calibration.txt"}).tune
            assert parsed is not None
            assert parsed.distill is not None
            assert (parsed.distill.weight, parsed.distill.temperature) == (1, 1)

    def test_time_is_planned(self, tiny: Path, sources: Sources) -> None:
        def elapsed(**changes: Any) -> float:
            return plan(spec_of(tune=tuning("lora", **changes)), sources).elapsed_s

        assert plan(spec_of(), sources).elapsed_s < elapsed() < elapsed(steps=600) < elapsed(steps=600, distill={})

    def test_a_loss_that_is_no_number_names_the_rate(self, pruned: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "loss_on_windows", lambda logits, ids: logits.sum() * math.nan)
        with pytest.raises(NumericalFailure, match="step 1 of tuning: the loss is nan") as found:
            pruned.tune("run", tune=tuning("full"))
        assert found.value.field == "/tune/learning_rate"
        assert "lower `learning_rate`, 0.0003 now" in found.value.hint

    def test_what_does_not_fit_the_stored_type_is_named(self, pruned: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        load_model(pruned.model, torch.device("cpu"), torch.float16).save_pretrained(pruned.model)
        monkeypatch.setattr(torch.optim, "AdamW", Leaping)
        # Only what ships is out of range, and the loss has not seen it.
        largest = lambda model, ids_BT: -next(model.parameters()).double().abs().max().expand(len(ids_BT))  # noqa: E731
        monkeypatch.setattr(loop, "nll", largest)
        with pytest.raises(NumericalFailure, match="beyond the range of F16") as found:
            pruned.tune("run", tune=tuning("full", steps=1))
        assert found.value.field == "/package/dtype"


class Leaping(torch.optim.AdamW):
    """Goes beyond what 16 bits hold."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(1e6)


def test_perplexity_falls_on_a_real_model(examples: Sources, tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "model": {"id": "bookworm-7m"},
        "calibrate": {"dataset": "calibration.txt", "samples": 4, "sequence_length": 128},
        "prune": {"method": "mask", "sparsity": 0.7},
    }
    params = {"method": "full", "dataset": "calibration.txt", "steps": 10, "batch": 4, "sequence_length": 128}
    spec = spec_of(**parts, tune=params | {"holdout": 8, "evaluate_every": 10, "distill": None})
    report = compress(spec, tmp_path, examples, Silent(), tmp_path / "checkpoint")
    assert report.tune is not None
    assert math.exp(report.tune.holdout_loss_after) < 0.95 * math.exp(report.tune.holdout_loss_before)
    assert report.zeros == plan(spec, examples).zeros_after
    card = (tmp_path / "model/README.md").read_text()
    assert "Then full trained 6,951,168 parameters for 10 steps of 4 x 128 tokens of calibration.txt." in card
