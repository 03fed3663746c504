"""Plans, ports, manifests, contexts, what is said: the parts of `up` that need no processes."""

import io
import json
import random
import socket
import stat
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from meshwarden.controlplane.config.authority import DiskAuthorityConfig, VaultAuthorityConfig
from meshwarden.controlplane.config.config import load as load_config
from meshwarden.controlplane.local import context, plan, port, sample, table
from meshwarden.controlplane.local.error import LocalError
from meshwarden.controlplane.local.mesh import LocalMesh, environment, rank
from meshwarden.controlplane.local.state import State
from meshwarden.controlplane.local.voice import Voice
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.reference import reference_faults
from meshwarden.controlplane.resources.validate import resource_faults
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.admin_service_pb2 import GetStatusResponse, NodeState, TenantState
from meshwarden.v1.node_service_pb2 import WorkloadState
from meshwarden.v1.workload_service_pb2 import AgentStatusResponse

LISTEN = {"listen": "127.0.0.1:1", "metrics_listen": "127.0.0.1:2"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,10}", fullmatch=True), st.text() | st.booleans()))
def test_what_is_written_as_toml_is_read_as_it_was(settings: dict[str, str | bool]) -> None:
    # A lone surrogate is no text that a file could hold.
    plain = {key: value for key, value in settings.items() if not isinstance(value, str) or _encodable(value)}
    assert tomllib.loads(plan.toml(plain)) == plain


def _encodable(text: str) -> bool:
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in text)


def test_the_control_plane_takes_what_we_write(tmp_path: Path) -> None:
    mesh = plan.Plan(Path('/tmp/a "b" \\ c'))  # writes nothing; what lies below it must be short
    file = tmp_path / "server.toml"
    file.write_text(plan.server_toml(mesh, "mesh.test", LISTEN, None, None))
    config = load_config(file)
    assert (config.state_dir, config.operator_directory) == (mesh.server, mesh.operator)
    assert config.authority == DiskAuthorityConfig(passphrase=f"file:{mesh.passphrase}", create=True)
    vault = {"address": "http://127.0.0.1:3", "token": "file:/token", "mount": "pki"}
    file.write_text(plan.server_toml(mesh, "mesh.test", LISTEN, "http://127.0.0.1:4", vault))
    config = load_config(file)
    passphrase = f"file:{mesh.passphrase}"
    assert config.authority == VaultAuthorityConfig(kind="vault", passphrase=passphrase, **vault)  # type: ignore[arg-type]
    assert config.jwt_passphrase == passphrase
    assert config.otlp[0].authorization == "vault:kv/meshwarden#otlp_authorization"
    assert config.tail_sampling is None
    for ratio in (0.0, 1e-7, 0.25, 1.0):
        file.write_text(plan.server_toml(mesh, "mesh.test", LISTEN, "http://127.0.0.1:4", None, tail_ratio=ratio))
        config = load_config(file)
        assert config.tail_sampling is not None
        assert config.tail_sampling.ratio == ratio


def test_one_region_lies_where_it_always_did_and_several_lie_beside_each_other(tmp_path: Path) -> None:
    (only,) = plan.Options(tmp_path).plans()
    assert (only.region, only.directory, only.named("server")) == ("local", tmp_path, "server")
    assert [agent.name for agent in only.agents] == ["agent-node-a", "agent-node-b"]
    eu, us = plan.Options(tmp_path, regions=("eu", "us")).plans()
    assert eu.server == tmp_path / "region-eu" / "server"
    assert us.agent("node-a").directory == tmp_path / "region-us" / "node-a"
    assert us.agent("node-a").name == "agent-node-a-us"
    shared = ("up_json", "logs", "passphrase", "vault", "lock")
    assert all(getattr(one, name) == getattr(only, name) for one in (eu, us) for name in shared)
    names = ["vault", *(one.named(name) for one in (eu, us) for name in ("server", "agent-node-a", "billing"))]
    assert [rank(name) for name in names] == [0, 1, 2, 3, 1, 2, 3]


def test_a_region_is_told_its_name_and_where_the_others_are(tmp_path: Path) -> None:
    eu, _ = plan.Options(Path("/tmp/x"), regions=("eu", "us")).plans()
    file = tmp_path / "server.toml"
    file.write_text(plan.server_toml(eu, "mesh.test", LISTEN, None, None, {"us": "127.0.0.1:5"}))
    config = load_config(file)
    assert (config.region, [(peer.region, peer.address) for peer in config.peer]) == ("eu", [("us", "127.0.0.1:5")])


