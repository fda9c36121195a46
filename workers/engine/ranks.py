"""Ranks: the processes that do one job together, each on a device of its own. The only file that names
torch.distributed.

Every rank runs the same program on its share of the windows. The first rank finds what depends on files, time or chance
and sends it to the others (`first`), so that all take the same branches. Statistics are summed over all ranks (`add`),
solved layers sent to all (`exchange`). One rank runs the same program without communication. An error is not sent: it
ends its process, and the process that started the ranks ends the others.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from workers.engine.errors import InvalidSpec

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

T = TypeVar("T")
FOREVER = timedelta(days=365)
"""How long a rank waits for another: one may work alone for hours, and a dead one ends the job."""
_NONE = "none"


class Ranks:
    """All ranks of a job, in one of their processes. The default is a job of one rank."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self._rank, self._count = rank, count
        self._apart = False
        """Whether the first rank is within `first`: nothing that it calls there may wait for the others."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        return self._rank

    @property
    def total(self) -> int:
        """Their number."""
        return self._count

    @property
    def count(self) -> int:
        """The number of ranks that share the present work: one within `first`."""
        return 1 if self._apart else self._count

    @property
    def leads(self) -> bool:
        """Whether this is the first rank, which alone writes files and emits events."""
        return self._rank == 0

    def first(self, find: Callable[[], T]) -> T:
        """The value of `find()` on the first rank, which alone calls it. It is pickled."""
        if self.count == 1:
            return find()
        found: list[Any] = [None]
        if self.leads:
            self._apart = True
            try:
                found = [find()]
            finally:
                self._apart = False
        dist.broadcast_object_list(found, src=0)
        told: T = found[0]
        return told

    def gather(self, own: T) -> list[T]:
        """The objects of all ranks, in their order. They are pickled."""
        if self.count == 1:
            return [own]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, own)
        return found

    def share(self, count: int) -> slice:
        """This rank's part of so many windows: a run of them, none where there are fewer windows than ranks."""
        if self.count == 1:
            return slice(0, count)
        return slice(count * self._rank // self._count, count * (self._rank + 1) // self._count)

    def dealt(self, items: Sequence[T], cost: Callable[[T], float]) -> list[T]:
        """This rank's part of some work: the same on every call with the same items."""
        if self.count == 1:
            return list(items)
        return [
            item
            for item, rank in zip(items, deal(list(map(cost, items)), self.count), strict=True)
            if rank == self._rank
        ]

    def add(self, *sums: Tensor) -> None:
        """Sum each tensor over all ranks, in place. All ranks get the same bits."""
        if self.count > 1:
            for tensor in sums:
                dist.all_reduce(tensor)

    def exchange(self, own: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The tensors of all ranks by name, on `device`, where this rank's are."""
        if self.count == 1:
            return dict(own)
        found = {}
        for rank, facts in enumerate(self.gather({name: (tensor.shape, tensor.dtype) for name, tensor in own.items()})):
            for name, (shape, dtype) in facts.items():
                mine = rank == self._rank
                tensor = own[name].contiguous() if mine else torch.empty(shape, dtype=dtype, device=device)
                dist.broadcast(tensor, src=rank)
                found[name] = tensor
        return found


class Errands:
    """Orders of the first rank that the others carry out in the background of the program that all run."""

    def __init__(self, ranks: Ranks, run: Callable[[Any], Any]) -> None:
        """`run` does an errand on the other ranks, one after the other on a thread of its own. All ranks must make
        their Errands in the same order."""
        self._count, self._group = ranks.count, dist.new_group(backend="gloo", timeout=FOREVER)
        if ranks.leads:
            self._sender = ThreadPoolExecutor(1, "errands")
        else:
            threading.Thread(target=self._serve, args=[run], name="errands", daemon=True).start()

    def send(self, errand: Any) -> Future[list[Any]]:
        """Send it from the first rank to the others. The result: what `run` returned on each; exceptions are raised."""
        return self._sender.submit(self._sent, errand)

    def _sent(self, errand: Any) -> list[Any]:
        dist.broadcast_object_list([errand], src=0, group=self._group)
        answers: list[Any] = [None] * self._count
        dist.gather_object(None, answers, dst=0, group=self._group)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers[1:]

    def _serve(self, run: Callable[[Any], Any]) -> None:
        while True:
            errand: list[Any] = [None]
            dist.broadcast_object_list(errand, src=0, group=self._group)
            try:
                answer = run(errand[0])
            except Exception as error:
                answer = error
            dist.gather_object(answer, None, dst=0, group=self._group)


def join(rank: int, count: int, meeting: Path, *, cuda: bool) -> Ranks:
    """Meet the other ranks of this host at the file `meeting`, which is new. Before anything touches CUDA.

    With `cuda` each rank takes one of the GPUs that are visible, and sees no other; where two take the same one
    (CUDA_VISIBLE_DEVICES=0,0, to try ranks on one GPU), tensors go by gloo. Raises InvalidSpec where there are some
    GPUs and not enough.
    """
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's own name need not lead anywhere
    own = ""
    if cuda:
        own = os.environ["CUDA_VISIBLE_DEVICES"] = visible_device(rank, os.environ.get("CUDA_VISIBLE_DEVICES"))
    store = dist.FileStore(str(meeting), count)  # type: ignore[attr-defined]
    store.set_timeout(FOREVER)
    store.set(f"gpu/{rank}", own if cuda and torch.cuda.is_available() else _NONE)
    gpus = [gpu for gpu in (store.get(f"gpu/{other}") for other in range(count)) if gpu != _NONE.encode()]
    if 0 < len(gpus) < count:
        raise InvalidSpec(
            f"the job is to run on {count} devices, and this worker gives it {len(gpus)} GPU{'s' * (len(gpus) > 1)}",
            f"set `devices` to {len(gpus)}, or send the job to a worker with more GPUs",
            field="/compute/devices",
        )
    dist.init_process_group(
        backend([gpu.decode() for gpu in gpus]), store=store, rank=rank, world_size=count, timeout=FOREVER
    )
    return Ranks(rank, count)


def backend(gpus: Sequence[str]) -> str:
    """The way of tensors between ranks on these GPUs, none where they are on the processor. NCCL connects whole GPUs, a
    rank each: no two ranks on one, as in two instances of it (MIG)."""
    apart = len({*gpus}) == len(gpus) and not any(gpu.startswith("MIG-") for gpu in gpus)
    return "cpu:gloo,cuda:nccl" if gpus and apart else "gloo"


def visible_device(rank: int, visible: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for one rank, where it is `visible` for the job; empty if that lists too few."""
    if visible is None:
        return str(rank)
    devices = [device.strip() for device in visible.split(",") if device.strip()]
    return devices[rank] if rank < len(devices) else ""


def deal(costs: Sequence[float], ranks: int) -> list[int]:
    """A rank for each piece of work: the costliest first, each to the rank that has the least to do."""
    loads, found = [0.0] * ranks, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        found[index] = min(range(ranks), key=loads.__getitem__)
        loads[found[index]] += costs[index]
    return found
