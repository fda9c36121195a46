"""A repository of a hub, huggingface.co or one that speaks its API: one commit, by huggingface_hub.

Large files are sent beforehand by their digest: what the hub has already, of a killed try or of another commit, is not
sent again, and a commit that would change nothing is not made. Files are read from the artifact store as they are sent.
"""

from __future__ import annotations

import glob
import logging
from fnmatch import fnmatchcase
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import httpx2
from pydantic import Field, ValidationError

from app.publications.contract import Params, Published, Publisher, PublishFailure, Result, SecretRef, Stopped, Target
from app.publications.reading import damaged
from workers.engine.files.manifest import MANIFEST
from workers.engine.report import Manifest

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"


class HubParams(Params):
    """A repository of a model."""

    to: Literal["hub"]
    repository: Annotated[str, Field(max_length=96, pattern=rf"^{PART}/{PART}$")] = Field(
        description="Made where it is not there.", examples=["acme/bookworm-half"]
    )
    revision: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")] = Field(
        "main", description="A branch; made where it is not there."
    )
    private: bool = Field(True, description="Of a repository that is made.")


class HubTarget(Target):
    to: Literal["hub"]
    endpoint: str = Field("https://huggingface.co", pattern=r"^https?://\S+[^/\s]$")
    token: SecretRef
    repositories: list[str] = Field(min_length=1)
    """Patterns, such as `acme/*`; `{tenant}` in one is the tenant's name."""

    def refusal(self, params: HubParams, tenant: str) -> tuple[str, str] | None:
        mine = glob.escape(tenant)  # a name is no pattern
        if any(fnmatchcase(params.repository, each.replace("{tenant}", mine)) for each in self.repositories):
            return None
        allowed = [each.replace("{tenant}", tenant) for each in self.repositories]
        return "repository", f"these credentials are for {', '.join(allowed)}"


def publish(target: HubTarget, params: HubParams, result: Result, secrets: dict[str, str]) -> Published:
    """A commit on the branch that holds the result, and none of the files that an earlier result has left there."""
    from huggingface_hub import CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    # It would log addresses that are signed, and draw bars.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    disable_progress_bars()
    api = HfApi(endpoint=target.endpoint, token=secrets["token"], library_name="espalier")
    name = params.repository
    try:
        api.create_repo(name, private=params.private, exist_ok=True)
        if params.revision != "main":
            api.create_branch(name, branch=params.revision, exist_ok=True)
        before = api.model_info(name, revision=params.revision)
        there = {each.rfilename for each in before.siblings or []}
        stale = (_earlier(api, params) if MANIFEST in there else set()) & there - {file.path for file in result.files}
        additions = [_addition(result, path) for path in sorted(file.path for file in result.files)]
        api.preupload_lfs_files(name, additions, revision=params.revision, free_memory=False)
        for each in additions:
            result.done(each.upload_info.size)
        result.confirm()
        commit = api.create_commit(
            name,
            [*additions, *(CommitOperationDelete(path) for path in sorted(stale))],
            commit_message=f"espalier {result.job_id}",
            revision=params.revision,
            parent_commit=before.sha,  # another's commit in between is not written over
        )
    except (Stopped, PublishFailure):
        raise
    except HfHubHTTPError as error:
        raise _failure(error, target, params) from error
    except OfflineModeIsEnabled:
        raise PublishFailure(
            "destination_unreachable",
            "the reconciler is told to ask no hub",
            "The operator unsets HF_HUB_OFFLINE for the reconciler; then it is tried again.",
            retryable=True,
        ) from None
    except (OSError, RuntimeError, httpx2.HTTPError) as error:  # the library wraps those of uploads
        cause = error.__cause__
        if isinstance(cause, Stopped | PublishFailure):
            raise cause from None
        if isinstance(cause, HfHubHTTPError):
            raise _failure(cause, target, params) from error
        raise _unreachable(target) from error
    except ValueError as error:  # of a model card that the hub does not like
        raise PublishFailure("publish_refused", f"{target.endpoint}: {error}", "Change what the hub says.") from error
    changed = commit.oid != before.sha
    return Published(f"{target.endpoint}/{params.repository}", commit.oid, changed)


def _addition(result: Result, path: str) -> CommitOperationAdd:
    """The file, read once and compared with its digest before anything of it is sent."""
    from huggingface_hub import CommitOperationAdd

    file = result.file(path)
    assert file is not None  # one of the result's
    made = CommitOperationAdd(path_in_repo=path, path_or_fileobj=file.open())  # type: ignore[arg-type]
    if made.upload_info.sha256.hex() != file.sha256:
        raise damaged(path)
    return made


def _earlier(api: HfApi, params: HubParams) -> set[str]:
    """Files that the manifest of an earlier result lists; none where it is none of ours."""
    with TemporaryDirectory() as folder:
        path = api.hf_hub_download(params.repository, MANIFEST, revision=params.revision, local_dir=folder)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                return {entry.path for entry in Manifest.model_validate_json(file.read()).files}
        except ValidationError:
            return set()


def _failure(error: Any, target: HubTarget, params: HubParams) -> PublishFailure:
    status = error.response.status_code
    said = f"{target.endpoint} answered {status} for {params.repository}: {error.server_message or 'without a reason'}"
    if status in (401, 403):
        return PublishFailure(
            "publish_refused", said, "The operator checks the token of these credentials, and what it may write."
        )
    if status == 404:
        return PublishFailure("destination_missing", said, "Check the names of organisation and repository.")
    if status == 412:
        return PublishFailure("destination_changed", said, "It is tried again by itself.", retryable=True)
    if status == 429 or status >= 500:
        return PublishFailure("destination_unreachable", said, "It is tried again by itself.", retryable=True)
    return PublishFailure("publish_refused", said, "Change what the hub says, then try it again.")


def _unreachable(target: HubTarget) -> PublishFailure:
    said = f"{target.endpoint} does not answer, or broke off"
    return PublishFailure("destination_unreachable", said, "It is tried again by itself.", retryable=True)


PUBLISHER: Publisher[Any, Any] = Publisher("hub", HubTarget, HubParams, publish)
