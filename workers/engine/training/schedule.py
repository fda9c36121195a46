"""The learning rate over the steps of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import get_scheduler

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from workers.engine.contracts.tuning_params import TrainingParams


def rate_schedule(optimizer: Optimizer, params: TrainingParams) -> LRScheduler:
    """Rises linearly from 0 to the optimizer's rate over the warm-up, then falls to 0 as `params.schedule` says."""
    own = {"num_decay_steps": params.decay} if params.schedule == "warmup_stable_decay" else None
    schedule: LRScheduler = get_scheduler(
        params.schedule, optimizer, params.warmup, params.steps, scheduler_specific_kwargs=own
    )
    return schedule
