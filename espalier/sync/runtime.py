"""What differs between the two clients by more than `async` and `await`. Written by hand, unlike all beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from threading import Event
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

sleep = time.sleep


def in_thread(function: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Nothing else waits for this thread: the call itself."""
    return function(*args, **kwargs)


def together(calls: Iterable[Callable[[], Result]], *, at_once: int, stopped: Event) -> list[Result]:
    """The results of all calls, of which `at_once` run at a time. After the first error no other is begun, and it is
    raised once those that run have ended; `stopped` tells them to."""

    def one(call: Callable[[], Result]) -> Result:
        if stopped.is_set():
            raise CancelledError
        try:
            return call()
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(at_once, thread_name_prefix="espalier") as pool:
        futures = [pool.submit(one, call) for call in calls]
        try:
            done = wait(futures, return_when=FIRST_EXCEPTION).done
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
    errors = [error for future in done if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, CancelledError):
            raise error
    return [future.result() for future in futures]
