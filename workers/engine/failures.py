"""Translate errors of torch, safetensors and the system about memory, disks and numbers into `EngineError`s."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from workers.engine.errors import (
    FAULTS,
    NO_SPACE,
    DeviceOutOfMemory,
    DiskFull,
    EngineError,
    HostOutOfMemory,
    NumericalFailure,
    StorageUnavailable,
)

_NO_ACCESS = (*FAULTS, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENOTDIR, errno.EAGAIN)
"""Of the place where the files lie, or of the process's limits; a missing file may be anybody's fault."""
_DEVICE_MEMORY = (
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED", "Cuda failure 2 'out of memory'",
)  # fmt: skip
"""Texts of errors of CUDA's libraries, and of NCCL, that are not torch.OutOfMemoryError."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise DeviceOutOfMemory, HostOutOfMemory, DiskFull, StorageUnavailable or NumericalFailure in place of the
    libraries' exceptions."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _device_out_of_memory(error) from error
    except MemoryError as error:
        raise _host_out_of_memory(error) from error
    except OSError as error:
        if (of_disk := _of_disk(error, error.errno)) is not None:
            raise of_disk from error
        raise
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # its only trace of the system's error number
        if number and (of_disk := _of_disk(error, int(number[1]))) is not None:
            raise of_disk from error
        raise
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NumericalFailure(
            f"a decomposition of the model's numbers failed: {error}",
            "the weights are too large, too small or too alike to compute with: check that the checkpoint is sound",
            field="/model/id",
        ) from error
    except RuntimeError as error:
        if "DefaultCPUAllocator: can't allocate memory" in str(error):
            raise _host_out_of_memory(error) from error
        if any(text in str(error) for text in _DEVICE_MEMORY):
            raise _device_out_of_memory(error) from error
        raise


def _device_out_of_memory(error: Exception) -> DeviceOutOfMemory:
    return DeviceOutOfMemory(
        f"the GPU ran out of memory: {error}",
        "use fewer or shorter calibration windows, a smaller evaluation batch, bfloat16 compute, or a larger GPU",
        field="/compute",
    )


def _host_out_of_memory(error: Exception) -> HostOutOfMemory:
    return HostOutOfMemory(
        f"the host ran out of memory: {error}",
        "use fewer or shorter calibration windows, or a worker with more memory; a dry run predicts the peak",
    )


def _of_disk(error: Exception, number: int | None) -> EngineError | None:
    """The error for a number of the system's; None where that says nothing about disks and files."""
    if number in NO_SPACE:
        return DiskFull(
            f"the disk is full: {error}",
            "free space under the work directory: a job needs twice the size of its result, and its calibration states",
        )
    if number == errno.ENOMEM:
        return _host_out_of_memory(error)
    if number in _NO_ACCESS:
        return StorageUnavailable(
            f"the job could not read or write its files: {error}",
            "check the worker's disk, and its permissions and limits on the named file; the job is tried again "
            "meanwhile",
        )
    return None
