"""SPIRE's integration suites as an operator and a program meet them; each test is named after its suite.

All are on one mesh.
"""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
WHO = "spiffe://mesh.test/tenant/acme/service/"
Manifest = Callable[[str, int], str]


def test_fetch_x509_svids(mesh: Any, holder: Any) -> None:
    (root,) = mesh.json("ca", "list")["roots"]
    assert holder.said["id"] == WHO + "held"
    assert holder.said["root"] == root["fingerprint"]
    assert holder.said["roots"] == [root["fingerprint"]]


def test_fetch_jwt_svids(holder: Any) -> None:
    assert holder.said["jwt"] == {"sub": WHO + "held", "proved": WHO + "held", "audience": ["orders"]}


def test_entries(mesh: Any, manifest: Manifest) -> None:
    assert not mesh.may(0, "web")
    mesh.apply(manifest("web", 0))
    mesh.until(lambda: mesh.may(0, "web"))
    mesh.cli("delete", "WorkloadEntry", "acme/web")
    mesh.until(lambda: not mesh.may(0, "web"))


def test_sync_authorized_entries(mesh: Any, manifest: Manifest) -> None:
    """A node has the entries that name it, and no others; and no longer than they do."""
    mesh.apply(manifest("moved", 0))
    mesh.until(lambda: mesh.may(0, "moved"))
    assert not mesh.may(1, "moved")
    mesh.apply(manifest("moved", 1))
    mesh.until(lambda: mesh.may(1, "moved"))
    mesh.until(lambda: not mesh.may(0, "moved"))


def test_events_based_entries(mesh: Any, manifest: Manifest) -> None:
    """Of many changes in a row none is missed."""
    names = [f"burst-{number}" for number in range(20)]
    mesh.apply("---\n".join(manifest(name, 1).partition("---\n")[2] for name in names))
    for name in names[:10]:
        mesh.cli("delete", "WorkloadEntry", f"acme/{name}")
    mesh.apply(manifest(names[0], 1))
    mesh.until(lambda: mesh.may(1, names[0]))
    assert mesh.may(1, names[-1])
    assert not mesh.may(1, names[9])


def test_admin_endpoints(mesh: Any) -> None:
    """An operator has what its role is, of its tenant, and for as long as it is one."""
    out = mesh.directory / "bob"
    made = mesh.cli("operator", "create", "bob", "--tenant", "acme", "--role", "viewer", "--out", str(out))
    own = mesh.json("context", "list")["current"]
    mesh.cli(*made.stderr.partition("use it with: meshwarden ")[2].split())
    try:
        assert "held" in mesh.cli("get", "Service", "--tenant", "acme").stdout
        for refused in (
            ("get", "Service", "--tenant", "globex"),
            ("delete", "Service", "acme/held"),
            ("identity", "deny", WHO + "held", "--reason", "x"),
            ("operator", "create", "eve", "--tenant", "acme", "--role", "admin", "--out", f"{out}-2"),
            ("node", "ban", "node-b"),
            ("ca", "list"),
            ("token", "create", "--node", "node-c"),
        ):
            assert f"{WHO.removesuffix('service/')}operator/bob" in mesh.cli(*refused, code=1).output
    finally:
        mesh.cli("context", "use", own)
    mesh.cli("operator", "remove", "bob", "--tenant", "acme")
    assert "bob" not in mesh.cli("operator", "list").stdout
    mesh.cli("--context", "bob", "get", "Service", "--tenant", "acme", code=1)


