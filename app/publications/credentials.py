"""Named credentials: places to publish to, in a file of the operator's (TOML), read again when it changes.

    [models]
    to = "s3"
    tenants = ["search"]
    url = "s3://models/{tenant}"
    secret_access_key = {file = "/run/secrets/models-s3"}

The file names where secrets are read from; requests name the section. So no secret stands in a spec, the database, a
log or an answer, and a client chooses among the operator's endpoints only.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from app.errors import InvalidRequest
from app.http.field_problems import field_error
from app.publications.contract import Params, PublishFailure, SecretRef, Target
from app.publications.registry import publishers
from app.watched_file import Unreadable, WatchedFile

log = structlog.get_logger(__name__)
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")
EVERYBODY = "*"


class BadCredentials(Unreadable):
    """A file that cannot be read; says why, and repeats nothing of it."""


class Credentials:
    """Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        """Raises Unreadable. There are none where there is no file."""
        self._targets: WatchedFile[dict[str, Target]] = WatchedFile(path, _read, {})

    def of_tenant(self, tenant: str) -> dict[str, Target]:
        """Those that the tenant may use."""
        return {name: each for name, each in self._targets.content().items() if {tenant, EVERYBODY} & set(each.tenants)}

    def target(self, params: Params, tenant: str) -> Target:
        """The place that the parameters name. Raises PublishFailure where the operator has changed his mind."""
        found = self.of_tenant(tenant).get(params.credentials)
        refusal = None if found is None else found.refusal(params, tenant)
        if found is None or found.to != params.to or refusal is not None:
            raise PublishFailure(
                "credentials_refused",
                f"the credentials {params.credentials} allow it no more" + (f": {refusal[1]}" if refusal else ""),
                "Ask the operator, or publish with other credentials.",
            )
        return found

    def check(self, asked: Sequence[Params], tenant: str, pointer: str) -> None:
        """Raises InvalidRequest unless the tenant may publish all of that. `pointer` is that of the list."""
        errors = []
        for index, params in enumerate(asked):
            allowed = {name: each for name, each in self.of_tenant(tenant).items() if each.to == params.to}
            where = f"{pointer}/{index}" if pointer else ""
            if params.credentials not in allowed:
                detail = f"there are no credentials of this name for `{params.to}` that your tenant may use"
                errors.append(field_error(f"{where}/credentials", "no_such_credentials", detail, sorted(allowed)[:50]))
            elif refusal := allowed[params.credentials].refusal(params, tenant):
                errors.append(field_error(f"{where}/{refusal[0]}", "not_allowed", refusal[1]))
        if errors:
            raise InvalidRequest(
                f"{errors[0]['pointer']}: {errors[0]['detail']}.", code=errors[0]["code"], errors=errors
            )


def secrets_of(target: Target) -> dict[str, str]:
    """The secrets by field, as they are now. Raises PublishFailure where one cannot be read."""
    found = {}
    for name in type(target).model_fields:
        reference = getattr(target, name)
        if isinstance(reference, SecretRef):
            text = _secret(reference)
            if not text:
                source = f"the variable {reference.env}" if reference.env else f"the file {reference.file}"
                raise PublishFailure(
                    "credentials_unreadable",
                    f"the service cannot read `{name}` of these credentials",
                    f"The operator sets {source} for the reconciler; then it is tried again.",
                    retryable=True,
                )
            found[name] = text
    return found


def _secret(reference: SecretRef) -> str:
    if reference.env is not None:
        return os.environ.get(reference.env, "").strip()
    try:
        return Path(reference.file or "").read_text().strip()
    except (OSError, ValueError):
        return ""


def _read(path: Path) -> dict[str, Target]:
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise BadCredentials(f"{path}: {error.strerror}") from None
    except ValueError:
        raise BadCredentials(f"{path} is no TOML") from None
    return {name: _target(path, name, section) for name, section in document.items()}


def _target(path: Path, name: str, section: Any) -> Target:
    where = f"{path}, section {name!r:.80}"
    if not NAME.fullmatch(name) or not isinstance(section, dict):
        raise BadCredentials(f"{where}: a name is up to 63 letters, digits, dots and dashes, and has a section")
    kinds = publishers()
    if section.get("to") not in kinds:
        raise BadCredentials(f"{where}: `to` is one of {', '.join(kinds)}")
    try:
        found: Target = kinds[section["to"]].target.model_validate(section)
    except ValidationError as error:
        # Without the values, which may be secrets that stand where their reference belongs.
        said = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
            for each in error.errors(include_input=False, include_url=False, include_context=False)
        )
        raise BadCredentials(f"{where}: {said}") from None
    for field in type(found).model_fields:
        reference = getattr(found, field)
        if isinstance(reference, SecretRef) and (reference.env is None) == (reference.file is None):
            raise BadCredentials(f'{where}: `{field}` is {{env = "VARIABLE"}} or {{file = "/path"}}')
    return found
