import pytest

from petkit.artifacts.checks import Check
from petkit.artifacts.manifest import Base
from petkit.artifacts.router import RouterManifest, read_router, write_router
from petkit.artifacts.summary import describe_foreign
from petkit.artifacts.verification import verify
from petkit.errors import ArtifactError, InputError

MANIFEST = RouterManifest(base=Base(id="hf/org/name", sha256="ab" * 32), router={"probe_tokens": 64})


def test_a_router_comes_back(tmp_path):
    write_router(tmp_path / "r", MANIFEST, [Check("limit", True)], {"outcomes.jsonl": b"{}\n"})
    assert read_router(tmp_path / "r") == MANIFEST
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names == {"petkit.json", "config.yaml", "checks.json", "outcomes.jsonl"}
    with pytest.raises(InputError, match="not empty"):
        write_router(tmp_path / "r", MANIFEST, [], {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold a router, its petkit.json says kind 'None'"),
        ('{"kind": "router", "schema_version": 2, "base": {"id": "x"}, "router": {}}', "schema_version"),
        ('{"kind": "router", "kind": "router"}', "not valid JSON"),
        ('{"kind": "router", "base": {"id": "x"}, "router": {}, "extra": 1}', "extra"),
    ],
)
def test_broken_routers(tmp_path, text, message):
    (tmp_path / "petkit.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_router(tmp_path)


def test_a_router_is_inspected_and_verified(tmp_path):
    folder = write_router(tmp_path / "r", MANIFEST, [Check("limit", False, "too dear")], {})
    kind, sentence = describe_foreign(folder)
    assert kind == "router"
    assert "router for hf/org/name" in sentence
    checks = {check.name: check.ok for check in verify(folder, "cd" * 32)}
    assert checks["petkit.json"] is True
    assert checks["recorded: limit"] is False
    assert checks["base sha256"] is False
    (folder / "petkit.json").write_text('{"kind": "router"}')
    assert {check.name: check.ok for check in verify(folder)}["petkit.json"] is False
