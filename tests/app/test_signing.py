"""Signed manifests: the keys and their life, the signature as other libraries read it, and every tampering found."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import KeySet, OKPKey
from typer.testing import CliRunner

from app.cli import cli
from app.settings import Settings
from app.signing.check import Checked, check
from app.signing.keys import BadKeys, KeyRing, decoded, encoded, key_ring, thumbprint
from app.signing.signature import KIND, Statement, sign
from tests.helpers.api import FILES, Api, make_key, with_manifest
from tests.helpers.publishing import ON_SQLITE

WELL_KNOWN = "/.well-known/espalier-keys.json"


JOB_ID = "job_" + "1" * 32


def published(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = api.client.get(WELL_KNOWN).json()
    return found


def downloaded(api: Api, folder: Path) -> str:
    """A job's id, and its files in `folder`, each as the service hands it out."""
    job = api.succeeded(with_manifest({**FILES, "deep/er/config.json": b"{}"}))
    for file in api.get(job, "/artifacts").json()["data"]:
        (folder / file["path"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / file["path"]).write_bytes(api.client.get(file["url"]).content)
    return str(job["id"])


def signed(ring: KeyRing, folder: Path, job_id: str = JOB_ID, **changed: bytes) -> Path:
    """A folder with the files of a result, as `downloaded` makes one."""
    files = with_manifest({**FILES, "deep/er/config.json": b"{}", **changed})
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    digest = hashlib.sha256(files["manifest.json"]).hexdigest()
    statement = Statement(manifest_sha256=digest, job_id=job_id, tenant="ours", finished_at="2026-11-27T12:00:00.000Z")
    key = ring.signs()
    assert key is not None
    (folder / "manifest.jws").write_bytes(sign(key, statement))
    return folder


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "keys.json", make=True)


@pytest.fixture
def folder(ring: KeyRing, tmp_path: Path) -> Path:
    """A result as it was signed."""
    return signed(ring, tmp_path / "result")


@pytest.fixture
def signing(api: Api) -> Api:
    """A service that has keys, whatever its database."""
    KeyRing(api.services.signing.path, make=True)
    return api


def codes(found: Checked) -> set[tuple[str, str]]:
    return {(each.code, each.path) for each in found.findings}


class TestKeys:
    def test_the_first_is_made_once_and_readable_by_its_owner_only(self, tmp_path: Path) -> None:
        first, again = (KeyRing(tmp_path / "keys.json", make=True) for _ in range(2))
        assert [key.kid for key in first.all()] == [key.kid for key in again.all()]
        assert len(first.all()) == 1
        assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600

    def test_no_private_half_is_published(self, tmp_path: Path) -> None:
        ring = KeyRing(tmp_path / "keys.json", make=True)
        signs = ring.signs()
        assert signs is not None
        assert signs.private is not None
        assert encoded(signs.private) in (tmp_path / "keys.json").read_text()
        assert encoded(signs.private) not in json.dumps(ring.published())
        assert all("d" not in key for key in ring.published()["keys"])

    def test_rotation_deletes_the_private_half_before(self, tmp_path: Path) -> None:
        ring = KeyRing(tmp_path / "keys.json", make=True)
        before = ring.signs()
        assert before is not None
        assert before.private is not None
        made = ring.rotate()
        assert ring.signs() == made
        assert encoded(before.private) not in (tmp_path / "keys.json").read_text()
        assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
        old, new = ring.published()["keys"]
        assert (old["kid"], new["kid"]) == (before.kid, made.kid)
        assert old["retired_at"] is not None
        assert new["retired_at"] is None

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_the_file_stays_its_owners_whoever_changes_it(self, tmp_path: Path) -> None:
        ring = KeyRing(tmp_path / "keys.json", make=True)
        os.chown(ring.path, 1234, 1235)
        ring.rotate()
        found = ring.path.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 1235, 0o600)

    def test_another_process_sees_the_change(self, tmp_path: Path) -> None:
        ours, theirs = (KeyRing(tmp_path / "keys.json", make=True) for _ in range(2))
        made = theirs.rotate()
        assert ours.signs() == made

    def test_a_revoked_key_is_published_by_its_id_alone_and_another_signs(self, tmp_path: Path) -> None:
        ring = KeyRing(tmp_path / "keys.json", make=True)
        before = ring.signs()
        assert before is not None
        ring.revoke(before.kid)
        now = ring.signs()
        assert now is not None
        assert now.kid != before.kid
        found = ring.published()
        assert [key["kid"] for key in found["keys"]] == [now.kid]
        assert [key["kid"] for key in found["revoked"]] == [before.kid]
        assert ring.revoke(before.kid).revoked_at == found["revoked"][0]["revoked_at"]
        with pytest.raises(BadKeys, match="no key nobody"):
            ring.revoke("nobody")

    def test_a_file_that_breaks_while_the_service_runs_changes_nothing(self, tmp_path: Path) -> None:
        ring = KeyRing(tmp_path / "keys.json", make=True)
        before = ring.all()
        (tmp_path / "keys.json").write_text('{"keys": [{"kty": "OKP"')
        assert ring.all() == before
        (tmp_path / "keys.json").unlink()
        assert ring.all() == before

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"keys": [1]}', '{"keys": [{"kty": "RSA"}]}', "\xff"])
    def test_no_set_of_keys_is_refused_at_the_start(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "keys.json").write_text(text)
        with pytest.raises(BadKeys, match=r"keys\.json"):
            KeyRing(tmp_path / "keys.json", make=True)

    def test_halves_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        ring = KeyRing(tmp_path / "keys.json", make=True)
        document = json.loads(ring.path.read_text())
        document["keys"][0]["d"] = encoded(bytes(32))
        ring.path.write_text(json.dumps(document))
        with pytest.raises(BadKeys):
            KeyRing(tmp_path / "keys.json", make=True)

    def test_of_bytes_there_is_one_text(self) -> None:
        assert decoded(encoded(b"\xff\xfe")) == b"\xff\xfe"
        for text in ("__4=", "__5", "//4", "é", "_ _4"):
            with pytest.raises(ValueError):  # noqa: PT011 - binascii's and ours
                decoded(text)


