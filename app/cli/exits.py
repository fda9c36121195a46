"""Exit codes of the command line, and the errors that lead to them."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import espalier


class ExitCode(IntEnum):
    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    GATE_FAILED = 3
    JOB_FAILED = 4
    JOB_CANCELLED = 5
    REFUSED = 6
    UNREACHABLE = 7
    GATE_INCONCLUSIVE = 8
    TIMED_OUT = 9
    NOT_VERIFIED = 10
    NOT_PUBLISHED = 11
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.UNEXPECTED: "something unforeseen; the message says what",
    ExitCode.USAGE: "the command line, a file it names or the configuration is wrong",
    ExitCode.GATE_FAILED: "a gate failed: the model may not ship",
    ExitCode.JOB_FAILED: "the job, or the local compression, failed",
    ExitCode.JOB_CANCELLED: "the job was cancelled",
    ExitCode.REFUSED: "the service refused the request",
    ExitCode.UNREACHABLE: "the service cannot be reached, or answered that it is not well",
    ExitCode.GATE_INCONCLUSIVE: "no gate failed, but one could not be decided",
    ExitCode.TIMED_OUT: "the wait ended before the job did",
    ExitCode.NOT_VERIFIED: "a result is not as it was signed",
    ExitCode.NOT_PUBLISHED: "a result was not published: that failed, or the gates withhold it",
    ExitCode.INTERRUPTED: "interrupted from the keyboard",
}


class CliError(Exception):
    """Ends the command with `exit_code` and a message; never a traceback."""

    exit_code = ExitCode.UNEXPECTED

    def as_json(self) -> dict[str, Any]:
        return {"exit_code": int(self.exit_code), "detail": str(self)}


class Usage(CliError):
    exit_code = ExitCode.USAGE


class JobFailed(CliError):
    """`error` is the job's: code, message, hint."""

    exit_code = ExitCode.JOB_FAILED

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['message']} ({error['code']})\n{error['hint']}")
        self.error = error

    def as_json(self) -> dict[str, Any]:
        return {**super().as_json(), "error": self.error}


class JobCancelled(CliError):
    exit_code = ExitCode.JOB_CANCELLED


class GateFailed(CliError):
    exit_code = ExitCode.GATE_FAILED


class GateInconclusive(CliError):
    exit_code = ExitCode.GATE_INCONCLUSIVE


class NotPublished(CliError):
    exit_code = ExitCode.NOT_PUBLISHED


class TimedOut(CliError):
    exit_code = ExitCode.TIMED_OUT


class Unreachable(CliError):
    exit_code = ExitCode.UNREACHABLE


class Refused(CliError):
    """The service answered with a problem document (RFC 9457)."""

    exit_code = ExitCode.REFUSED

    def __init__(self, error: espalier.APIError) -> None:
        lines = [f"{error.title or 'Refused'} ({error.code})"]
        if error.detail:
            lines.append(error.detail)
        lines += [f"  {each.pointer}: {each.detail}" for each in error.errors]
        # Of something between us and the service it may be anything.
        if isinstance(allowed := error.problem.get("allowed"), list) and allowed:
            lines.append(f"  allowed now: {', '.join(map(str, allowed))}")
        if error.request_id:
            lines.append(f"  request {error.request_id}")
        super().__init__("\n".join(lines))
        self.problem = error.problem

    def as_json(self) -> dict[str, Any]:
        return {**super().as_json(), "problem": self.problem}


def cli_error(error: espalier.EspalierError) -> CliError:
    """The same as an error of the command line."""
    match error:
        case espalier.APIError() if error.status < 500:
            return Refused(error)
        case espalier.APIError():
            return Unreachable(str(Refused(error)))
        case espalier.Unreachable():
            hint = "Is the service running (`espalier serve`)? Another address is given by --url or ESPALIER_URL."
            return Unreachable(f"{error}\n{hint}")
        case espalier.UnexpectedAnswer():
            return Unreachable(f"{error}\n{error.remedy}")
        case espalier.JobFailed():
            return JobFailed(error.error.raw)
        case espalier.JobCancelled():
            return JobCancelled(str(error))
        case espalier.WaitTimeout():
            return TimedOut(str(error))
        case espalier.UnsafePath():
            return Usage(str(error))
    return CliError(str(error))
