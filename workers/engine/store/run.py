"""A run: one attempt at a job, as far as it keeps what it finds and reports what it does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from workers.engine.store.cache import Cache
from workers.engine.store.clock import Clock

if TYPE_CHECKING:
    from pathlib import Path

    from workers.engine.events import Events
    from workers.engine.store.checkpoint import Checkpoint


@dataclass(frozen=True)
class Run:
    """Passed to every function that needs more than one of these."""

    cache: Cache
    """Measurements of dense models, shared between jobs."""
    checkpoint: Checkpoint
    """Resume points of the job, or of one of its tries."""
    clock: Clock
    events: Events

    @classmethod
    def of(cls, checkpoint: Checkpoint, events: Events, cache_dir: Path | None = None) -> Run:
        """A run that begins now. Without `cache_dir`, no measurement is kept for other jobs."""
        return cls(Cache(cache_dir, events, checkpoint.ranks), checkpoint, Clock(events), events)

    def with_checkpoint(self, checkpoint: Checkpoint) -> Run:
        """The same run, with other resume points."""
        return replace(self, checkpoint=checkpoint)
