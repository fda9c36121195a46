"""Tune: train the assembled model and write the result over the files it was read from.

The whole model is loaded from its folder, however it was pruned. Every attempt assembles that folder anew, from the
checkpoint and to the same bytes, so a resume point holds the training alone. The order of the windows and the dropout
of a step follow from the seed and the step, so a resumed run ends in the same bytes. Tensors that were not trained keep
theirs, and zeros that pruning left stay zeros. B = windows, T = tokens of one.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grad_norm_

from workers.engine.checks.tuned import TunedTraces, tuned_traces
from workers.engine.contracts.needed import needed
from workers.engine.errors import NumericalFailure
from workers.engine.files.tensors import overwrite, read_tensor
from workers.engine.maths.selection import finite
from workers.engine.model.loaded import described, load_model
from workers.engine.model.loss import next_token_loss, nll
from workers.engine.model.memory import give_back
from workers.engine.model.repeatable import Repeatable
from workers.engine.model.views import held
from workers.engine.planning.predictions import tuned_at_once
from workers.engine.registry import method_of
from workers.engine.removals.base import removal_of
from workers.engine.report import TunePoint, TuneReport
from workers.engine.store.clock import peak_resident_bytes
from workers.engine.training.losses import distillation
from workers.engine.training.schedule import rate_schedule
from workers.engine.training.state import TuningState, captured, restored

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from workers.engine.contracts.facts import Trainable
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.run import Run
    from workers.engine.training.text import TuningText

CHECKPOINT_S = 60.0
"""Least time between resume points."""
MAX_GRADIENT_NORM = 1.0
"""The gradient of all trained parameters is scaled down to this norm, as in transformers' Trainer by default."""
_CURVE_POINTS = 100


def tune(
    spec: CompressionSpec,
    dense: LoadedModel,
    folder: Path,
    text: TuningText,
    run: Run,
    window_T: Tensor,
    new: Sequence[int] = (),
) -> tuple[TuneReport, TunedTraces]:
    """Train the model in `folder`, and store the state with the lowest held-out loss in it. `dense`: the dense model;
    `new`: the blocks that were added to it, by their numbers in the result.

    Also returns the traces of that state on a window of token ids [T]. Raises NumericalFailure where a loss is not
    finite, InvalidSpec where the pruned model does not fit the method.
    """
    training = _Training(spec, dense, folder, text, run, new)
    if not training.state.ended:
        training.train()
    training.take_best()
    traces = tuned_traces(training.model, training.trainable, dense, folder, window_T)
    training.write()
    return training.report(), traces


