"""The state of a training: the content of its resume point.

Neither the order of a domain's windows nor random numbers are in it: both follow from the seed and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from workers.engine.training.shards import kept
from workers.engine.training.turns import Turns

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from workers.engine.contracts.training import Procedure


@dataclass
class TrainingState:
    """The part of the state that is not tensors."""

    holdout_loss_before: float
    """Held-out loss of the model, before it was prepared for training."""
    step: int = 0
    """Steps done."""
    best_step: int = 0
    stale: int = 0
    """Evaluations of the held-out windows since the best one."""
    train_losses: list[float] = field(default_factory=list)
    """Losses of the steps since the last evaluation."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """A `TunePoint` for each evaluation."""
    stopped_early: bool = False
    ended: bool = False
    turns: Turns | None = None
    """Of domains whose shares follow their losses."""


@dataclass(frozen=True)
class Point:
    """A resume point: its JSON, and how tensors are read from it."""

    state: Any
    fill: Callable[[Mapping[str, Tensor]], None]
    """Fills tensors, by their names in the point, in place."""


def shipped(procedure: Procedure) -> dict[str, Tensor]:
    """All that a training has changed but what further steps need alone, by the names in its resume point."""
    found = {f"parameter/{name}": parameter.detach() for name, parameter in procedure.parameters.items()}
    return found | {f"own/{name}": tensor for name, tensor in procedure.state.items()}


def captured(
    state: TrainingState,
    best: Mapping[str, Tensor],
    procedure: Procedure,
    optimizer: Optimizer,
    schedule: LRScheduler,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, JSON) of a resume point. Of a training that has ended only what ships is kept: the best state where one
    is kept, else the last."""
    tensors = {f"best/{name}": tensor for name, tensor in best.items()}
    found: dict[str, Any] = {"state": asdict(state), "best": bool(best)}
    if not (state.ended and best):
        tensors |= shipped(procedure)
    if not state.ended:
        moments = optimizer.state_dict()
        for index, of_parameter in moments["state"].items():
            tensors |= {f"moment/{index}/{name}": tensor for name, tensor in of_parameter.items()}
        found["moments"] = {
            index: {name: moment.dim() == 0 for name, moment in of_parameter.items()}
            for index, of_parameter in moments["state"].items()
        }  # whether it is a number, or of the parameter's shape
        found["groups"] = moments["param_groups"]
        found["schedule"] = schedule.state_dict()
    return tensors, found


def restored(
    point: Point, procedure: Procedure, optimizer: Optimizer, schedule: LRScheduler
) -> tuple[TrainingState, dict[str, Tensor]]:
    """The state and its best tensors; parameters, the method's state, moments and rate are put back where they were."""
    found = point.state
    state = TrainingState(**found["state"])
    if found["state"].get("turns") is not None:
        state.turns = Turns(**found["state"]["turns"])
    best = {name: kept(parameter) for name, parameter in procedure.parameters.items() if found["best"]}
    tensors: dict[str, Tensor] = {f"best/{name}": tensor for name, tensor in best.items()}
    if not (state.ended and best):
        tensors |= shipped(procedure)
    moments: dict[int, dict[str, Tensor]] = {}
    if not state.ended:
        ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, scalars in found["moments"].items():
            like = ordered[int(index)].detach()
            moments[int(index)] = {
                name: torch.zeros(()) if scalar else torch.zeros_like(like) for name, scalar in scalars.items()
            }
            tensors |= {f"moment/{index}/{name}": moment for name, moment in moments[int(index)].items()}
    point.fill(tensors)
    if not state.ended:
        optimizer.load_state_dict({"state": moments, "param_groups": found["groups"]})
        schedule.load_state_dict(found["schedule"])
    return state, best
