"""Failures of attempts: what an end of the runner, an error of the store or the disk, or a bug means for the job."""

from __future__ import annotations

from app.failure import Failure
from app.storage import Damaged
from workers.children import RUNNER_DIED, RUNNER_DIED_HINT, ending
from workers.engine.errors import NO_SPACE, DiskFull, EngineError
from workers.supervisor import Exit, Order


def of_exit(end: Exit, *, deadline_s: int) -> Failure:
    """The failure that an unsuccessful exit means for the job."""
    if end.order is Order.TIMEOUT:
        return Failure(
            code="timeout",
            message=f"the job was still in stage {end.stage} after its deadline of {deadline_s} s",
            hint="Submit it with a larger deadline_s, or ask for less: fewer samples, fewer evaluations.",
            retryable=False,
            stage=end.stage,
        )
    killed = end.error is None or end.error["code"] == RUNNER_DIED  # this process, or a further rank
    if end.error is not None and not (killed and end.out_of_memory):
        return Failure(
            code=end.error["code"],
            message=end.error["message"],
            hint=end.error["hint"],
            retryable=end.error["retryable"],
            stage=end.stage,
            field=end.error.get("field"),
        )
    if end.out_of_memory:
        return Failure(
            code="host_oom",
            message=f"the host ran out of memory in stage {end.stage}",
            hint="Use fewer calibration samples or shorter sequences, or a worker with more memory. "
            "?dry_run=true predicts the peak.",
            retryable=False,
            stage=end.stage,
        )
    return Failure(
        code=RUNNER_DIED,
        message=f"the job's process ended with {ending(end.returncode)} in stage {end.stage}",
        hint=RUNNER_DIED_HINT,
        retryable=True,
        stage=end.stage,
    )


def of_bug(error: Exception) -> Failure:
    """Of an error that nobody has foreseen: another attempt would raise it again."""
    return Failure(
        code=EngineError.code,
        message=f"{type(error).__name__}: {error}",
        hint="this is a bug in the worker; the job's log has the traceback",
        retryable=False,
    )


def of_storage(error: Exception) -> Failure:
    """Of an error of the artifact store, or of the worker's own disk."""
    if _is_full(error):
        return Failure(
            code=DiskFull.code,
            message=f"the worker's disk is full: {error}",
            hint="Free space in the worker's work_dir or in the artifact store; the job is tried again meanwhile.",
            retryable=True,
        )
    if isinstance(error, Damaged):
        return Failure(
            code="damaged_upload",
            message=f"the result did not reach the artifact store as it was made: {error}",
            hint="Check the worker's disk and the artifact store; the job is tried again meanwhile.",
            retryable=True,
        )
    return Failure(
        code="storage_unavailable",
        message=f"the worker could not read or write its files: {error}",
        hint="Check the artifact store and the worker's work_dir; the job is tried again meanwhile.",
        retryable=True,
    )


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    # obstore says it in its message only
    return any(f"os error {number}" in str(error) for number in NO_SPACE)