def test_a_region_that_comes_later_takes_the_root_that_is_there(tmp_path: Path) -> None:
    first = plan.Options(tmp_path, regions=("us", "eu")).plans()[0]
    (first.server / "ca").mkdir(parents=True, mode=0o700)
    (first.server / "ca" / "root.key").write_text("encrypted")
    (first.server / "ca" / "root.key").chmod(0o600)
    options = plan.Options(tmp_path, regions=("asia", "us"))
    for one in options.plans():
        one.server.mkdir(parents=True, exist_ok=True)
        LocalMesh(one, options, None, random.Random(1)).take_root()  # type: ignore[arg-type]
    key = options.plans()[0].server / "ca" / "root.key"
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("encrypted", 0o600)
    (alone,) = plan.Options(tmp_path).plans()
    LocalMesh(alone, plan.Options(tmp_path), None, random.Random(1)).take_root()  # type: ignore[arg-type]
    assert not (alone.server / "ca").exists()


def test_the_tables_of_several_regions_stand_under_their_names() -> None:
    states = [state(), state()]
    for one, name in zip(states, ("eu", "us"), strict=True):
        one.up_json = {"region": name}
    out = io.StringIO()
    Console(file=out, width=160).print(table.tables(states, NOW))
    assert [line.strip() for line in out.getvalue().splitlines() if line.startswith("region")] == [
        *("region eu", "region us"),
    ]
    assert [text.partition(":")[0] for text in table.lines(states, NOW)] == ["eu", "us"]
    assert list(table.lines([states[0]], NOW)) == [table.line(states[0], NOW)]


