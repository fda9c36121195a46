"""The state of a training: the content of its resume point.

Neither the order of a domain's windows nor random numbers are in it: both follow from the seed and the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

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


def captured(
    state: TrainingState,
    best: Mapping[str, Tensor],
    procedure: Procedure,
    optimizer: Optimizer,
    schedule: LRScheduler,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, JSON) for `restored`. Of a training that has ended only what ships is kept: the best state where one is
    kept, else the last."""
    tensors = {f"best/{name}": tensor for name, tensor in best.items()}
    found: dict[str, Any] = {"state": asdict(state)}
    if not (state.ended and best):
        tensors |= {f"parameter/{name}": parameter.detach() for name, parameter in procedure.parameters.items()}
        tensors |= {f"own/{name}": tensor for name, tensor in procedure.state.items()}
    if not state.ended:
        moments = optimizer.state_dict()
        for index, of_parameter in moments["state"].items():
            tensors |= {f"moment/{index}/{name}": tensor for name, tensor in of_parameter.items()}
        found["groups"] = moments["param_groups"]
        found["schedule"] = schedule.state_dict()
    return {name: tensor.to("cpu").contiguous() for name, tensor in tensors.items()}, found


def restored(
    tensors: Mapping[str, Tensor],
    found: Mapping[str, Any],
    procedure: Procedure,
    optimizer: Optimizer,
    schedule: LRScheduler,
) -> tuple[TrainingState, dict[str, Tensor]]:
    """The state and its best tensors; parameters, the method's state, moments and rate are put back where they were."""
    state = TrainingState(**found["state"])
    if found["state"].get("turns") is not None:
        state.turns = Turns(**found["state"]["turns"])
    for name, tensor in _under("parameter/", tensors).items():
        procedure.parameters[name].data.copy_(tensor)
    for name, tensor in _under("own/", tensors).items():
        procedure.state[name].copy_(tensor)
    if not state.ended:
        moments: dict[int, dict[str, Tensor]] = {}
        for path, tensor in _under("moment/", tensors).items():
            index, _, name = path.partition("/")
            moments.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": found["groups"]})
        schedule.load_state_dict(found["schedule"])
    return state, _under("best/", tensors)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
