"""docker-compose.yml and Dockerfile, as far as they can be read without Docker."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from app.cli import cli
from app.settings import Settings
from tests.helpers.cluster import ROOT

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KNOWN = {f"ESPALIER_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"(\$\{\w+:-)?\d+[mg]\}?", service["mem_limit"])
    assert bool(service.get("cap_add")) == (name == "postgres")
    mounted = {volume.rpartition(":")[0].partition(":")[0] for volume in service.get("volumes", [])}
    assert mounted & set(COMPOSE["volumes"]) or service["tmpfs"], "there is no place to write to"


def test_settings_are_ours_and_tokens_only_where_models_are_fetched() -> None:
    for name, service in SERVICES.items():
        variables = service.get("environment", {})
        assert {each for each in variables if each.startswith("ESPALIER_")} <= KNOWN
        assert ("HF_TOKEN" in variables) == name.startswith("worker")
    assert set(re.findall(r"ESPALIER_\w+", DOCKERFILE)) <= KNOWN


def test_commands_are_ours() -> None:
    commands = {command.name for command in cli.registered_commands} | {group.name for group in cli.registered_groups}
    lines = [service["command"] for service in SERVICES.values() if "command" in service]
    checks = [service.get("healthcheck", {}).get("test") for service in SERVICES.values()]
    lines += [check[1:] for check in checks if check]
    lines += [yaml.safe_load(line) for line in re.findall(r"CMD (\[.*\])", DOCKERFILE)]
    asked = {line[1] for line in lines if line[0] == "espalier"}
    assert asked == {"api", "worker", "reconciler", "db", "probe"}
    assert asked <= commands


def test_targets_are_the_dockerfiles_and_what_is_copied_is_not_ignored() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE))
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} <= targets
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {part for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, flags=re.MULTILINE) for part in line.split()}
    assert copied <= sent
    packages = re.search(r"packages.find\]\ninclude = \[(.*)\]", (ROOT / "pyproject.toml").read_text())
    assert packages is not None
    assert {name.strip('" *') for name in packages[1].split(",")} <= copied


def test_no_image_runs_as_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[2:]
    assert len(stages) == 3
    for stage in stages:
        assert "USER 10001:10001" in stage
