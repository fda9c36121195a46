"""The wheel of this tree, and an environment with it and what it requires."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers import fresh


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh.wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of the environment, with the wheel installed."""
    binaries = fresh.base(tmp_path_factory.mktemp("base") / "environment")
    install = [binaries / "python", "-m", "pip", "install", "--quiet", wheel]
    # With what it requires: pip finds that it is there.
    subprocess.run(install, env=fresh.variables(binaries), check=True, timeout=120)
    return binaries
