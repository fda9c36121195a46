"""Capabilities follow from the registry; the API neither needs torch nor reaches it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from app.capabilities.endpoints import Capabilities
from app.publications.registry import publishers
from tests.helpers.api import ROOT, Api
from workers.engine.registry import discover
from workers.engine.spec import CompressionSpec


def run(code: str, path: Path, **environment: str) -> str:
    """Output of a fresh interpreter that imports from `path`."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=path,
        env={"PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestCapabilities:
    def test_are_the_registry(self, api: Api) -> None:
        found = Capabilities.model_validate(api.client.get("/v1/capabilities").json())
        assert {(stage.stage, m.name) for stage in found.stages for m in stage.methods} == set(discover())
        methods = {(stage.stage, m.name): m for stage in found.stages for m in stage.methods}
        wanda, mask = methods["score", "wanda"], methods["prune", "mask"]
        assert wanda.needs == ["input_sq_mean"]
        assert (wanda.paper, wanda.units) == (
            "arXiv:2306.11695",
            ["weight", "expert_channel", "head", "channel", "hidden"],
        )
        assert mask.patterns == ["unstructured", "N:M"]
        assert methods["prune", "sparsegpt"].needs == ["gram"]
        assert (methods["prune", "sparsegpt"].score, methods["prune", "sparsegpt"].updates_weights) == ("unused", True)
        assert (methods["prune", "mask"].score, methods["prune", "mask"].updates_weights) == ("required", False)
        assert (wanda.score, wanda.updates_weights) == (None, None)
        assert methods["allocate", "search"].needs == ["loss"]
        assert mask.parameters["properties"]["sparsity"]["examples"] == [0.5]
        fields = {field.name: field.parameters for field in found.fields}
        assert {*fields, *(stage.stage for stage in found.stages)} == set(CompressionSpec.model_fields)
        assert set(fields["calibrate"]["$defs"]) == {"Calibrate"}
        assert fields["seed"]["properties"]["seed"]["default"] == 0
        places = {publisher.name: publisher.parameters for publisher in found.publishers}
        assert places.keys() == publishers().keys()
        assert places["s3"]["properties"]["path"]["examples"] == ["bookworm/v3"]

    def test_are_sent_once(self, api: Api) -> None:
        etag = api.client.get("/v1/capabilities").headers["ETag"]
        again = api.client.get("/v1/capabilities", headers={"If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")


METHOD = '''
"""Dropped: a method that was dropped into the folder."""
from __future__ import annotations
from typing import TYPE_CHECKING, Literal
from pydantic import Field
from workers.engine.contracts.params import MethodParams
from workers.engine.registry import scorer

class DroppedParams(MethodParams):
    """Nothing but a test."""
    method: Literal["dropped"] = "dropped"
    temperature: float = Field(1.0, gt=0, le=9)

@scorer(DroppedParams, group="row", paper="arXiv:0000.00000")
def score(weight_OI, stats, params):
    """Importance."""
    return weight_OI.abs()
'''


def test_a_method_file_dropped_in_appears_everywhere(tmp_path: Path) -> None:
    for package in ("app", "workers", "migrations"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "workers/engine/methods/score/dropped.py").write_text(METHOD)
    printed = run(
        """
        from app.capabilities.endpoints import rendered
        from app.main import create_app
        from app.settings import Settings
        from workers.engine.spec import CompressionSpec
        import app.main
        import pathlib

        print(pathlib.Path(app.main.__file__).parent.parent)
        print('"dropped"' in rendered()[0].decode())
        schemas = create_app(Settings(home=pathlib.Path("home"))).openapi()["components"]["schemas"]
        print(schemas["DroppedParams"]["properties"]["temperature"]["maximum"])
        union, none = schemas["CompressionSpec"]["properties"]["score"]["anyOf"]
        print("dropped" in union["discriminator"]["mapping"], none)
        spec = {"model": {"id": "m"}, "score": {"method": "dropped", "temperature": 3},
                "prune": {"method": "mask", "sparsity": 0.5}}
        print(CompressionSpec.model_validate(spec).score)
        """,
        tmp_path,
    )
    assert printed.splitlines() == [
        str(tmp_path),
        "True",
        "9.0",
        "True {'type': 'null'}",
        "method='dropped' temperature=3.0",
    ]


def test_the_api_serves_where_no_heavy_library_is_installed(tmp_path: Path) -> None:
    """torch, transformers, numpy and the rest of the `worker` extra cannot be imported: everything answers."""
    printed = run(
        """
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in HEAVY:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        HEAVY = {"torch", "transformers", "numpy", "datasets", "accelerate", "lm_eval", "matplotlib", "safetensors"}
        sys.meta_path.insert(0, Missing())

        from starlette.testclient import TestClient
        from app import migrate
        from app.keys import service as keys
        from app.keys.scopes import SCOPES
        from app.main import create_app
        from app.settings import Settings

        settings = Settings(log_level="error")
        migrate.upgrade(settings.database_url)
        app = create_app(settings)
        spec = {"model": {"id": "bookworm-7m"}, "score": {"method": "magnitude"},
                "prune": {"method": "mask", "sparsity": 0.5}}
        with TestClient(app) as client:
            with app.state.services.database.write() as session:
                _, key = keys.create_key(session, secret=settings.secret(), tenant="t", name="n",
                                         scopes=SCOPES, expires_days=None)
            client.headers["Authorization"] = f"Bearer {key}"
            print(client.get("/v1/capabilities").status_code)
            print(client.post("/v1/jobs?dry_run=true", json={"spec": spec}).status_code)
            print(client.post("/v1/jobs", json={"spec": spec}).status_code)
            print(client.get("/openapi.json").status_code)
        print(sorted(HEAVY & {name.partition(".")[0] for name in sys.modules}))
        """,
        ROOT,
        ESPALIER_HOME=str(tmp_path),
    )
    assert printed.splitlines() == ["200", "200", "202", "200", "[]"]
