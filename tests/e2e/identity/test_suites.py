"""SPIRE's integration suites as an operator and a program meet them; each test is named after its suite.

All are on one mesh; what takes it down comes last.
"""

import json
import random
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import grpc
import jwt
import pytest
from tests.web_certificate import web_pair

from meshwarden.controlplane.identity.jwt_key import KEYS
from meshwarden.controlplane.identity.record import NODES
from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.store.port import ANY, Put
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1.resource_service_pb2 import WatchRequest

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


async def as_an_earlier_version_wrote(store_file: Path) -> None:
    """Writes what the control plane has stored in the forms that came before."""
    async with open_store(store_file) as store:
        for prefix, added in ((NODES, ("attestor", "serials")), (KEYS, ("state", "begun", "since", "sealed"))):
            for record in (await store.range(prefix)).records:
                words = json.loads(record.value)
                assert words.keys() >= set(added), "a form that changes again gets another test"
                words = {name: value for name, value in words.items() if name not in added} | {"v": 1}
                await store.commit([Put(record.key, json.dumps(words).encode(), ANY)])


def test_upgrade(mesh: Any, programs: Any) -> None:
    """The control plane, agents and programs make room for the next, one after another, under calls."""
    caller = programs.start()
    anyio.run(as_an_earlier_version_wrote, mesh.up.state_dir / "server" / "store.sqlite")
    for name in ("server", "agent-node-a", "agent-node-b"):
        mesh.restart(name)
    for number in range(2):
        programs.restart(number)
    calls = caller.said["calls"]
    mesh.until(lambda: caller.said["calls"] > calls)
    assert caller.said["failed"] == []


TOKENS = """
from spiffe import WorkloadApiClient
with WorkloadApiClient() as client:
    print(*(client.fetch_jwt_svid({audience}).token for audience in ("vault", "orders")))
"""


def test_oidc_discovery_provider(mesh: Any, holder: Any) -> None:
    """Whoever knows OpenID Connect and nothing of us finds our keys, and by them knows a workload."""
    certificate, key = web_pair(mesh.directory)
    address = f"127.0.0.1:{free_port(random.SystemRandom())}"
    issuer = f"https://{address}"
    with (mesh.up.state_dir / "server.toml").open("a") as config:
        pair = f'certificate = "{certificate}"\nkey = "{key}"\nissuer = "{issuer}"\n'
        config.write(f'\n[spiffe_endpoint]\nlisten = "{address}"\nprofile = "https_web"\n{pair}')
    mesh.restart("server")
    command = mesh.exec(0, "held", sys.executable, "-c", TOKENS)
    token, other = subprocess.check_output(command, text=True, timeout=120).split()
    trusted = ssl.create_default_context(cafile=str(certificate))
    url = f"{issuer}/.well-known/openid-configuration"
    with urllib.request.urlopen(url, timeout=60, context=trusted) as answer:  # noqa: S310 - loopback
        found = json.load(answer)
    keys = jwt.PyJWKClient(found["jwks_uri"], ssl_context=trusted)
    wanted = {"algorithms": found["id_token_signing_alg_values_supported"], "audience": "vault", "issuer": issuer}
    claims = jwt.decode(token, keys.get_signing_key_from_jwt(token), **wanted)
    assert claims["sub"] == WHO + "held"
    head, _, signature = token.split(".")
    forged, orders = ".".join((head, other.split(".")[1], signature)), {"audience": "orders"}
    for text, more, error in (
        (token, orders, jwt.InvalidAudienceError),
        (token, {"issuer": "https://other.test"}, jwt.InvalidIssuerError),
        (forged, orders, jwt.InvalidSignatureError),
    ):
        with pytest.raises(error):
            jwt.decode(text, keys.get_signing_key_from_jwt(text), **{**wanted, **more})


def test_datastore_backup_and_restore(mesh: Any, again: Callable[[], Any], manifest: Manifest) -> None:
    """A copy of a control plane that runs, under load, becomes one that its nodes come back to."""
    mesh.apply(manifest("before", 0))
    mesh.until(lambda: mesh.may(0, "before"))
    with mesh.operator() as operator:
        answers = operator.resource.Watch(WatchRequest(kinds=["Tenant"]), timeout=60)
        cursor = next(answer.cursor for answer in answers if answer.HasField("cursor"))
    file, words, load = (mesh.directory / name for name in ("copy", "words", "load.yaml"))
    load.write_text(manifest("load", 1))
    words.touch(0o600)
    words.write_text("correct horse battery staple")
    state, loaded, stop = mesh.up.state_dir / "server", [], threading.Event()

    def apply() -> None:
        while not stop.is_set():
            loaded.append(mesh.up.run("apply", "-f", str(load)).returncode)

    thread = threading.Thread(target=apply)
    thread.start()
    try:
        mesh.until(lambda: loaded)
        mesh.cli("backup", "--state-dir", str(state), "--passphrase", f"file:{words}", str(file))
    finally:
        stop.set()
        thread.join()
    assert set(loaded) == {0}
    mesh.apply(manifest("after", 0))
    mesh.cli("down", "--state-dir", str(mesh.up.state_dir))
    state.rename(mesh.directory / "away")
    assert "passphrase" in mesh.cli("restore", "--state-dir", str(state), str(file), code=1).output
    mesh.cli("restore", "--state-dir", str(state), "--passphrase", f"file:{words}", str(file))
    restored = again()
    restored.until(lambda: [each["connected"] for each in restored.json("node", "list")] == [True, True])
    restored.until(lambda: restored.may(0, "before"))
    restored.until(lambda: not restored.may(0, "after"))
    assert restored.cli("audit", "verify").stdout.startswith("whole\t")
    with restored.operator() as operator, pytest.raises(grpc.RpcError, match="cursor is of another store"):
        next(iter(operator.resource.Watch(WatchRequest(kinds=["Tenant"], after=cursor), timeout=60)))