class TestService:
    @ON_SQLITE
    def test_another_library_verifies_it(self, signing: Api, tmp_path: Path) -> None:
        job_id = downloaded(signing, tmp_path / "result")
        (key,) = published(signing)["keys"]
        assert OKPKey.import_key(key).thumbprint() == key["kid"] == thumbprint(decoded(key["x"]))
        text = (tmp_path / "result/manifest.jws").read_text().strip()
        read = jws.deserialize_compact(text, KeySet.import_key_set({"keys": [key]}), algorithms=["Ed25519"])
        assert read.protected == {"alg": "Ed25519", "kid": key["kid"], "typ": KIND}
        statement = json.loads(read.payload)
        assert (statement["job_id"], statement["tenant"]) == (job_id, "ours")

    @ON_SQLITE
    def test_it_is_listed_and_served_as_the_other_files_are(self, signing: Api, tmp_path: Path) -> None:
        job_id = downloaded(signing, tmp_path / "result")
        listed = {file["path"]: file for file in signing.client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]}
        assert list(listed) == sorted(listed)
        url = listed["manifest.jws"]["url"]
        answer = signing.client.get(url)
        assert (answer.headers["ETag"], len(answer.content)) == (
            f'"{listed["manifest.jws"]["sha256"]}"',
            listed["manifest.jws"]["bytes"],
        )
        assert answer.headers["Content-Type"] == listed["manifest.jws"]["media_type"] == "application/jose"
        part = signing.client.get(url, headers={"Range": "bytes=3-9"})
        assert (part.status_code, part.content) == (206, answer.content[3:10])
        assert signing.client.head(url).headers["Content-Length"] == str(len(answer.content))
        assert signing.client.get(url, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304

    @ON_SQLITE
    def test_who_may_not_read_the_result_gets_no_signature(self, signing: Api, tmp_path: Path) -> None:
        url = f"/v1/jobs/{downloaded(signing, tmp_path / 'result')}/artifacts/manifest.jws"
        for tenant, scopes, status in (("theirs", ("artifacts:read",), 404), ("ours", ("jobs:read",), 403)):
            headers = {"Authorization": f"Bearer {make_key(signing.services, tenant, scopes)[0]}"}
            assert signing.client.get(url, headers=headers).status_code == status

    @ON_SQLITE
    def test_a_job_without_a_manifest_has_none(self, signing: Api) -> None:
        for job in (signing.submit(), signing.succeeded()):
            assert signing.get(job, "/artifacts/manifest.jws").status_code == 404

    @ON_SQLITE
    def test_without_keys_nothing_is_signed_and_the_rest_is_as_ever(self, signing: Api, tmp_path: Path) -> None:
        signing.services.signing.path.write_text('{"keys": []}')
        downloaded(signing, tmp_path / "result")
        assert published(signing) == {"keys": [], "revoked": []}
        assert not (tmp_path / "result/manifest.jws").exists()
        assert codes(check(tmp_path / "result", published(signing))) == {("unsigned", "manifest.jws")}

    @ON_SQLITE
    def test_what_it_hands_out_is_good_until_its_key_is_revoked_and_then_signed_anew(
        self, signing: Api, tmp_path: Path
    ) -> None:
        job_id = downloaded(signing, tmp_path / "result")
        found = check(tmp_path / "result", published(signing), job_id=job_id, tenant="ours")
        assert (found.findings, found.files) == ([], len(FILES) + 1)
        assert found.kid is not None
        signing.services.signing.revoke(found.kid)
        assert codes(check(tmp_path / "result", published(signing))) == {("revoked_key", "manifest.jws")}
        again = signing.client.get(f"/v1/jobs/{job_id}/artifacts/manifest.jws").content
        (tmp_path / "result/manifest.jws").write_bytes(again)
        assert check(tmp_path / "result", published(signing)).findings == []

    def test_keys_are_made_only_in_the_home_of_an_embedded_service(self, tmp_path: Path) -> None:
        home = Settings(home=tmp_path / "home", secret_key="s")
        assert key_ring(home).signs()
        shared = Settings(home=tmp_path / "other", secret_key="s", database_url="postgresql://nowhere/x")
        assert key_ring(shared).signs() is None
        elsewhere = Settings(home=tmp_path / "home", secret_key="s", signing_keys=tmp_path / "keys.json")
        assert key_ring(elsewhere).signs() is None


Spoil = Callable[[Path], None]


def flipped(path: str, at: int = -2) -> Spoil:
    def spoil(folder: Path) -> None:
        content = bytearray((folder / path).read_bytes())
        content[at] ^= 1
        (folder / path).write_bytes(content)

    return spoil


def with_extra(folder: Path) -> None:
    (folder / "deep/modeling_evil.py").write_text("import os")


def with_a_link_to_a_folder(folder: Path) -> None:
    (folder / "more").symlink_to("/etc", target_is_directory=True)


def with_a_broken_link(folder: Path) -> None:
    (folder / "more").symlink_to("nowhere")


def linked(path: str, to: str) -> Spoil:
    """The file is the same, behind a link, which leads to `to` beside the folder or in it."""

    def spoil(folder: Path) -> None:
        (folder / path).rename(folder / to)
        (folder / path).symlink_to((folder / to).resolve())

    return spoil


def with_a_linked_folder(folder: Path) -> None:
    (folder / "deep").rename(folder.parent / "deep")
    (folder / "deep").symlink_to("../deep")


def as_in_the_cache_of_a_hub(folder: Path) -> None:
    """As `snapshot_download` makes it: each file is a link to a blob beside the snapshots."""
    (folder.parent / "blobs").mkdir()
    for file in [each for each in folder.rglob("*") if each.is_file()]:
        blob = folder.parent / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, file.parent))


