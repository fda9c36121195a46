"""A process that has imported torch and transformers and forks a runner when it is asked to: `workers.warm` starts it.

Standard input is a socket of messages; file descriptors travel with them:

    <- {"argv": [...]} with (events, log)     fork `workers.runner` with these arguments, standard output and error
    -> {"pid": n}                             it leads a session of its own
    -> {"returncode": n}                      it has ended, and is not reaped until
    <- {"reap": true}                         its group is signalled no more

Its end, like that of the socket, is the end of its child. It runs no tensor operation: a fork of a process that has
computed with several threads waits for ever for threads that the fork does not have. So it runs nothing but imports,
and refuses to fork if it finds a second thread.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from workers import runner
from workers.children import code_of, die_with_parent, has_threads, leave

PRELOADED = (
    "workers.engine.pipeline",
    # transformers imports these with the first model and tokenizer.
    "transformers.models.llama.modeling_llama",
    "transformers.models.mistral.modeling_mistral",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
)
MESSAGE_BYTES = 2**16


def main() -> int:
    """Serve until the socket closes. In a forked child, the exit code of its job."""
    die_with_parent(int(sys.argv[1]))  # its id then, not whose child this is now: it may be dead already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker decides when a job ends
    channel = socket.socket(fileno=os.dup(0))
    runner.prepare_libraries()
    os.close(os.pidfd_open(os.getpid()))  # raises where a child's end could not be seen, before there is a child
    with runner.importing():
        for name in PRELOADED:
            import_module(name)
    while True:
        request, descriptors = _receive(channel)
        if request is None:
            return 0
        if has_threads():
            sys.stderr.write("the warm parent has more than one thread and cannot fork\n")
            return 1
        parent, (leads, tells) = os.getpid(), os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.close(tells)
            return _child(request["argv"], descriptors, channel, parent)
        os.close(tells)
        os.read(leads, 1)  # returns at end of file: the child leads its group, or is dead
        for descriptor in (leads, *descriptors):
            os.close(descriptor)
        if not _attend(channel, pid):
            return 0


def _child(argv: list[str], descriptors: list[int], channel: socket.socket, parent: int) -> int:
    channel.close()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, *descriptors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return runner.main([*argv, "--parent", str(parent)])


def _attend(channel: socket.socket, pid: int) -> bool:
    """Report the child's start and end, and reap it. False once the socket is closed."""
    open_still = _send(channel, {"pid": pid})
    handle = os.pidfd_open(pid)
    if open_still:
        ready, _, _ = select.select([channel.fileno(), handle], [], [])
        open_still = handle in ready  # else the socket was closed: nothing is sent while a child runs
    if open_still:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        open_still = _send(channel, {"returncode": code_of(ended)}) and _receive(channel)[0] is not None
    if not open_still:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(handle)
    return open_still


def _send(channel: socket.socket, message: dict[str, Any]) -> bool:
    try:
        channel.send(json.dumps(message).encode())
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def _receive(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and its descriptors; None once the other side is gone."""
    room = socket.CMSG_SPACE(2 * array.array("i").itemsize)
    try:
        data, ancillary, _, _ = channel.recvmsg(MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None, []
    descriptors = array.array("i")
    for _, _, packed in ancillary:
        descriptors.frombytes(packed)
    return (json.loads(data) if data else None), list(descriptors)


if __name__ == "__main__":
    leave(main())  # a job's child: what libraries do at exit was set up for the parent
