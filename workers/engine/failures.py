"""Translate errors of torch, safetensors and the system about memory, disks and numbers into `EngineError`s."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from workers.engine.errors import DeviceOutOfMemory, DiskFull, HostOutOfMemory, NumericalFailure

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def translated() -> Iterator[None]:
    """Raise DeviceOutOfMemory, HostOutOfMemory, DiskFull or NumericalFailure in place of the libraries' exceptions."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceOutOfMemory(
            f"the GPU ran out of memory: {error}",
            "use fewer or shorter calibration windows, a smaller evaluation batch, bfloat16 compute, or a larger GPU",
            field="/compute",
        ) from error
    except MemoryError as error:
        raise _host_out_of_memory(error) from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise _disk_full(error) from error
        raise
    except SafetensorError as error:
        # Its only trace of the system's error number is the text.
        if any(f"os error {number}" in str(error) for number in _NO_SPACE):
            raise _disk_full(error) from error
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
        raise


def _host_out_of_memory(error: Exception) -> HostOutOfMemory:
    return HostOutOfMemory(
        f"the host ran out of memory: {error}",
        "use fewer or shorter calibration windows, or a worker with more memory; a dry run predicts the peak",
    )


def _disk_full(error: Exception) -> DiskFull:
    return DiskFull(
        f"the disk is full: {error}",
        "free space under the work directory: a job needs twice the size of its result, and its calibration states",
    )