def with_a_hard_link_to_others(folder: Path) -> None:
    (folder.parent / "other").write_bytes(b"another card")
    with_less(folder)
    (folder / "README.md").hardlink_to(folder.parent / "other")


def with_one_more_name_of_a_file(folder: Path) -> None:
    (folder / "copy.md").hardlink_to(folder / "README.md")


def changed_by_its_other_name(folder: Path) -> None:
    (folder.parent / "other").hardlink_to(folder / "README.md")
    with (folder.parent / "other").open("r+b") as file:
        file.write(b"!")


def with_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "more")


def with_a_pipe_for(path: str) -> Spoil:
    """Whoever opens it waits for ever."""

    def spoil(folder: Path) -> None:
        (folder / path).unlink()
        os.mkfifo(folder / path)

    return spoil


def with_a_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(folder):  # a socket's path is short
        made.bind("more")


def with_a_name_in_other_letters(folder: Path) -> None:
    """On file systems that do not tell them apart, one of the two would be gone."""
    (folder / "readme.MD").write_bytes(b"another card")


def with_a_name_that_is_no_text(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x1b[31m")).write_bytes(b"")


def with_less(folder: Path) -> None:
    (folder / "README.md").unlink()


def with_a_folder_for_a_file(folder: Path) -> None:
    with_less(folder)
    (folder / "README.md").mkdir()


def with_a_longer_file(folder: Path) -> None:
    with (folder / "README.md").open("ab") as file:
        file.write(b"\n")


def without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def without_signature(folder: Path) -> None:
    (folder / "manifest.jws").unlink()


def with_another_algorithm(folder: Path) -> None:
    header, payload, signature = (folder / "manifest.jws").read_text().split(".")
    changed = {**json.loads(decoded(header)), "alg": "none"}
    (folder / "manifest.jws").write_text(f"{encoded(json.dumps(changed).encode())}.{payload}.{signature}")


def with_a_deep_header(folder: Path) -> None:
    _, payload, signature = (folder / "manifest.jws").read_text().split(".")
    (folder / "manifest.jws").write_text(f"{encoded(b'[' * 99_999)}.{payload}.{signature}")


def with_a_changed_statement(folder: Path) -> None:
    header, payload, signature = (folder / "manifest.jws").read_text().split(".")
    changed = {**json.loads(decoded(payload)), "tenant": "theirs"}
    (folder / "manifest.jws").write_text(f"{header}.{encoded(json.dumps(changed).encode())}.{signature}")


class TestTampering:
    def test_a_result_as_it_was_signed(self, ring: KeyRing, folder: Path) -> None:
        found = check(folder, ring.published(), job_id=JOB_ID, tenant="ours")
        assert (found.findings, found.files) == ([], len(FILES) + 1)
        assert found.statement is not None
        assert found.statement.job_id == JOB_ID

    def test_a_bit_of_any_byte_of_any_file(self, ring: KeyRing, folder: Path) -> None:
        """Of the signature each; of others at both ends and in the middle."""
        keys = ring.published()
        for path in [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]:
            size = (folder / path).stat().st_size
            for at in range(size) if path == "manifest.jws" else (0, size // 2, size - 1):
                flipped(path, at)(folder)
                found = codes(check(folder, keys))
                if path == "manifest.jws":  # also of the id of the key, which is then unknown
                    assert {each for _, each in found} == {path}, at
                else:
                    assert ("manifest" if path == "manifest.json" else "changed", path) in found, at
                flipped(path, at)(folder)
        assert check(folder, keys).findings == []

    @pytest.mark.parametrize(
        ("spoil", "expected"),
        [
            (with_extra, ("extra", "deep/modeling_evil.py")),
            (with_a_link_to_a_folder, ("link", "more")),
            (with_a_broken_link, ("link", "more")),
            (linked("README.md", "../elsewhere"), ("link", "README.md")),
            (linked("manifest.json", "../elsewhere"), ("link", "manifest.json")),
            (linked("manifest.jws", "../elsewhere"), ("link", "manifest.jws")),
            (with_a_hard_link_to_others, ("changed", "README.md")),
            (with_one_more_name_of_a_file, ("extra", "copy.md")),
            (changed_by_its_other_name, ("changed", "README.md")),
            (with_a_pipe, ("special", "more")),
            (with_a_pipe_for("README.md"), ("special", "README.md")),
            (with_a_pipe_for("manifest.json"), ("special", "manifest.json")),
            (with_a_pipe_for("manifest.jws"), ("special", "manifest.jws")),
            (with_a_socket, ("special", "more")),
            (with_a_name_in_other_letters, ("extra", "readme.MD")),
            (with_a_name_that_is_no_text, ("extra", "\udcff\x1b[31m")),
            (with_less, ("missing", "README.md")),
            (with_a_folder_for_a_file, ("missing", "README.md")),
            (with_a_longer_file, ("changed", "README.md")),
            (without_manifest, ("manifest", "manifest.json")),
            (without_signature, ("unsigned", "manifest.jws")),
            (with_another_algorithm, ("signature", "manifest.jws")),
            (with_a_deep_header, ("signature", "manifest.jws")),
            (with_a_changed_statement, ("signature", "manifest.jws")),
        ],
    )
    def test_anything_else(self, ring: KeyRing, folder: Path, spoil: Spoil, expected: tuple[str, str]) -> None:
        spoil(folder)
        assert codes(check(folder, ring.published())) == {expected}

    @pytest.mark.parametrize(
        ("spoil", "expected"),
        [
            (linked("README.md", "deep/card"), {("link", "README.md"), ("extra", "deep/card")}),
            (with_a_linked_folder, {("link", "deep"), ("missing", "deep/er/config.json")}),
            (as_in_the_cache_of_a_hub, {("link", "manifest.json")}),
        ],
    )
    def test_links_are_not_followed(
        self, ring: KeyRing, folder: Path, tmp_path: Path, spoil: Spoil, expected: set[tuple[str, str]]
    ) -> None:
        spoil(folder)
        found = check(folder, ring.published())
        assert codes(found) == expected
        assert "copy the folder with what links lead to" in {each.code: each.message for each in found.findings}["link"]
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))  # follows them, as `cp -rL` does
        assert codes(check(copy, ring.published())) == {each for each in expected if each[0] == "extra"}

    def test_a_hard_link_of_the_very_file_is_the_file(self, ring: KeyRing, folder: Path) -> None:
        """As backups and package managers make them."""
        (folder.parent / "other").hardlink_to(folder / "README.md")
        assert check(folder, ring.published()).findings == []

    def test_another_case_of_a_name_is_another_file(self, ring: KeyRing, folder: Path) -> None:
        (folder / "README.md").rename(folder / "readme.md")
        assert codes(check(folder, ring.published())) == {("missing", "README.md"), ("extra", "readme.md")}

    @pytest.mark.skipif(os.geteuid() == 0, reason="root lists every folder")
    def test_a_folder_that_cannot_be_listed_is_no_empty_one(self, ring: KeyRing, folder: Path) -> None:
        (folder / "closed").mkdir(mode=0)
        with pytest.raises(PermissionError):
            check(folder, ring.published())

    def test_files_that_may_be_there(self, ring: KeyRing, folder: Path) -> None:
        (folder / ".gitattributes").write_text("")
        (folder / ".cache/huggingface").mkdir(parents=True)
        (folder / ".cache/huggingface/x").write_text("")
        ignored = [".gitattributes", ".cache/*", "README.md"]
        assert check(folder, ring.published(), ignored=ignored).findings == []
        flipped("README.md")(folder)  # one of the manifest's is never ignored
        assert codes(check(folder, ring.published(), ignored=ignored)) == {("changed", "README.md")}

    def test_parts_of_another_job(self, ring: KeyRing, folder: Path, tmp_path: Path) -> None:
        other_id = "job_" + "2" * 32
        other = signed(ring, tmp_path / "other", other_id, **{"README.md": b"# Another card"})
        keys = ring.published()
        for swapped, expected in (
            (["manifest.json"], {("manifest", "manifest.json"), ("changed", "README.md")}),
            (["manifest.jws"], {("manifest", "manifest.json")}),
            (["manifest.json", "manifest.jws"], {("changed", "README.md")}),
            (["README.md"], {("changed", "README.md")}),
        ):
            mixed = Path(shutil.copytree(folder, tmp_path / "-".join(swapped)))
            for name in swapped:
                shutil.copy(other / name, mixed / name)
            assert codes(check(mixed, keys)) == expected
        # Whole, it is a good result: whoever names the job that he means finds that it is another.
        assert check(other, keys, job_id=other_id).findings == []
        assert codes(check(other, keys, job_id=JOB_ID)) == {("other_job", "manifest.jws")}
        assert codes(check(other, keys, tenant="theirs")) == {("other_tenant", "manifest.jws")}

    def test_another_services_signature(self, ring: KeyRing, folder: Path, tmp_path: Path) -> None:
        others = KeyRing(tmp_path / "others.json", make=True)
        assert codes(check(folder, others.published())) == {("unknown_key", "manifest.jws")}
        # Also where it calls its key by the id of ours.
        ours, theirs = ring.published(), others.published()
        theirs["keys"][0]["kid"] = ours["keys"][0]["kid"]
        assert codes(check(folder, theirs)) == {("signature", "manifest.jws")}


class TestLifeOfKeys:
    def test_after_a_rotation_old_and_new_signatures_are_good(
        self, ring: KeyRing, folder: Path, tmp_path: Path
    ) -> None:
        made = ring.rotate()
        new, keys = signed(ring, tmp_path / "new"), ring.published()
        assert check(folder, keys).findings == check(new, keys).findings == []
        assert check(new, keys).kid == made.kid != check(folder, keys).kid

    def test_what_a_revoked_key_signed_is_not(self, ring: KeyRing, folder: Path) -> None:
        before = check(folder, ring.published()).kid
        assert before is not None
        ring.revoke(before)
        (found,) = check(folder, ring.published()).findings
        assert (found.code, found.path) == ("revoked_key", "manifest.jws")
        assert "download the result again" in found.message

    def test_a_key_that_was_revoked_signs_nothing_whatever_the_file_says(self, ring: KeyRing) -> None:
        document = json.loads(ring.path.read_text())
        document["keys"][0]["revoked_at"] = "2026-11-27T12:00:00Z"
        ring.path.write_text(json.dumps(document))
        assert ring.signs() is None
        assert ring.published()["keys"] == []


@pytest.mark.parametrize(
    ("url", "arguments"),
    [("http://192.0.2.1:8000", []), ("https://192.0.2.1", ["--keys", "http://192.0.2.1/keys.json"])],
)
def test_keys_come_over_https_or_from_this_machine(url: str, arguments: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["--url", url, "verify", str(tmp_path), *arguments])
    assert (done.exit_code, "over https" in done.stderr) == (2, True), done.stderr
