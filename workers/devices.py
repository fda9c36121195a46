"""The devices of a worker: GPUs by the names that CUDA_VISIBLE_DEVICES takes, or shares of the processors.

Asks the driver's own program, not torch: a process that forks must not touch CUDA.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Literal

from app.jobs.fleet import Hardware
from app.settings import Settings

NO_GPU = (
    "This worker is to have GPUs (ESPALIER_WORKER_DEVICES=gpu), and CUDA_VISIBLE_DEVICES names none; where that is not "
    "set, `nvidia-smi --list-gpus` found none. Name them, or start it with ESPALIER_WORKER_DEVICES=cpu."
)
LISTING = ["nvidia-smi", "--list-gpus"]
DETAILS = ["nvidia-smi", "--query-gpu=index,uuid,memory.total,name", "--format=csv,noheader,nounits"]
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Devices of drivers: NVIDIA's, that of WSL, AMD's."""
_LINE = re.compile(r"^(?P<instance>\s*)(?:GPU|MIG) .*\(UUID: (?P<uuid>\S+)\)$")


def found(settings: Settings) -> tuple[Literal["cpu", "gpu"], list[str]]:
    """The worker's kind and the names of its devices.

    Of GPUs those in CUDA_VISIBLE_DEVICES, unchanged, else all that the driver lists; there are none only where the
    settings ask for GPUs and no other device. Of shares of the processors `0`, `1`, …. Where the settings leave the
    choice, names count only on a host with a driver: schedulers and images set the variable on hosts without, too.
    """
    if settings.worker_devices == "gpu" or (settings.worker_devices == "auto" and _has_driver()):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = _listed() if visible is None else _parsed(visible)
        if gpus or settings.worker_devices == "gpu":
            return "gpu", gpus
    return "cpu", [str(number) for number in range(settings.worker_slots)]


def keys(names: list[str], owner: str) -> dict[str, str]:
    """Key -> name. UUIDs are unique by themselves, numbers mean something to their owner only."""
    return {name if "-" in name else f"{owner}/{name}": name for name in names}


def threads(settings: Settings, taken: int, of: int) -> int:
    """Processor threads for a job on `taken` of a worker's devices; 0 leaves it to torch."""
    if settings.worker_threads:
        return settings.worker_threads * taken
    return max(1, len(os.sched_getaffinity(0)) * taken // of) if of > 1 else 0


def hardware() -> dict[str, Hardware]:
    """Number and UUID of each GPU of the host -> what it is. Parts of one (MIG) are not listed."""
    found: dict[str, Hardware] = {}
    for number, uuid, memory, model in rows(output(DETAILS), 4):
        known = Hardware(model, int(memory) * 2**20 if memory.isdecimal() else None)
        found[number] = found[uuid] = known
    return found


def _has_driver() -> bool:
    return any(map(os.path.exists, DRIVERS)) or bool(_listed())


def _parsed(visible: str) -> list[str]:
    found: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        if name in ("", "-1", "NoDevFiles"):  # CUDA sees nothing from there on
            break
        if name not in found:
            found.append(name)
    return found


def _listed() -> list[str]:
    """UUIDs, in the order of the bus. Of a GPU that is cut into instances (MIG), those of the instances."""
    found: list[str] = []
    whole = None
    for line in output(LISTING).splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        if match["instance"]:
            if whole is not None and found and found[-1] == whole:
                found.pop()
            found.append(match["uuid"])
        else:
            whole = match["uuid"]
            found.append(whole)
    return found


def rows(listing: str, columns: int) -> list[list[str]]:
    """The rows of a table of the driver's program. Of a GPU that it cannot ask it writes a sentence, which is none."""
    found = ([part.strip() for part in line.split(",", columns - 1)] for line in listing.splitlines())
    return [row for row in found if len(row) == columns]


def output(command: list[str]) -> str:
    """The output of the driver's program; nothing where there is none, or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
