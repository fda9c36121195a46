"""The training loop, for `tune` and `train`: steps, looks at the held-out loss, resume points.

The order of the windows and the random numbers of a step follow from the seed and the step, so that a resumed run ends
in the same bytes. What trains, and what else happens in a step, is the method's (`contracts/training.py`).
B = windows, T = tokens of one.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grad_norm_

from workers.engine.contracts.tuning_params import TRAININGS
from workers.engine.errors import CheckpointMismatch, NumericalFailure
from workers.engine.model.loss import loss_on_windows, nll
from workers.engine.model.memory import give_back
from workers.engine.model.repeatable import Repeatable
from workers.engine.training.losses import distillation, predictions
from workers.engine.training.points import TrainingPoints
from workers.engine.training.schedule import rate_schedule
from workers.engine.training.shards import kept, whole
from workers.engine.training.state import TrainingState, captured, restored
from workers.engine.training.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from workers.engine.contracts.training import Procedure
    from workers.engine.contracts.tuning_params import TrainingParams, Trains
    from workers.engine.store.run import Run
    from workers.engine.training.shards import Shards
    from workers.engine.training.state import Point
    from workers.engine.training.text import TuningText

_WRITING_SHARE = 20
"""A resume point is written at most once in so many times as long as the last took, unless all are to be kept."""
MAX_GRADIENT_NORM = 1.0
"""The gradient of all trained parameters is scaled down to this norm, as in transformers' Trainer by default."""


@dataclass(frozen=True)
class Setting:
    """Everything of a training but the model."""

    stage: Trains
    params: TrainingParams
    text: TuningText
    device: torch.device
    dtype: torch.dtype
    """Of forward passes."""
    at_once: int
    """Windows per forward and backward pass."""
    run: Run
    shards: Shards

    @property
    def points(self) -> TrainingPoints:
        return TrainingPoints(self.run.checkpoint, self.name, self.shards)

    @property
    def name(self) -> str:
        """Of the stage, as a noun, in messages and for its resume points."""
        return TRAININGS[self.stage]

    @property
    def rate(self) -> tuple[str, str]:
        """Where the learning rate stands in the spec, and the remedy that lowers it."""
        return f"/{self.stage}/learning_rate", f"lower `learning_rate`, {self.params.learning_rate:g} now"

    def holdout_losses(self, model: PreTrainedModel, field: str, remedy: str) -> list[float]:
        """Of each domain, nats a token. Raises NumericalFailure, with that cause and remedy, if one is not finite."""
        model.eval()
        mine_NT, count = self.shards.padded(self.text.holdout_NT)
        with torch.no_grad(), self.precision():
            parts = mine_NT.to(self.device).split(self.at_once)
            loss_N = self.shards.gathered(torch.cat([nll(model, ids_BT) for ids_BT in parts])[:count])
            of_each = loss_N.split([len(domain.holdout_NT) for domain in self.text.domains])
            losses: list[float] = torch.stack([of_one.mean() for of_one in of_each]).tolist()
        if not all(map(math.isfinite, losses)):
            raise NumericalFailure(f"the held-out loss of {self.name} is {self.weighed(losses)}", remedy, field=field)
        return losses

    def weighed(self, losses: Sequence[float]) -> float:
        """The loss of all domains, by their shares."""
        return math.fsum(domain.share * loss for domain, loss in zip(self.text.domains, losses, strict=True))

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast, where activations have another compute type than the float32 parameters."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


