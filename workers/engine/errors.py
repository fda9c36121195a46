"""Errors that the engine raises on purpose, by cause.

    EngineError                 code, message, hint, retryable
    ├── BadRequest              what was asked for cannot be done; a retry changes nothing
    │   ├── InvalidSpec  ModelNotFound  ModelGated  UnsafeWeights  UnsupportedModel
    │   ├── DatasetNotFound  DatasetTooShort  DegenerateCalibration  SequenceTooLong
    │   └── MemoryBudgetTooSmall  CheckpointMismatch
    ├── NumericalFailure        inf or NaN where a number belongs
    ├── ResultMismatch          the result does not compute what was pruned, or does not load
    ├── PromiseBroken           the result exceeds what the spec bounds it by
    ├── OutOfMemory             of the device or of the host
    ├── DiskFull  StorageUnavailable    of the disk that the files are on
    └── HubUnavailable          the model hub did not answer; worth another try

The code is stable and part of the API: clients switch on it. `hint` always says what to change. The runner
ends with `exit_code`, so that the supervisor knows the class even if the last event was lost.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""The system's errors of a disk, or of a quota on it, that is full."""
FAULTS = (errno.EIO, errno.ESTALE, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE)
"""The system's errors of a disk or of the process's limits, which are no fault of the file that is read."""


class EngineError(Exception):
    """Base of all errors the engine raises on purpose."""

    code = "internal"
    exit_code = 70
    retryable = False

    def __init__(self, message: str, hint: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field
        """Where in the spec the cause lies, as a JSON pointer below the spec (`/calibrate/dataset`), if anywhere."""

    def __reduce__(self) -> tuple[Callable[..., EngineError], tuple[str, str]]:
        """Keep message, hint and field when pickled."""
        return partial(type(self), field=self.field), (self.message, self.hint)


class BadRequest(EngineError):
    code = "bad_request"
    exit_code = 64


class InvalidSpec(BadRequest):
    code = "invalid_spec"


class ModelNotFound(BadRequest):
    code = "model_not_found"


class ModelGated(BadRequest):
    code = "model_gated"


class UnsafeWeights(BadRequest):
    """Only pickle weights are offered; loading them runs their author's code."""

    code = "unsafe_weights"


class UnsupportedModel(BadRequest):
    code = "unsupported_model"


class DatasetNotFound(BadRequest):
    code = "dataset_not_found"


class DatasetTooShort(BadRequest):
    code = "dataset_too_short"


class DegenerateCalibration(BadRequest):
    """The calibration text is padding or one repeated token: its statistics say nothing about the model."""

    code = "degenerate_calibration"


class MemoryBudgetTooSmall(BadRequest):
    code = "memory_budget_too_small"


class SequenceTooLong(BadRequest):
    code = "sequence_too_long"


class CheckpointMismatch(BadRequest):
    """Resume points of another spec, model, data or library version. The service removes them and tries again."""

    code = "checkpoint_mismatch"
    retryable = True


class NumericalFailure(EngineError):
    code = "numerical_failure"
    exit_code = 65


class ResultMismatch(EngineError):
    """The stored result computes other values than the model that was walked, masked or tuned."""

    code = "result_mismatch"
    exit_code = 71


class PromiseBroken(EngineError):
    """A number counted or measured on the result lies outside a bound of the spec."""

    code = "promise_broken"
    exit_code = 72


class DeviceOutOfMemory(EngineError):
    code = "cuda_oom"
    exit_code = 66


class HostOutOfMemory(EngineError):
    code = "host_oom"
    exit_code = 67


class DiskFull(EngineError):
    code = "disk_full"
    exit_code = 68
    retryable = True


class StorageUnavailable(EngineError):
    """A file of the job cannot be read or written: a disk that fails or is read-only, missing permissions, limits."""

    code = "storage_unavailable"
    exit_code = 73
    retryable = True


class HubUnavailable(EngineError):
    code = "hub_unavailable"
    exit_code = 69
    retryable = True
