"""The state of a training: the content of its resume point.

Neither the order of a domain's windows nor random numbers are in it: both follow from the seed and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from workers.engine.training.moments import MakesMoments, put_back, room, stored
from workers.engine.training.shards import kept
from workers.engine.training.turns import Turns

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from workers.engine.contracts.training import Procedure
    from workers.engine.training.moments import Kind


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
    text: list[str] = field(default_factory=list)
    """Digest, for each domain, of what was read for the steps so far; none where the training began with all of it."""


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
        kinds: dict[int, dict[str, Kind]] = {}
        for index, of_parameter in moments["state"].items():
            kinds[index] = {}
            for name, moment in of_parameter.items():
                parts, kinds[index][name] = stored(moment)
                tensors |= {f"moment/{index}/{name}{end}": tensor for end, tensor in parts.items()}
        found["moments"] = kinds
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
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rooms: dict[int, dict[str, dict[str, Tensor]]] = {}
    if not state.ended:
        for index, kinds in found["moments"].items():
            parameter = ordered[int(index)].detach()
            rooms[int(index)] = {name: room(parameter, kind) for name, kind in kinds.items()}
        for index, of_parameter in rooms.items():
            for name, parts in of_parameter.items():
                tensors |= {f"moment/{index}/{name}{end}": tensor for end, tensor in parts.items()}
    point.fill(tensors)
    if not state.ended:
        moments = {index: _moments(optimizer, ordered[index], of_parameter) for index, of_parameter in rooms.items()}
        optimizer.load_state_dict({"state": moments, "param_groups": found["groups"]})
        schedule.load_state_dict(found["schedule"])
    return state, best


def _moments(optimizer: Optimizer, parameter: Tensor, read: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> moment of a parameter, as the optimizer keeps it."""
    found = {}
    for name, parts in read.items():
        if isinstance(optimizer, MakesMoments) and parts[""].dim():
            signed = name == "exp_avg"
            found[name] = put_back(optimizer.moment(parameter, signed=signed), parts, signed=signed)
        else:
            found[name] = parts[""]
    return found
