"""A stranger's store, met by the commands as operators start them: one sentence with the remedy, and an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import migrate
from app.settings import Settings
from app.storage import ArtifactStore
from tests.helpers.cluster import free_port
from tests.helpers.command import espalier
from tests.helpers.embedded import environment


@pytest.mark.parametrize(("command", "exit_code"), [("serve", 2), ("api", 3), ("worker", 2)])
def test_a_strangers_store_is_refused(tmp_path: Path, command: str, exit_code: int) -> None:
    settings = Settings(home=tmp_path)
    migrate.upgrade(settings.database_url)
    ArtifactStore(settings.artifacts_url).mark("dep_other")
    variables = environment(tmp_path) | {"ESPALIER_PORT": str(free_port())}
    done = espalier(command, env=variables)
    assert done.returncode == exit_code, done.stderr
    assert "belongs to deployment dep_other" in done.stderr
    assert "espalier adopt-store --from dep_other" in done.stderr
    assert "Traceback" not in done.stderr
    assert "╭" not in done.stderr
