"""The worker's scratch folders: `work_dir/<job>/checkpoint` is shared by a job's attempts, `<fence>` is one attempt's.

An attempt that lost its lease and its successor may both write the checkpoint: files are atomic and, as the work is
deterministic, the same. Everything else is separate.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path


def checkpoint_dir(work_dir: Path, job_id: str) -> Path:
    return work_dir / job_id / "checkpoint"


def attempt_dir(work_dir: Path, job_id: str, fence: int) -> Path:
    return work_dir / job_id / f"{fence:06}"


def forget_attempt(work_dir: Path, job_id: str, fence: int) -> None:
    shutil.rmtree(attempt_dir(work_dir, job_id, fence), ignore_errors=True)


def forget_job(work_dir: Path, job_id: str) -> None:
    shutil.rmtree(work_dir / job_id, ignore_errors=True)


def idle(work_dir: Path) -> dict[str, float]:
    """Job id -> seconds since anything in its folder was created, renamed or removed."""
    if not work_dir.is_dir():
        return {}
    now, found = time.time(), {}
    for folder in work_dir.iterdir():
        with contextlib.suppress(FileNotFoundError):  # removed while we look
            if folder.is_dir():
                found[folder.name] = now - max(p.stat().st_mtime for p in [folder, *folder.iterdir()])
    return found
