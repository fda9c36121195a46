"""`publish`: bring a job's result somewhere, see how that went, try it again."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import output
from app.cli.exits import NotPublished
from app.cli.options import AsJson, JobId, connect
from app.cli.places import place_of, text_of
from espalier.documents import Publication


def publish(
    context: typer.Context,
    job_id: JobId,
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="PLACE", help="As in docs/publishing.md: JSON, its file, or - for stdin. Default: list."
        ),
    ] = None,
    retry: Annotated[
        str | None, typer.Option(metavar="PUBLICATION", help="Try this one again that has failed, pub_….")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until each is published, withheld or has failed.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="Longest wait, s. Default: none.")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring the result of a job that has succeeded somewhere, or list where it is brought.

    With --wait the exit code is 11 unless all of it is published.
    """
    with connect(context) as client:
        job = client.job_ref(job_id)
        if place is not None:
            job.publish(place_of(place))
        if retry is not None:
            job.retry_publication(retry)
        found = (job.wait_published(timeout) if wait else job.refresh()).publications
    if as_json:
        output.print_json([each.raw for each in found])
    else:
        for each in found:
            output.stdout.print(text_of(each))
    if wait and (left := [each for each in found if each.state != "published"]):
        raise NotPublished("\n".join(_why_not(each) for each in left))


def _why_not(publication: Publication) -> str:
    if publication.error:
        return f"{publication.to}: {publication.error.message} ({publication.error.code})\n{publication.error.hint}"
    return f"{publication.to}: {publication.state}" + (
        " by the gates" if publication.state == "withheld" else ", as the job has not succeeded"
    )