def test_agent_cli(mesh: Any) -> None:
    agent = mesh.said["agents"][0]["agent_socket"]

    def run(*arguments: str) -> Any:
        command = [*mesh.exec(0, "x")[:3], *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    status = run("status", "--socket", agent, "-o", "json")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["node"] == "node-a"
    for mistake in (
        ("status", "--socket", agent + "x"),
        ("exec", "--socket", agent, "--entry", "acme/none", "--", "true"),
    ):
        done = run(*mistake)
        assert done.returncode not in (0, -6, -11), mistake
        assert done.stderr.strip(), mistake
        assert "Traceback" not in done.stderr, mistake


def test_spire_server_cli(mesh: Any, holder: Any) -> None:
    """What an operator types, with mistakes, which change nothing and say what is wrong."""
    exists = mesh.directory / "exists"
    exists.mkdir()
    (exists / "file").touch()
    for code, said, command in (
        (1, "fingerprint", ("ca", "activate", "nope")),
        (4, "there is none", ("ca", "revoke", "0" * 64)),
        (1, "name the root", ("ca", "taint", "")),
        (2, "Missing argument", ("ca", "taint")),
        (4, "no-such has not joined", ("node", "evict", "no-such")),
        (4, "no-such has not joined", ("node", "forget", "no-such")),
        (4, "isn't banned", ("node", "unban", "node-a")),
        (1, "lower-case letters", ("node", "ban", "A/b")),
        (2, "say a SPIFFE ID", ("identity", "deny", "--reason", "x")),
        (1, "a SPIFFE ID starts with", ("identity", "deny", "mesh.test/x", "--reason", "x")),
        (1, "hexadecimal digits", ("identity", "deny", "--serial", "xyz", "--reason", "x")),
        (4, "is not denied", ("identity", "allow", WHO + "nobody")),
        (1, "lower-case letters", ("operator", "create", "A b", "--out", str(exists / "op"))),
        (2, "'king' is not one of", ("operator", "create", "ann", "--role", "king", "--out", str(exists / "op"))),
        (4, "no operator 'nobody'", ("operator", "remove", "nobody")),
        (2, "does not exist", ("audit", "verify", "--file", str(exists / "none"))),
        (1, "event", ("audit", "list", "--event", "\n")),
        (2, "Missing option '--node'", ("token", "create")),
        (1, "lower-case letters", ("token", "create", "--node", "A/b")),
        (1, "no control plane's state directory", ("backup", "--state-dir", str(exists), str(exists / "b"))),
        (1, "isn't empty", ("restore", "--state-dir", str(exists), str(exists / "file"))),
        (1, "no backup of a control plane", ("restore", "--state-dir", str(exists / "new"), str(exists / "file"))),
        (1, "No such file", ("restore", "--state-dir", str(exists / "new"), str(exists / "none"))),
    ):
        output = mesh.cli(*command, code=code).output
        assert said in output, (command, output)
    assert list(exists.iterdir()) == [exists / "file"]
    assert {each["node"]: each["connected"] for each in mesh.json("node", "list")} == {"node-a": True, "node-b": True}
    denied = mesh.cli("identity", "deny", WHO + "held", "--reason", "a test")
    assert "in force on 2 of 2 nodes" in denied.stderr
    assert WHO + "held" in mesh.cli("identity", "denied").stdout
    mesh.cli("identity", "allow", WHO + "held")
    assert WHO + "held" not in mesh.cli("identity", "denied").stdout
    events = {event["event"] for event in mesh.json("audit", "list", "--event", "identity.")}
    assert events >= {"identity.deny", "identity.allow"}
    assert mesh.cli("audit", "verify").stdout.startswith("whole\t")


def test_rotation(mesh: Any, holder: Any) -> None:
    """A root is prepared, trusted everywhere, and signs from then on; the program has it all without a restart."""
    old = holder.said["root"]
    mesh.cli("ca", "prepare", "--reason", "a test")
    new = next(root["fingerprint"] for root in mesh.json("ca", "list")["roots"] if root["state"] == "PREPARED")
    mesh.until(lambda: holder.said["roots"] == sorted((old, new)))
    mesh.until(lambda: not next(r for r in mesh.json("ca", "list")["roots"] if r["state"] == "PREPARED").get("missing"))
    mesh.cli("ca", "activate", new[:16])
    states = {root["fingerprint"]: root["state"] for root in mesh.json("ca", "list")["roots"]}
    assert states == {new: "ACTIVE", old: "OLD"}
    mesh.cli("svid", "renew", "--reason", "a test")
    mesh.until(lambda: holder.said["root"] == new)


def test_force_rotation_self_signed(mesh: Any, holder: Any) -> None:
    """A root that has leaked is tainted, everything is renewed from another, and it is trusted no more."""
    (old,) = (root["fingerprint"] for root in mesh.json("ca", "list")["roots"] if root["state"] != "ACTIVE")
    tainted = mesh.cli("ca", "taint", old[:16], "--reason", "leaked")
    assert "TAINTED" in tainted.stdout
    mesh.until(lambda: not next(r for r in mesh.json("ca", "list")["roots"] if r["state"] == "TAINTED").get("usedBy"))
    assert "use --force" in mesh.cli("ca", "revoke", old[:16], code=1).output  # connections of before are open still
    mesh.cli("ca", "revoke", old[:16], "--force")
    mesh.until(lambda: old not in holder.said["roots"])
    assert [root["state"] for root in mesh.json("ca", "list")["roots"]] == ["ACTIVE"]
    mesh.until(lambda: mesh.may(0, "held"))