class Loop:
    """The training of one model by one method."""

    def __init__(
        self,
        setting: Setting,
        model: PreTrainedModel,
        procedure: Procedure,
        found: Point | None,
        before: float,
        *,
        keeps_best: bool,
    ) -> None:
        """Begin, or restore the resume point that was `found`. `before`: held-out loss of the model as it was.
        `keeps_best`: whether the state with the lowest held-out loss is kept beside the present one."""
        self.setting, self.model, self.procedure, self.keeps_best = setting, model, procedure, keeps_best
        self.params, self.events = setting.params, setting.run.events
        self.best: dict[str, Tensor] = {}
        self.resumed_step, self.seconds = 0, 0.0  # of steps done here: no time of another attempt is reported
        self._repeatable = Repeatable(setting.device)
        self._teacher: PreTrainedModel | None = None
        self._written, self._writing_s = 0.0, 0.0  # when a resume point was written last, and how long that took
        shards, masks = setting.shards, procedure.masks if setting.shards.divided else {}
        self._masks = {name: shards.like(procedure.parameters[name], mask) for name, mask in masks.items()}
        adamw = _eight_bit() if self.params.eight_bit else partial(torch.optim.AdamW, fused=True)
        self._optimizer = procedure.optimizer(adamw, self.params.learning_rate, self.params.weight_decay)
        self._schedule = rate_schedule(self._optimizer, setting.params)
        if found is None:
            self.state = TrainingState(before)
            self._look()
        else:
            self.state, self.best = restored(found, procedure, self._optimizer, self._schedule)
            self.resumed_step = self.state.step
            self.events.resume(self.resumed_step, "step")
            self._read_again()

    def run(self, load_teacher: Callable[[], PreTrainedModel], patience: int | None = None) -> None:
        """Train to the last step, or until the held-out loss has not fallen for `patience` evaluations."""
        params, state = self.params, self.state
        if state.ended:
            return
        if params.distill is not None:
            self._teacher = load_teacher().requires_grad_(False)
        if state.turns is None:
            state.turns = self._first_turns(lambda: self._teacher or load_teacher())
        self._written = time.monotonic()
        self.events.progress(state.step, params.steps, "step")
        with self.setting.text.reading():
            while not self._ends(patience):
                pass
        if (waited_s := self.setting.text.waited_s) > 1:
            self.events.log(f"{self.setting.name} waited {waited_s:.0f} s for its text to be read")
        self._teacher = None

    def _ends(self, patience: int | None) -> bool:
        """Do a step, with the look and the resume point that are due after it; whether it was the last."""
        params, state = self.params, self.state
        started = time.perf_counter()
        loss, due = self._step()
        self.seconds += time.perf_counter() - started
        state.step += 1
        state.train_losses.append(loss)
        if state.step % params.look_every == 0 or state.step == params.steps:
            self._look()
            state.stopped_early = state.stale == patience and state.step < params.steps
        state.ended = state.step == params.steps or state.stopped_early
        self.events.progress(state.step, params.steps, "step", loss)
        if state.ended or due:
            self._save()
        return state.ended

    def _read_again(self) -> None:
        """Read the text as far as the steps of the resume point have. Raises CheckpointMismatch where it is another."""
        text, state, name = self.setting.text, self.state, self.setting.name
        if state.text:
            self.events.log(f"the text of {name} is read again as far as the {state.step} steps have read it")
        with text.reading():
            found = text.reach(text.taken(self.params, state.step, state.turns), self.setting.shards.ranks)
        if found != state.text:
            raise CheckpointMismatch(
                f"the text of {name} is another one than the {state.step} steps of the resume point have read",
                "put back the text as it was, or run with an empty checkpoint directory to start over",
                field=f"/{self.setting.stage}/dataset",
            )

    def _first_turns(self, load_dense: Callable[[], PreTrainedModel]) -> Turns | None:
        """The domains' turns at the beginning, where their shares follow their losses."""
        domains, text = self.params.domains, self.setting.text
        if domains is None or domains.dynamic is None:
            return None
        if domains.dynamic.reference is not None:
            references = [domains.dynamic.reference[name] for name in domains.shares]
        else:
            references = self.setting.holdout_losses(load_dense(), "/model/id", "check the dense model")
            give_back()
        return Turns(references, [domain.share for domain in text.domains])

    def end(self) -> None:
        """Free what only further steps need, and take the best state where it is kept."""
        self.model.eval()
        self._optimizer.zero_grad()
        self._optimizer.state.clear()
        for name, best in self.best.items():
            self.procedure.parameters[name].data.copy_(best)
        self.best, self._masks = {}, {}

    @property
    def tokens_per_s(self) -> float | None:
        """Of the steps done here; None where there were none."""
        tokens = (self.state.step - self.resumed_step) * self.params.batch * self.params.sequence_length
        return tokens / self.seconds if tokens else None

    def _step(self) -> tuple[float, bool]:
        """Update the trained parameters once; returns the loss before that, and whether a resume point is due. Both are
        the same on all ranks: they go the way of the loss, so that no message is sent for the point alone."""
        step, procedure = self.state.step, self.procedure
        text, ranks = self.setting.text, self.setting.shards.ranks
        ids_BT = text.batch(self.params, step, self.state.turns, ranks).to(self.setting.device, non_blocking=True)
        self.model.train()
        if procedure.backward:
            losses = self._repeatable.run(partial(self._gradients, ids_BT), self.model)
        else:
            losses = [self._estimate(ids_BT)]
        procedure.before_clipping()
        norm_ = whole(clip_grad_norm_(procedure.clipped(), MAX_GRADIENT_NORM))
        shards = self.setting.shards
        due_ = norm_.new_full((), float(shards.ranks.leads and self._due()))
        # The device is waited for once, when it has been given all of the step but the update.
        *parts, norm, due = shards.mean(torch.stack([*losses, norm_, due_])).tolist()
        total = sum(parts)
        if not (math.isfinite(total) and math.isfinite(norm)):
            field, remedy = self.setting.rate
            raise NumericalFailure(
                f"step {step + 1} of {self.setting.name}: the loss is {total}, the length of its gradient {norm}",
                f"{remedy}, or raise `warmup_steps`",
                field=field,
            )
        procedure.before_update(step)
        self._optimizer.step()
        self._schedule.step()
        procedure.after_update(step, self._optimizer)
        return total, due > 0

    def _gradients(self, ids_BT: Tensor) -> list[Tensor]:
        """Fill the gradients of a step; returns the losses of its parts, and of its penalty."""
        self._begin()
        shards = self.setting.shards
        mine_BT, losses = shards.mine(ids_BT), []
        for part_BT in mine_BT.split(self.setting.at_once):
            with self.setting.precision():
                loss = self._loss(part_BT) * (len(part_BT) / len(mine_BT))
            loss.backward()
            losses.append(loss.detach())
        shards.mean_gradients(self.procedure.parameters.values())
        for name, mask in self._masks.items():
            if (gradient := self.procedure.parameters[name].grad) is not None:
                gradient.mul_(mask)
        if (penalty := self.procedure.penalty(self.state.step)) is not None:
            penalty.backward()
            losses.append(penalty.detach())
        return losses

    @torch.no_grad()
    def _estimate(self, ids_BT: Tensor) -> Tensor:
        """The same of a method without a backward pass."""
        self._begin()
        shards = self.setting.shards
        mine_BT = shards.mine(ids_BT)

        def loss() -> Tensor:
            parts = mine_BT.split(self.setting.at_once)
            with self.setting.precision():
                of_parts = [self._loss(part_BT) * (len(part_BT) / len(mine_BT)) for part_BT in parts]
                return shards.mean(torch.stack(of_parts).sum())

        return self.procedure.estimate(loss)

    def _begin(self) -> None:
        """A step may begin twice: nothing of the first time is left."""
        self._optimizer.zero_grad()  # gates and multipliers, too, which lie outside of the model
        seed, rank = (self.params.seed << 24) + self.state.step + 1, self.setting.shards.ranks.rank
        torch.manual_seed(seed)
        self.procedure.begin(self.state.step)
        if rank:  # all draw the method's numbers, and each its own dropout
            torch.manual_seed((rank << 56) + seed)

    def _loss(self, ids_BT: Tensor) -> Tensor:
        distill = self.params.distill
        if self._teacher is None or distill is None:
            return loss_on_windows(self._logits(self.model, ids_BT), ids_BT)
        with torch.no_grad():  # before the trained model's, so that no more than is compared is there beside them
            dense = predictions(self._logits(self._teacher, ids_BT), distill.temperature, distill.top_k)
        logits_BTV = self._logits(self.model, ids_BT)
        from_dense = distillation(logits_BTV, dense, distill.temperature)
        if distill.weight == 1:
            return from_dense
        return (1 - distill.weight) * loss_on_windows(logits_BTV, ids_BT) + distill.weight * from_dense

    @staticmethod
    def _logits(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = model(input_ids=ids_BT, use_cache=False).logits
        return logits_BTV

    def _look(self) -> None:
        """Measure the held-out loss, and keep the trained parameters if it is the lowest so far."""
        state, text = self.state, self.setting.text
        with self.procedure.evaluating():
            losses = self.setting.holdout_losses(self.model, *self.setting.rate)
        loss = self.setting.weighed(losses)
        train_loss = math.fsum(state.train_losses) / len(state.train_losses) if state.train_losses else None
        state.stale += 1
        if self.keeps_best and loss < min((point["holdout_loss"] for point in state.curve), default=math.inf):
            state.best_step, state.stale = state.step, 0
            parameters = self.procedure.parameters.items()
            self.best = {name: kept(parameter) for name, parameter in parameters}
        named = dict(zip((domain.name for domain in text.domains), losses, strict=True))
        domains = None if None in named else named
        figures = dict(self.procedure.figures())
        if state.turns is not None:
            state.turns.look(losses)
            figures |= {f"share of {name}": share for name, share in zip(named, state.turns.weights, strict=True)}
        point = {"step": state.step, "holdout_loss": loss, "train_loss": train_loss, "domains": _sorted(domains)}
        state.curve.append(point | {"figures": _sorted(figures)})
        state.train_losses.clear()
        trained_on = "" if train_loss is None else f", training loss {train_loss:.4f}"
        of_domains = "".join(f", of {name} {of:.4f}" for name, of in (domains or {}).items())
        others = "".join(f", {name} {value:.4f}" for name, value in figures.items())
        self.events.log(
            f"step {state.step} of {self.params.steps}: held-out loss {loss:.4f}{of_domains}{trained_on}{others}"
        )

    def _due(self) -> bool:
        """Whether a resume point is to be written after this step, by this rank's clock."""
        every_s = self.setting.run.checkpoint.every_s
        return not every_s or time.monotonic() - self._written >= max(every_s, _WRITING_SHARE * self._writing_s)

    def _save(self) -> None:
        started, text, state = time.monotonic(), self.setting.text, self.state
        state.text = text.reach(text.taken(self.params, state.step, state.turns), self.setting.shards.ranks)
        point = captured(self.state, self.best, self.procedure, self._optimizer, self._schedule)
        self.setting.points.save(*point, self.state.step)
        self._written = time.monotonic()
        self._writing_s = self._written - started
        self.events.checkpoint(self.state.step - 1, "step")


def _eight_bit() -> type[torch.optim.Optimizer]:
    from workers.engine.training.eight_bit import EightBitAdamW  # seconds of imports

    return EightBitAdamW


def _sorted(named: Mapping[Any, float] | None) -> dict[str, float] | None:
    """In the order in which a resume point gives them back; None for none."""
    return dict(sorted(named.items())) if named else None
