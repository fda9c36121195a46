"""Whether the processes of this host that serve nobody over HTTP are alive: a file that each touches every few seconds.

It needs neither database nor broker, so that a probe ends no worker, and the job it is at, because those are away.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Literal

from app.settings import Settings

Role = Literal["worker", "reconciler"]
EVERY_S = 5.0


def beat(settings: Settings, role: Role) -> None:
    """This process is at work."""
    path = _path(settings, role)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def silent_s(settings: Settings, role: Role) -> float | None:
    """Since when this host's process has not; None if it never has."""
    try:
        return max(time.time() - _path(settings, role).stat().st_mtime, 0)
    except FileNotFoundError:
        return None


def _path(settings: Settings, role: Role) -> Path:
    """Of this host: others may share the folder."""
    return settings.work_dir / f".alive-{role}-{socket.gethostname()}"
