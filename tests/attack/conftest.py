"""One application on SQLite, with the models and texts of the examples."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from tests.helpers.api import ROOT


@pytest.fixture
def app(migrated_sqlite: Path, tmp_path: Path) -> FastAPI:
    return create_app(
        Settings(
            home=tmp_path / "home",
            database_url=f"sqlite:///{shutil.copyfile(migrated_sqlite, tmp_path / 'espalier.db')}",
            secret_key="for tests only",
            models_dir=ROOT / "examples/models",
            data_dir=ROOT / "examples/data",
            log_level="error",
        )
    )