class _Training:
    def __init__(
        self,
        spec: CompressionSpec,
        dense: LoadedModel,
        folder: Path,
        text: TuningText,
        run: Run,
        new: Sequence[int],
    ) -> None:
        """Prepare the model, and restore the last resume point, if there is one."""
        self.params, self.dense, self.text = needed(spec.tune, "/tune"), dense, text
        self.checkpoint, self.events = run.checkpoint, run.events
        self.at_once = tuned_at_once(spec, dense.source, dense.architecture)
        architecture, self.slices = described(folder)
        self.architecture = replace(architecture, new_blocks=frozenset(new))
        self.model: PreTrainedModel = load_model(folder, dense.device, dense.dtype)
        self.teacher: PreTrainedModel | None = None
        self.best: dict[str, Tensor] = {}
        self.repeatable = Repeatable(dense.device)
        self.resumed_step, self.seconds = 0, 0.0  # of steps done here: no time of another attempt is reported

        found = self.checkpoint.load_tuning()
        before = math.nan
        if found is None:
            before = self._weighed(self._holdout_losses(f"/{spec.editor.stage}", removal_of(spec).gentler))
        self.trainable = self._prepared()
        self.optimizer = torch.optim.AdamW(
            list(self.trainable.parameters.values()),
            lr=self.params.learning_rate,
            weight_decay=self.params.weight_decay,
        )
        self.schedule = rate_schedule(self.optimizer, self.params)
        if found is None:
            self.state = TuningState(before)
            self._look()
        else:
            self.state, self.best = restored(*found, self.trainable.parameters, self.optimizer, self.schedule)
            self.resumed_step = self.state.step
            self.events.resume(self.resumed_step, "step")

    def train(self) -> None:
        """Train to the last step, or until the held-out loss has not fallen for `patience` evaluations."""
        params, state = self.params, self.state
        if params.distill is not None:
            self.teacher = load_model(self.dense.path, self.dense.device, self.dense.dtype).requires_grad_(False)
        saved = time.monotonic()
        self.events.progress(state.step, params.steps, "step")
        while not state.ended:
            started = time.perf_counter()
            loss = self._step()
            self.seconds += time.perf_counter() - started
            state.step += 1
            state.train_losses.append(loss)
            if state.step % params.look_every == 0 or state.step == params.steps:
                self._look()
                state.stopped_early = state.stale == params.patience and state.step < params.steps
            state.ended = state.step == params.steps or state.stopped_early
            self.events.progress(state.step, params.steps, "step", loss)
            if state.ended or time.monotonic() - saved >= CHECKPOINT_S:
                self._save()
                saved = time.monotonic()
        self.teacher = None

    def take_best(self) -> None:
        """Restore the state with the lowest held-out loss, after the last step."""
        self.model.eval()
        self.optimizer.zero_grad()
        self.optimizer.state.clear()
        for name, parameter in self.trainable.parameters.items():
            parameter.data.copy_(self.best[name])

    def write(self) -> None:
        """Write trained tensors into the folder's files, each rounded once to its stored type."""
        for name, piece in self.slices.items():
            stored = read_tensor(piece)
            exact = stored.to(self.dense.device, torch.float32)
            merged = self.trainable.merged(name, exact)
            if merged is exact:
                continue
            tensor = merged.to("cpu", stored.dtype).contiguous()
            if not finite(tensor):
                raise NumericalFailure(
                    f"{name} holds values beyond the range of {piece.facts.dtype} after tuning",
                    "package as float32 or bfloat16, or lower `learning_rate`",
                    field="/package/dtype",
                )
            overwrite(piece, tensor)

    def report(self) -> TuneReport:
        params, state, curve = self.params, self.state, self.state.curve
        every = -(-len(curve) // _CURVE_POINTS)
        shown = (state.best_step, state.step)
        tokens = (state.step - self.resumed_step) * params.batch * params.sequence_length
        device = self.dense.device
        return TuneReport(
            method=params.method,
            steps=state.step,
            stopped_early=state.stopped_early,
            best_step=state.best_step,
            holdout_loss_before=state.holdout_loss_before,
            holdout_loss_after=min(point["holdout_loss"] for point in curve),
            curve=[TunePoint(**point) for i, point in enumerate(curve) if i % every == 0 or point["step"] in shown],
            tokens_per_s=tokens / self.seconds if tokens else None,
            trained_parameters=sum(parameter.numel() for parameter in self.trainable.parameters.values()),
            train_windows=self.text.train_windows,
            holdout_windows=len(self.text.holdout_NT),
            peak_memory_bytes=peak_resident_bytes(),
            device_peak_memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            resumed_step=self.resumed_step,
        )

    def _prepared(self) -> Trainable:
        """The model, prepared by the method; trained parameters are float32, read from the stored values."""
        torch.manual_seed(self.params.seed)
        places = held(self.model, self.architecture)
        trainable: Trainable = method_of("tune", self.params).function(self.model, self.architecture, self.params)
        # The model's own were rounded to the compute type when it was loaded.
        rounded = {name: p for name, p in trainable.parameters.items() if p.dtype != torch.float32}
        for parameter in rounded.values():
            parameter.data = parameter.data.float()
        for name, at in places.items():
            if at.parameter in rounded and name in self.slices:
                at.write(rounded[at.parameter].data, read_tensor(self.slices[name]))
        if self.params.gradient_checkpointing:
            self.model.activation_checkpointing_enable()
        if self.dense.device.type == "cpu":
            # Loaded tensors may be mapped from the files, which will be overwritten.
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                tensor.data = tensor.data.clone()
        give_back()  # the pages, and weights that became codes
        return trainable

    def _step(self) -> float:
        """Update the trained parameters once; returns the loss before that."""
        params = self.params
        ids_BT = self.text.batch(params, self.state.step).to(self.dense.device, non_blocking=True)
        self.model.train()
        self.optimizer.zero_grad()
        losses = self.repeatable.run(partial(self._gradients, ids_BT), self.model)
        norm_ = clip_grad_norm_(list(self.trainable.parameters.values()), MAX_GRADIENT_NORM)
        # The device is waited for once, when it has been given all of the step but the update.
        *parts, norm = torch.stack([*losses, norm_]).tolist()
        total = sum(parts)
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise NumericalFailure(
                f"step {self.state.step + 1} of tuning: the loss is {total}, the length of its gradient {norm}",
                f"lower `learning_rate`, {params.learning_rate:g} now, or raise `warmup_steps`",
                field="/tune/learning_rate",
            )
        self.optimizer.step()
        self.schedule.step()
        return total

    def _gradients(self, ids_BT: Tensor) -> list[Tensor]:
        """Fill the gradients of a step; returns the losses of its parts."""
        torch.manual_seed((self.params.seed << 24) + self.state.step + 1)  # dropout's
        losses = []
        for part_BT in ids_BT.split(self.at_once):
            with self._precision():
                loss = self._loss(part_BT) * (len(part_BT) / len(ids_BT))
            loss.backward()
            losses.append(loss.detach())
        return losses

    def _loss(self, ids_BT: Tensor) -> Tensor:
        logits_BTV = self.model(input_ids=ids_BT, use_cache=False).logits
        loss = next_token_loss(logits_BTV[:, :-1], ids_BT[:, 1:])
        distill = self.params.distill
        if self.teacher is None or distill is None:
            return loss
        with torch.no_grad():
            dense_BTV = self.teacher(input_ids=ids_BT, use_cache=False).logits
        from_dense = distillation(logits_BTV, dense_BTV, distill.temperature)
        return (1 - distill.weight) * loss + distill.weight * from_dense

    def _look(self) -> None:
        """Measure the held-out loss, and keep the trained parameters if it is the lowest so far."""
        state = self.state
        remedy = f"lower `learning_rate`, {self.params.learning_rate:g} now"
        losses = self._holdout_losses("/tune/learning_rate", remedy)
        loss = self._weighed(losses)
        train_loss = math.fsum(state.train_losses) / len(state.train_losses) if state.train_losses else None
        state.stale += 1
        if loss < min((point["holdout_loss"] for point in state.curve), default=math.inf):
            state.best_step, state.stale = state.step, 0
            self.best = {name: p.detach().to("cpu", copy=True) for name, p in self.trainable.parameters.items()}
        named = dict(zip((domain.name for domain in self.text.domains), losses, strict=True))
        domains = None if None in named else named
        state.curve.append({"step": state.step, "holdout_loss": loss, "train_loss": train_loss, "domains": domains})
        state.train_losses.clear()
        trained_on = "" if train_loss is None else f", training loss {train_loss:.4f}"
        of_domains = "".join(f", of {name} {of:.4f}" for name, of in (domains or {}).items())
        self.events.log(f"step {state.step} of {self.params.steps}: held-out loss {loss:.4f}{of_domains}{trained_on}")

    def _weighed(self, losses: Sequence[float]) -> float:
        """The loss of all domains, by their shares."""
        return math.fsum(domain.share * loss for domain, loss in zip(self.text.domains, losses, strict=True))

    def _holdout_losses(self, field: str, remedy: str) -> list[float]:
        """Of each domain, nats a token. Raises NumericalFailure, with that cause and remedy, if one is not finite."""
        self.model.eval()
        with torch.no_grad(), self._precision():
            parts = self.text.holdout_NT.to(self.dense.device).split(self.at_once)
            loss_N = torch.cat([nll(self.model, ids_BT) for ids_BT in parts])
            of_each = loss_N.split([len(domain.holdout_NT) for domain in self.text.domains])
            losses: list[float] = torch.stack([of_one.mean() for of_one in of_each]).tolist()
        if not all(map(math.isfinite, losses)):
            raise NumericalFailure(f"the held-out loss of tuning is {self._weighed(losses)}", remedy, field=field)
        return losses

    def _precision(self) -> AbstractContextManager[Any]:
        """Autocast, where activations have another compute type than the float32 parameters."""
        if self.dense.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.dense.device.type, self.dense.dtype)

    def _save(self) -> None:
        point = captured(self.state, self.best, self.trainable.parameters, self.optimizer, self.schedule)
        self.checkpoint.save_tuning(*point)
        self.events.checkpoint(self.state.step - 1, "step")