def test_a_path_too_long_for_sockets_is_refused() -> None:
    fits = plan.SOCKET_BYTES - len(plan.LONGEST_SOCKET) - 1
    plan.refuse_unfit(plan.Options(Path("/" + "a" * (fits - 1))))
    with pytest.raises(LocalError, match="too long by 2 bytes"):
        plan.refuse_unfit(plan.Options(Path("/" + "ä" * (fits // 2 + 1))))


def test_a_directory_of_another_mesh_is_refused(tmp_path: Path) -> None:
    mesh = plan.Plan(tmp_path)
    vault = {"address": "http://127.0.0.1:3", "token": "file:/token", "mount": "pki"}
    mesh.server_config.write_text(plan.server_toml(mesh, "mesh.test", LISTEN, None, vault))
    plan.refuse_another(mesh, plan.Options(tmp_path))  # nobody has joined
    (mesh.agents[0].directory / "identity").mkdir(parents=True)
    plan.refuse_another(mesh, plan.Options(tmp_path, vault=True))
    for other in (plan.Options(tmp_path), plan.Options(tmp_path, "other.test", vault=True)):
        with pytest.raises(LocalError, match=r"trust domain mesh\.test, whose root is in OpenBao") as caught:
            plan.refuse_another(mesh, other)
        assert "with --vault, --trust-domain mesh.test" in caught.value.fix


def test_ports_stay_the_same_unless_they_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    first = port.choose(file, ["a", "b"], random.Random(1))
    assert first["a"] != first["b"]
    assert port.choose(file, ["a", "b"], random.Random(2)) == first
    with socket.create_server((port.HOST, first["a"])):
        second = port.choose(file, ["a", "b", "c"], random.Random(1))
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]
    assert len(set(second.values())) == 3


@pytest.mark.parametrize("text", ["", "[]", '{"a": "x"}', '{"a": null}', "\x00"])
def test_a_spoiled_choice_of_ports_is_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "ports.json").write_text(text)
    assert port.choose(tmp_path / "ports.json", ["a"], random.Random(1))["a"] >= port.FIRST


@pytest.mark.parametrize("sets", [("shop",), ("daena",), ("shop", "daena")])
def test_the_samples_manifests_hold_together(sets: tuple[str, ...]) -> None:
    resources = [item.resource for item in sample.manifests(sets, 1000, *plan.NODES)]
    assert [fault for resource in resources for fault in resource_faults(resource)] == []
    assert reference_faults(resources, View()) == []
    entries = {
        f"{item.metadata.tenant}/{item.metadata.name}": item
        for item in map(model.unwrap, resources)
        if item.kind == "WorkloadEntry"
    }
    assert set(entries) == {item.entry for item in sample.samples(sets)}
    for item in sample.samples(sets):
        assert item.node in entries[item.entry].spec.nodes  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("sets", "allowed"),
    [(("daena",), {}), (("daena", "shop"), {"platform/orders": ["/meshwarden.examples.daena.v1.Council/Hold"]})],
)
def test_orders_may_have_rounds_held_and_nothing_else_where_both_run(
    sets: tuple[str, ...], allowed: dict[str, list[str]]
) -> None:
    policies = [model.unwrap(item.resource) for item in sample.manifests(sets, 1000, *plan.NODES)]
    found = {
        f"{source.tenant}/{source.service}": list(rule.methods)
        for policy in policies
        if policy.kind == "AccessPolicy" and policy.metadata.tenant == "daena"
        for rule in policy.spec.allow  # type: ignore[union-attr]
        for source in getattr(rule, "from")
        if source.tenant == "platform"
    }
    assert found == allowed


def test_samples_end_first_and_vault_last() -> None:
    names = ["orders-v1-a", "agent-node-b", "agent-node-a", "server", "vault"]
    assert sorted(names, key=rank) == ["vault", "server", "agent-node-b", "agent-node-a", "orders-v1-a"]


def test_nothing_of_another_mesh_leads_ours_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MESHWARDEN_LISTEN", "MESHWARDEN_AGENT_NODE", "OTEL_EXPORTER_OTLP_ENDPOINT", "BAO_TOKEN"):
        monkeypatch.setenv(name, "elsewhere")
    assert "elsewhere" not in environment(plan.Plan(tmp_path)).values()


def test_the_context_file_is_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    context.put("a", context.Context("127.0.0.1:1", "ca", "cert", "key"))
    assert stat.S_IMODE(context.contexts_file().stat().st_mode) == 0o600
    assert json.loads(context.contexts_file().read_text())["current"] == "a"


def state() -> State:
    workload = WorkloadState(id="acme/web[red]\x1b", tenant="acme", entry="web", pid=7, serial="1")
    workload.spiffe_id = "spiffe://mesh.test/tenant/acme/service/web"
    workload.not_after.FromDatetime(NOW)
    workload.not_after.seconds += 3599
    new = WorkloadState(id="acme/new", tenant="acme", entry="new", pid=8)
    node = NodeState(node="node-a", zone="a", connected=True, acked_revision=3)
    tenant = TenantState(tenant="acme", allowed_per_s=1.25, limited_per_s=2, denied_per_s=3)
    status = GetStatusResponse(revision=4, nodes=[node], tenants=[tenant])
    return State(status, True, {"node-a": AgentStatusResponse(workloads=[workload, new])})


def test_the_tables_show_nodes_workloads_and_tenants() -> None:
    out = io.StringIO()
    Console(file=out, width=160).print(table.tables([state()], NOW))
    said = out.getvalue()
    for part in ("3 of 4", "59m59s", "none yet", "1.2", "web[red]�"):
        assert part in said
    assert "\x1b" not in said
    assert "away" not in said


def test_a_node_that_is_not_listed_or_does_not_answer_is_shown_as_down() -> None:
    seen = state()
    seen.up_json = {"agents": [{"node": "node-a"}, {"node": "node-b"}]}
    seen.away = {"node-a"}
    out = io.StringIO()
    Console(file=out, width=80).print(table.tables([seen], NOW))
    rows = [line.split() for line in out.getvalue().splitlines() if line.startswith("node-")]
    assert rows == [["node-a", "a", "3", "of", "4", "down"], ["node-b", "none", "yet", "down"]]


def test_a_narrow_terminal_cuts_the_identities_and_nothing_else() -> None:
    seen = state()
    seen.agents["node-a"].workloads[1].id = "platform/orders-v1-a"
    out = io.StringIO()
    Console(file=out, width=60).print(table.tables([seen], NOW))
    said = out.getvalue()
    for part in ("platform/orders-v1-a", "59m59s", "none yet", "LIFE LEFT", "spiffe:"):
        assert part in said
    assert max(map(len, said.splitlines())) <= 60


def test_the_tables_of_a_whole_mesh_fit_a_terminal_of_24_lines() -> None:
    seen = state()
    del seen.agents["node-a"].workloads[:]
    seen.agents["node-a"].workloads.extend(WorkloadState(id=f"acme/w{number}") for number in range(7))
    assert seen.status is not None
    seen.status.nodes.add(node="node-b")
    seen.status.tenants.add(tenant="globex")
    out = io.StringIO()
    Console(file=out, width=80).print(table.tables([seen], NOW))
    assert len(out.getvalue().splitlines()) < 24


def test_the_line_says_the_same() -> None:
    gone = state()
    gone.is_server_up = False
    assert table.line(gone, NOW) == (
        "control plane away; node-a revision 3; 1 of 2 workloads have an SVID, the shortest for 59m59s; "
        "acme 1.2 allowed, 2.0 limited, 3.0 denied /s"
    )
    assert table.line(State(), NOW) == "control plane away; 0 workloads"


def test_progress_goes_to_stderr_and_programs_get_stdout_for_themselves() -> None:
    out, err = io.StringIO(), io.StringIO()
    voice = Voice(out, err)
    with voice.step("part [bold]") as note:
        note("more")
        note("more")
    voice.say("it runs")
    voice.warn("odd: \x1b[31m")
    assert out.getvalue() == "it runs\n"
    assert err.getvalue().splitlines()[:2] == ["part [bold] …", "    more"]
    assert err.getvalue().splitlines()[2].startswith("part [bold]: done in")
    assert "\x1b" not in err.getvalue()
    quiet = Voice(out, err, quiet=True)
    quiet.say("for people")
    assert "for people" not in out.getvalue()
