"""`espalier …` as a process of its own, forked from one that has imported it: a second saved a command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

SERVER = """
import json, os, socket, sys
from app.cli import main

channel = socket.socket(fileno=os.dup(0))
while (received := socket.recv_fds(channel, 2**20, 2))[0]:
    request, descriptors = json.loads(received[0]), received[1]
    if (pid := os.fork()) == 0:
        for number, descriptor in zip((0, 1, 2), (os.open(os.devnull, os.O_RDONLY), *descriptors)):
            os.dup2(descriptor, number)
        os.closerange(3, 64)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["espalier", *request["arguments"]]
        sys.exit(main())
    for descriptor in descriptors:
        os.close(descriptor)
    channel.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
"""


class Forker:
    """The process that has imported the command line; ends with this one."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )


forker = cache(Forker)


def espalier(
    *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end: its exit code and what it wrote. TimeoutError, and its end, after `timeout_s`."""
    command = [str(argument) for argument in arguments]
    environment = dict(os.environ if env is None else env)
    request = {"arguments": command, "environment": environment, "cwd": str(cwd or Path.cwd())}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        socket.send_fds(forker().channel, [json.dumps(request).encode()], [out.fileno(), err.fileno()])
        forker().channel.settimeout(timeout_s)
        try:
            code = int(forker().channel.recv(64))
        except BaseException:
            os.killpg(forker().process.pid, signal.SIGKILL)  # the command with it
            forker().process.wait()
            forker().channel.close()
            forker.cache_clear()
            raise
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(["espalier", *command], code, *texts)
