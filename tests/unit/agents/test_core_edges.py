"""What comes in at the edges: configuration, reports, the command line, the schema of the Workload API."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshwarden.agents import cli
from meshwarden.agents.api import InvalidReport, stamped
from meshwarden.agents.config import ConfigError, load
from meshwarden.agents.workload import Workload
from meshwarden.agents.workload_api import schema
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.v1 import report_pb2 as report_pb
from meshwarden.v1 import resources_pb2 as resources
from meshwarden.v1 import workload_service_pb2 as pb

GOOD = {
    "node": "node-a",
    "control_plane": "127.0.0.1:7443",
    "ca_file": "/ca.pem",
    "trust_domain": "mesh.test",
    "state_dir": "/var/lib/mw",
}


def write(path: Path, **values: object) -> Path:
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return path


def test_sockets_lie_below_the_state_directory_unless_said(tmp_path: Path) -> None:
    config = load(write(tmp_path / "a.toml", **GOOD))
    assert config.agent_socket == Path("/var/lib/mw/run/agent.sock")
    assert config.advertise_address == "127.0.0.1"
    config = load(write(tmp_path / "b.toml", **GOOD, agent_socket="/run/a.sock"))
    assert (config.agent_socket, config.run_dir) == (Path("/run/a.sock"), Path("/run"))


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHWARDEN_AGENT_NODE", "node-b")
    monkeypatch.setenv("MESHWARDEN_AGENT_STATE_DIR", "/else")
    config = load(write(tmp_path / "a.toml", **GOOD))
    assert (config.node, config.agent_socket) == ("node-b", Path("/else/run/agent.sock"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("node", "Node A"),
        ("node", "node-a\n"),
        ("control_plane", "nowhere"),
        ("control_plane", "host:0"),
        ("control_plane", "host:99999"),
        ("trust_domain", "Mesh.Test"),
        ("agent_socket", "relative.sock"),
        ("agent_socket", "/" + "a" * 120),
        ("advertise_address", "localhost"),
        ("zone", "z" * 64),
        ("envoy_concurrency", 0),
        ("unknown", "x"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        load(write(tmp_path / "a.toml", **{**GOOD, key: value}))


@pytest.mark.parametrize("content", ["", "node = ", "\x00", "node = 1\nnode = 2"])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"a\.toml"):
        load(tmp_path / "a.toml")


def workload() -> Workload:
    return Workload(
        id="acme/web#1",
        entry=resources.WorkloadEntry(metadata=resources.Metadata(tenant="acme", name="web")),
        service=resources.Service(),
        spiffe_id=SpiffeId.workload("mesh.test", "acme", "web"),
        pid=1,
        start_time=1,
        pidfd=-1,
        uid=0,
        gid=0,
        port=0,
        directory=Path("/nowhere"),
        number=1,
    )


def call(**values: Any) -> report_pb.CallStat:
    return report_pb.CallStat(**{"reporter": report_pb.CallStat.SOURCE, "count": 1, **values})


def test_a_reporter_is_believed_for_its_own_side_only() -> None:
    mine = call(source="spiffe://mesh.test/tenant/globex/service/web", destination="platform/orders")
    theirs = call(
        reporter=report_pb.CallStat.DESTINATION,
        source="spiffe://mesh.test/tenant/globex/service/web",
        destination="globex/bank",
    )
    first, second = stamped(pb.ReportCallsRequest(calls=[mine, theirs]), workload())
    assert (first.source, first.destination) == ("spiffe://mesh.test/tenant/acme/service/web", "platform/orders")
    assert (second.source, second.destination) == ("spiffe://mesh.test/tenant/globex/service/web", "acme/web")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", "s" * 2049),
        ("destination", "d" * 128),
        ("method", "m" * 513),
        ("status", "s" * 33),
        ("reporter", report_pb.CallStat.REPORTER_UNSPECIFIED),
        ("decision", 99),
        ("duration_buckets", [1] * 16),
        ("count", 2**40),
        ("duration_sum_s", math.nan),
        ("duration_sum_s", math.inf),
        ("duration_sum_s", -1.0),
    ],
)
def test_a_report_out_of_bounds_is_refused_whole(field: str, value: Any) -> None:
    with pytest.raises(InvalidReport, match=rf"calls\[1\]\.{field}"):
        stamped(pb.ReportCallsRequest(calls=[call(), call(**{field: value})]), workload())


def test_a_report_has_an_end() -> None:
    with pytest.raises(InvalidReport, match="calls: 4097"):
        stamped(pb.ReportCallsRequest(calls=[call()] * 4097), workload())


def test_the_socket_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("MESHWARDEN_AGENT_SOCKET", raising=False)
    assert cli.find_socket(None) == Path("/run/meshwarden/agent.sock")
    (tmp_path / "meshwarden").mkdir()
    contexts = tmp_path / "meshwarden/contexts.json"
    for junk in ("", "[]", "{}", '{"current": "a", "contexts": {"a": {"agent_sockets": []}}}'):
        contexts.write_text(junk)
        assert cli.find_socket(None) == Path("/run/meshwarden/agent.sock")
    contexts.write_text('{"current": "a", "contexts": {"a": {"agent_sockets": ["/a.sock", "/b.sock"]}}}')
    assert cli.find_socket(None) == Path("/a.sock")
    monkeypatch.setenv("MESHWARDEN_AGENT_SOCKET", "/env.sock")
    assert cli.find_socket(None) == Path("/env.sock")
    assert cli.find_socket(Path("/said.sock")) == Path("/said.sock")


def test_a_command_that_cannot_be_run(tmp_path: Path) -> None:
    run = CliRunner()
    missing = run.invoke(cli.main, ["exec", "--entry", "web", "--", "no-such-command"])
    assert missing.exit_code == 127
    (tmp_path / "file").write_text("")
    plain = run.invoke(cli.main, ["exec", "--entry", "web", "--", str(tmp_path / "file")])
    assert plain.exit_code == 126
    away = run.invoke(cli.main, ["status", "--socket", str(tmp_path / "none.sock")])
    assert away.exit_code == 1
    assert "meshwarden-agent run --config FILE" in away.output


def test_the_descriptors_are_as_generated(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    made = runpy.run_path(str(root / "proto/spiffe/generate.py"))
    made["main"](tmp_path / "fresh.binpb")
    assert (tmp_path / "fresh.binpb").read_bytes() == made["OUT"].read_bytes()


def test_the_messages_are_the_standards() -> None:
    # Field numbers of the standard's workload.proto, as py-spiffe has them.
    from spiffe._proto import workload_pb2

    svid = {"spiffe_id": "spiffe://a/b", "x509_svid": b"1", "x509_svid_key": b"2", "bundle": b"3", "hint": "h"}
    ours = schema.X509SVIDResponse(svids=[svid], crl=[b"c"], federated_bundles={"spiffe://x": b"y"})
    theirs = workload_pb2.X509SVIDResponse(svids=[svid], crl=[b"c"], federated_bundles={"spiffe://x": b"y"})
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
    bundles = {"spiffe://x": b"y"}
    ours, theirs = schema.X509BundlesResponse(bundles=bundles), workload_pb2.X509BundlesResponse(bundles=bundles)
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
